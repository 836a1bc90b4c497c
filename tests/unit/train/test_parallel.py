"""One process and two must see the same run: same losses, same gradient norms, same answers."""

import json
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.tensor import DTensor

from ftray.config.run import AdapterConfig, FullConfig, LoraConfig, QloraConfig, TrainConfig
from ftray.data.batches import Batch
from ftray.model.adapter import attach
from ftray.model.base import load_base
from ftray.model.loss import LanguageModel
from ftray.config.run import ModelConfig
from ftray.train.optim import build_optimizer
from ftray.train.parallel import Place, shard
from ftray.train.step import MicroBatch, share, train_step
from ftray.train.trainee import Trainee

STEPS, PACKS, LENGTH, MICRO = 4, 7, 16, 2  # 7 packs: one worker's last micro-batch is empty

ADAPTERS: dict[str, AdapterConfig] = {
    "lora": LoraConfig(rank=4),
    "lora-dropout": LoraConfig(rank=4, dropout=0.2),
    "qlora": QloraConfig(rank=4),
    "full": FullConfig(),
}


@dataclass(frozen=True)
class Seen:
    losses: list[float]
    norms: list[float]
    answers: list[list[int]]
    sharded: bool


def packs_of(step: int) -> list[Batch]:
    """Random packs, each with another number of labels."""
    generator = torch.Generator().manual_seed(step)
    made = []
    for index in range(PACKS):
        ids = torch.randint(0, 200, (1, LENGTH), generator=generator)
        labels = ids.roll(-1)
        labels[:, : 2 * index] = -100
        positions = torch.arange(LENGTH).view(1, -1)
        made.append(Batch(ids, labels, positions, int((labels != -100).sum()), LENGTH))
    return made


def micro_batch_of(packs: list[Batch], positions: list[int]) -> MicroBatch:
    chosen = [packs[position] for position in positions or [0]]
    labels = torch.cat([pack.labels for pack in chosen])
    labels = labels if positions else torch.full_like(labels, -100)
    batch = Batch(
        torch.cat([pack.input_ids for pack in chosen]),
        labels,
        torch.cat([pack.position_ids for pack in chosen]),
        int((labels != -100).sum()),
        LENGTH * len(positions),
    )
    return MicroBatch(batch, positions or [0], len(positions))


def trained(folder: Path, kind: str, strategy: str, place: Place) -> Seen:
    base = load_base(folder, ModelConfig(name=str(folder)), place.device)
    attached = attach(base, ADAPTERS[kind], seed=0)
    model = LanguageModel(base, attached.routing)
    is_full = kind == "full"
    if strategy == "fsdp":
        shard(model, attached.trainable, full=is_full)
    trainee = Trainee(model.train(), attached, strategy == "fsdp" and is_full)
    train = TrainConfig(epochs=1, learning_rate=1e-2)
    optimizer = build_optimizer(attached.trainable.values(), train)
    results = []
    for step in range(STEPS):
        packs = packs_of(step)
        work = [micro_batch_of(packs, some) for some in share(PACKS, place, MICRO)]
        results.append(train_step(trainee, work, place, train, step))
        optimizer.step()
        optimizer.zero_grad()
    return Seen(
        [result.loss for result in results],
        [result.grad_norm for result in results],
        model.generate([[1, 2, 3], [4, 5]], 5, [0]),
        any(isinstance(parameter, DTensor) for parameter in model.parameters()),
    )


def work_as(rank: int, folder: Path, port: int, out: Path) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    place = Place(rank, 2, torch.device("cpu"))
    seen = {
        f"{kind} {strategy}": asdict(trained(folder, kind, strategy, place))
        for kind in ADAPTERS
        for strategy in ("ddp", "fsdp")
    }
    out.with_suffix(f".{rank}").write_text(json.dumps(seen))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_workers(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    out = tmp_path_factory.mktemp("parallel") / "seen"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(work_as, (tiny_folder, port, out), nprocs=2)
    return [json.loads(out.with_suffix(f".{rank}").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def one_worker(tiny_folder: Path) -> dict[str, Seen]:
    place = Place(0, 1, torch.device("cpu"))
    return {kind: trained(tiny_folder, kind, "ddp", place) for kind in ADAPTERS}


CASES = [(kind, strategy) for kind in ADAPTERS for strategy in ("ddp", "fsdp")]


@pytest.mark.parametrize(("kind", "strategy"), CASES)
def test_two_workers_see_the_losses_and_gradients_of_one(
    kind: str, strategy: str, one_worker: dict[str, Seen], two_workers: list[dict]
) -> None:
    alone, together = one_worker[kind], two_workers[0][f"{kind} {strategy}"]
    assert together["losses"] == pytest.approx(alone.losses, rel=1e-5)
    assert together["norms"] == pytest.approx(alone.norms, rel=1e-4)
    assert together["answers"] == alone.answers
    assert together["losses"][0] != together["losses"][-1]


@pytest.mark.parametrize(("kind", "strategy"), CASES)
def test_both_workers_report_the_same_numbers(
    kind: str, strategy: str, two_workers: list[dict]
) -> None:
    assert two_workers[0][f"{kind} {strategy}"] == two_workers[1][f"{kind} {strategy}"]


@pytest.mark.parametrize("kind", list(ADAPTERS))
def test_fsdp_shards_weights_and_ddp_does_not(kind: str, two_workers: list[dict]) -> None:
    assert two_workers[0][f"{kind} fsdp"]["sharded"]
    assert not two_workers[0][f"{kind} ddp"]["sharded"]


def test_every_position_of_a_global_batch_is_taken_once_whatever_the_workers() -> None:
    for workers, micro in ((1, 8), (2, 4), (4, 2), (3, 2)):
        places = [Place(rank, workers, torch.device("cpu")) for rank in range(workers)]
        shares = [share(13, place, micro) for place in places]
        assert len({len(some) for some in shares}) == 1
        assert sorted(p for some in shares for batch in some for p in batch) == list(range(13))
