"""Which token is drawn."""

from collections import Counter

import pytest
import torch

from ftray.serve.engine.sampler import Draw, choose, generator_of
from ftray.serve.protocol import Sampling

LOGITS = torch.tensor([1.0, 4.0, 2.0, 3.0])


def drawn(sampling: Sampling, *, draws: int = 200, taken: tuple[int, ...] = ()) -> set[int]:
    draw = Draw(sampling, generator_of(1, 0), counts=Counter(taken))
    return {choose(LOGITS[None], [draw])[0] for _ in range(draws)}


def test_without_temperature_the_largest_is_taken():
    assert drawn(Sampling(temperature=0), draws=3) == {1}


def test_filters_leave_out_the_improbable():
    assert drawn(Sampling()) == {0, 1, 2, 3}
    assert drawn(Sampling(top_k=2)) == {1, 3}
    assert drawn(Sampling(top_p=0.8)) == {1, 3}
    assert drawn(Sampling(top_p=0.001)) == {1}
    assert drawn(Sampling(min_p=0.3)) == {1, 3}
    assert drawn(Sampling(top_k=3, top_p=0.9)) == {1, 3}  # of what top_k has left


def test_penalties_and_biases_change_the_logits():
    assert drawn(Sampling(temperature=0, presence_penalty=2), taken=(1,), draws=1) == {3}
    assert drawn(Sampling(temperature=0, frequency_penalty=0.6), taken=(1,), draws=1) == {1}
    assert drawn(Sampling(temperature=0, frequency_penalty=0.6), taken=(1, 1), draws=1) == {3}
    assert drawn(Sampling(temperature=0, logit_bias={0: 100.0}), draws=1) == {0}
    assert drawn(Sampling(logit_bias={1: -100.0, 3: -100.0})) == {0, 2}


def test_draws_follow_the_probabilities():
    draw = Draw(Sampling(), generator_of(5, 0))
    found = Counter(choose(LOGITS[None], [draw])[0] for _ in range(4000))
    for token, share in enumerate(LOGITS.softmax(-1).tolist()):
        assert found[token] / 4000 == pytest.approx(share, abs=0.03)


def test_a_large_vocabulary_is_cut_where_a_full_sort_would_cut_it():
    logits = torch.linspace(0, 1, 5000)  # top_p reaches beyond the first 1,024
    draw = Draw(Sampling(top_p=0.5), generator_of(2, 0))
    found = {choose(logits[None], [draw])[0] for _ in range(300)}
    weights = logits.softmax(-1).flip(0)
    kept = int((weights.cumsum(0) - weights < 0.5).sum())
    assert max(found) > 4900
    assert 5000 - kept <= min(found) < 5000 - kept + 200


def test_a_choice_has_its_own_numbers_from_the_seed():
    first, again, other = (
        torch.rand(4, generator=generator_of(9, choice)).tolist() for choice in (0, 0, 1)
    )
    assert first == again != other
    assert generator_of(None, 0).initial_seed() != generator_of(None, 0).initial_seed()


def test_rows_that_are_no_numbers_are_told_apart():
    logits = torch.stack([LOGITS, LOGITS * torch.nan])
    draws = [Draw(Sampling(temperature=0), generator_of(0, 0)) for _ in range(2)]
    assert choose(logits, draws) == [1, None]
