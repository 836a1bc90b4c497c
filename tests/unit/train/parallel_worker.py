"""One of two workers that train the same tiny runs, as a program; `test_parallel.py` starts it."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from ftray.config.run import (
    AdapterConfig,
    FullConfig,
    LoraConfig,
    ModelConfig,
    QloraConfig,
    TrainConfig,
)
from ftray.data.batches import Batch
from ftray.model.adapter import attach
from ftray.model.base import load_base
from ftray.model.loss import LanguageModel
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


def main(rank: int, folder: Path, store: Path, out: Path) -> None:
    torch.set_num_threads(1)
    place = Place(0, 1, torch.device("cpu"))
    alone = {kind: asdict(trained(folder, kind, "ddp", place)) for kind in ADAPTERS if rank == 0}
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    place = Place(rank, 2, torch.device("cpu"))
    together = {
        f"{kind} {strategy}": asdict(trained(folder, kind, strategy, place))
        for kind in ADAPTERS
        for strategy in ("ddp", "fsdp")
    }
    out.write_text(json.dumps({"alone": alone, "together": together}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), *(Path(path) for path in sys.argv[2:]))
