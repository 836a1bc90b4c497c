"""A search over ranks and learning rates, from its command to the adapter that is published."""

from pathlib import Path

import pytest

from ftray import commands, registry
from ftray.config.base import override
from ftray.config.run import load_run
from ftray.tune.crown import crown
from ftray.tune.results import TrialResult
from ftray.tune.search import Found
from ftray.tune.winners import ranked
from tests.integration.tune.conftest import STEPS, Workplace

SEARCH = {
    "name": "ranks",
    "num_samples": 1,
    "every_steps": 2,
    "space": {
        "adapter.rank": {"grid": [4, 16]},
        "train.learning_rate": {"grid": [1e-2, 1e30]},  # the last one leads nowhere
    },
    "scheduler": {"kind": "none"},
    "holdout": {"path": "heldout.jsonl"},
    "publish": {"best": 1, "name": "summer", "alias": "champion"},
}


@pytest.fixture(scope="module")
def found(workplace: Workplace, ray_cluster: None) -> Found:
    return workplace.search(SEARCH)


def by_values(found: Found) -> dict[tuple[object, object], TrialResult]:
    return {tuple(trial.values.values()): trial for trial in found.result.trials}


def test_a_trial_that_diverges_fails_alone_and_says_why(found: Found) -> None:
    trials = by_values(found)
    for rank in (4, 16):
        assert trials[rank, 1e-2].state == "finished"
        assert [step for step, _ in trials[rank, 1e-2].curve] == [2, 4, STEPS]
        assert trials[rank, 1e30].state == "failed"
        assert trials[rank, 1e30].error.startswith("the loss became ")
        assert trials[rank, 1e30].error.endswith(" at step 2")


def test_the_best_is_published_and_measures_as_the_report_says(
    found: Found, workplace: Workplace
) -> None:
    best, root = found.report.rows[0], workplace.root
    assert found.winners.alias == "summer@champion"
    assert registry.aliases(root, "summer") == {"champion": 1}
    record = registry.resolve(root, "summer@champion")
    assert record.rank == best.values["adapter.rank"]
    assert record.search is not None
    assert (record.search.trial, record.search.values) == (best.trial, best.values)
    held_out = workplace.folder / "heldout.jsonl"
    measured = commands.evaluate("summer", str(held_out), ["data.packing=false"], storage=root)
    assert measured.loss == pytest.approx(best.held_out, rel=1e-4)


def test_trials_are_compared_on_the_hold_out_though_fewer_are_published(
    found: Found, workplace: Workplace
) -> None:
    assert found.winners.holdout == f"{workplace.folder / 'heldout.jsonl'}, 8 rows"
    assert [one.trial for one in found.winners.winners] == [one.id for one in ranked(found.result)]
    assert [one.ref for one in found.winners.winners] == ["summer@1", None]
    assert all(one.held_out is not None for one in found.winners.winners)


def test_the_best_stays_the_champion_when_it_is_crowned_again(
    found: Found, workplace: Workplace
) -> None:
    assert crown(found.result, num_cpus=1, num_gpus=0) == found.winners
    assert len(registry.versions(workplace.root, "summer")) == 1
    aliases = Path(workplace.root) / "adapters" / "summer" / "aliases" / "champion"
    assert [file.name for file in aliases.iterdir()] == ["1.json"]


def test_the_best_run_file_trains_what_the_search_has_found(found: Found) -> None:
    best = load_run(Path(found.result.folder) / "report" / "best.yaml", [])
    trial = found.report.rows[0]
    assert best.adapter == override(found.result.config, trial.values).adapter
    assert best.train == override(found.result.config, trial.values).train
