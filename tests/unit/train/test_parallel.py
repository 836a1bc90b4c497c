"""One process and two must see the same run: same losses, same gradient norms, same answers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ftray.config.base import validated
from ftray.config.run import RunConfig
from ftray.model.shape import read_shape
from ftray.train.memory import Worker
from ftray.train.parallel import Place
from ftray.train.step import share
from ftray.train.traffic import traffic

KINDS = ("lora", "lora-dropout", "qlora", "full")
RECOMPUTED = ("lora-mlp", "lora-offload", "full-pointwise", "full-layer")
CASES = [(kind, strategy) for kind in KINDS for strategy in ("ddp", "fsdp")] + [
    (kind, "fsdp") for kind in RECOMPUTED
]

Seen = dict[str, Any]


@pytest.fixture(scope="module")
def seen(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Seen]:
    """What each of two workers saw."""
    folder = tmp_path_factory.mktemp("parallel")
    work(2, tiny_folder, folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def work(count: int, model: Path, folder: Path) -> None:
    """Let so many workers do their part."""
    program = Path(__file__).with_name("parallel_worker.py")
    subprocess.run([sys.executable, program, str(count), model, folder], check=True, timeout=300)


@pytest.fixture(scope="module")
def alone(seen: list[Seen]) -> Seen:
    """What one worker by itself sees; the two have done half of the kinds each."""
    return {**seen[0]["alone"], **seen[1]["alone"]}


@pytest.mark.parametrize(("kind", "strategy"), CASES)
def test_two_workers_see_the_losses_and_gradients_of_one(
    kind: str, strategy: str, seen: list[Seen], alone: Seen
) -> None:
    together = seen[0]["together"][f"{kind} {strategy}"]
    assert together["losses"] == pytest.approx(alone[kind]["losses"], rel=1e-5)
    assert together["norms"] == pytest.approx(alone[kind]["norms"], rel=1e-4)
    assert together["answers"] == alone[kind]["answers"]
    assert together["losses"][0] != together["losses"][-1]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_bf16_follows_the_same_curve_with_weights_kept_in_fp32(
    strategy: str, seen: list[Seen], alone: Seen
) -> None:
    together = seen[0]["together"][f"full-bf16 {strategy}"]
    assert together["losses"] == pytest.approx(alone["full"]["losses"], rel=2e-2)
    assert together["losses"] != pytest.approx(alone["full"]["losses"], rel=1e-5)
    assert together["precise"]


@pytest.mark.parametrize("kind", ["lora", "qlora", "full", "full-bf16"])
def test_workers_that_read_their_own_rows_take_the_very_steps_of_those_that_loaded_it_whole(
    kind: str, seen: list[Seen]
) -> None:
    for worker in seen:
        assert worker["together"][f"{kind} read"] == worker["together"][f"{kind} fsdp"]


def test_recomputed_activations_give_the_same_losses_and_gradients(alone: Seen) -> None:
    for kind in RECOMPUTED:
        plain, recomputed = alone[kind.partition("-")[0]], alone[kind]
        assert (recomputed["losses"], recomputed["norms"]) == (plain["losses"], plain["norms"])


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_one_worker_goes_on_where_two_saved_while_they_trained(kind: str, seen: list[Seen]) -> None:
    """Of the full one the weights and moments were sharded."""
    expected = seen[0]["after saving"][kind]
    assert seen[1]["after saving"][kind] == expected
    assert seen[1]["after loading"][kind] == pytest.approx(expected, rel=1e-5)


@pytest.mark.full
def test_four_workers_go_on_where_two_saved(tiny_folder: Path, tmp_path: Path) -> None:
    work(2, tiny_folder, tmp_path)
    work(4, tiny_folder, tmp_path)
    expected = json.loads((tmp_path / "0.json").read_text())["after saving"]
    for rank in range(4):
        found = json.loads((tmp_path / f"{rank}-of-4.json").read_text())
        assert found == {kind: pytest.approx(expected[kind], rel=1e-5) for kind in expected}


@pytest.mark.parametrize(("kind", "strategy"), CASES)
def test_both_workers_report_the_same_numbers(kind: str, strategy: str, seen: list[Seen]) -> None:
    first, second = (worker["together"][f"{kind} {strategy}"] for worker in seen)
    assert first == second


@pytest.mark.parametrize(("kind", "strategy"), CASES)
def test_a_step_sends_the_bytes_that_are_predicted(
    kind: str, strategy: str, seen: list[Seen], tiny_folder: Path
) -> None:
    tree = {
        "name": "a",
        "model": {"name": str(tiny_folder)},
        "adapter": {"method": "full"},
        "data": {"train": "unused.jsonl"},
        "train": {"max_steps": 1},
        "scaling": {"num_workers": 2, "strategy": strategy},
    }
    method = kind.partition("-")[0]
    if method != "full":
        tree["adapter"] = {"method": method, "rank": 4}
    config, shape = validated(RunConfig, tree, "test"), read_shape(tiny_folder)
    assert shape is not None
    expected = traffic(config, shape, Worker("cpu", 2, None, "a test"), accumulation=2)
    sent = seen[0]["together"][f"{kind} {strategy}"]["sent"]
    assert sent["_allgather_base_"] == pytest.approx(expected.gathered, rel=5e-3)  # padded
    assert sent["_reduce_scatter_base_"] == pytest.approx(expected.scattered, rel=5e-3)
    assert sent["allreduce_"] == pytest.approx(expected.summed, rel=1e-3, abs=100)  # losses


@pytest.mark.parametrize("kind", KINDS)
def test_fsdp_shards_weights_and_ddp_does_not(kind: str, seen: list[Seen]) -> None:
    assert seen[0]["together"][f"{kind} fsdp"]["sharded"]
    assert not seen[0]["together"][f"{kind} ddp"]["sharded"]


def test_dropout_changes_the_losses_after_the_first_step(alone: Seen) -> None:
    with_it, without = (alone[kind]["losses"] for kind in ("lora-dropout", "lora"))
    assert with_it[0] == without[0]  # B is zero at the start
    assert with_it[2] != without[2]


def test_every_position_of_a_global_batch_is_taken_once_whatever_the_workers() -> None:
    for workers, micro in ((1, 8), (2, 4), (4, 2), (3, 2)):
        places = [Place(rank, workers, torch.device("cpu")) for rank in range(workers)]
        shares = [share(13, place, micro) for place in places]
        assert len({len(some) for some in shares}) == 1
        assert sorted(p for some in shares for batch in some for p in batch) == list(range(13))
