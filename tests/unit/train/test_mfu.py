import pytest
import torch

from ftray.model.shape import BUILTIN_SHAPE
from ftray.train.mfu import Speed, flops_per_token, peak_flops


def test_the_longest_matching_device_name_wins() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA L40S") == 362e12
    assert peak_flops("some new card") is None


def test_a_token_costs_four_flops_a_weight_with_a_frozen_base_and_six_without() -> None:
    weights = BUILTIN_SHAPE.parameters - (2 * 30 + 1) * 576  # the norms are no matrices
    assert flops_per_token(BUILTIN_SHAPE, 0, frozen_base=True) == 4 * weights
    assert flops_per_token(BUILTIN_SHAPE, 0, frozen_base=False) == 6 * weights


def test_attention_adds_in_proportion_to_the_length() -> None:
    at = [flops_per_token(BUILTIN_SHAPE, length, frozen_base=True) for length in (0, 1000, 2000)]
    assert at[2] - at[1] == pytest.approx(at[1] - at[0])
    # scores and sums of 9 heads of 64 in 30 layers: 4 FLOPs a pair of tokens, half of them masked,
    # once forward and twice backward
    assert at[1] - at[0] == 3 * 4 * 1000 / 2 * 9 * 64 * 30


def test_a_cpu_has_no_mfu() -> None:
    speed = Speed.of(BUILTIN_SHAPE, torch.device("cpu"), 128, frozen_base=True)
    assert speed.mfu(1000.0) is None


def test_mfu_is_the_share_of_the_peak() -> None:
    assert Speed(flops_per_token=2e9, peak=1e12).mfu(250.0) == pytest.approx(0.5)
