"""Workers that train the same tiny runs, as a program of `test_parallel.py`."""

import json
import multiprocessing
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import bitsandbytes  # noqa: F401 slow, and else each worker imports it by itself
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from ftray.config.run import (
    ActivationPolicy,
    AdapterConfig,
    FullConfig,
    LoraConfig,
    ModelConfig,
    QloraConfig,
    TrainConfig,
)
from ftray.data.batching.collation import Batch
from ftray.model.adapter import attach
from ftray.model.base import load_base
from ftray.model.blank import blank_base
from ftray.model.loss import LanguageModel
from ftray.runs import Run
from ftray.train import checkpoint
from ftray.train.fill import fill
from ftray.train.optim import build_optimizer
from ftray.train.parallel import Place, shard
from ftray.train.saver import Saver
from ftray.train.step import MicroBatch, StepResult, share, train_step
from ftray.train.trainee import Trainee

TRAIN = TrainConfig(epochs=1, learning_rate=1e-2)
STEPS, PACKS, LENGTH, MICRO = 3, 7, 16, 2  # 7 packs: one worker's last micro-batch is empty

ADAPTERS: dict[str, AdapterConfig] = {
    "lora": LoraConfig(rank=4),
    "lora-dropout": LoraConfig(rank=4, dropout=0.2),
    "qlora": QloraConfig(rank=4),
    "lora-offload": LoraConfig(rank=4),
    "lora-mlp": LoraConfig(rank=4),
    "full": FullConfig(),
    "full-bf16": FullConfig(),
    "full-layer": FullConfig(),
    "full-pointwise": FullConfig(),
}

KEPT: dict[str, ActivationPolicy] = {
    "lora-mlp": "mlp",
    "lora-offload": "offload",
    "full-pointwise": "pointwise",
    "full-layer": "layer",
}

SAVED = {"full": "fsdp", "lora": "ddp"}

TOGETHER = [(kind, way) for kind in ADAPTERS for way in ("ddp", "fsdp") if kind not in KEPT] + [
    *((kind, "fsdp") for kind in KEPT),
    ("lora", "read"),
    ("qlora", "read"),
    ("full", "read"),
    ("full-bf16", "read"),
]


@dataclass(frozen=True)
class Learner:
    """A model with its optimizer, as one worker of `place` holds it."""

    trainee: Trainee
    optimizer: torch.optim.Optimizer
    place: Place

    def step(self, step: int) -> StepResult:
        packs = packs_of(step)
        work = [micro_batch_of(packs, some) for some in share(PACKS, self.place, MICRO)]
        result = train_step(self.trainee, work, self.place, TRAIN, step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return result


class Sent(TorchDispatchMode):
    """Counts the bytes that this worker's collectives send, as rings do."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = {"allreduce_": 0.0, "_allgather_base_": 0.0, "_reduce_scatter_base_": 0.0}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("c10d::")
        if name in self.bytes:
            whole = args[0][0] if name == "allreduce_" else max(args[:2], key=torch.numel)
            share = (dist.get_world_size() - 1) / dist.get_world_size()
            rings = 2 if name == "allreduce_" else 1
            self.bytes[name] += rings * share * whole.numel() * whole.element_size()
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Seen:
    losses: list[float]
    norms: list[float]
    answers: list[list[int]]
    sharded: bool
    precise: bool  # what is trained is fp32
    sent: dict[str, float]  # bytes of the last step


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


def learner(folder: Path, kind: str, strategy: str, place: Place) -> Learner:
    config, fp32 = ModelConfig(name=str(folder)), torch.float32
    blank = blank_base(folder, config, fp32, place.device) if strategy == "read" else None
    base = blank.model if blank else load_base(folder, config, place.device)
    attached = attach(base, ADAPTERS[kind], seed=0, device=place.device)
    model = LanguageModel(base, attached.routing)
    model.keep(KEPT.get(kind, "none"), compiled=False)
    dtype = torch.bfloat16 if kind.endswith("bf16") else torch.float32
    is_full, is_sharded = kind.startswith("full"), strategy != "ddp"
    if is_sharded:
        shard(model, attached.trainable, compute=dtype if is_full else None)
    if blank:
        fill(model, blank)
        model.check(dtype)
    trainee = Trainee(model.train(), attached, is_sharded and is_full, dtype)
    return Learner(trainee, build_optimizer(attached.trainable.values(), TRAIN), place)


def trained(folder: Path, kind: str, strategy: str, place: Place) -> Seen:
    made = learner(folder, kind, strategy, place)
    results = [made.step(step) for step in range(STEPS - 1)]
    with Sent() as sent:
        results.append(made.step(STEPS - 1))
    model = made.trainee.model
    with made.trainee.precision():
        answers = model.generate([[1, 2, 3], [4, 5]], 5, [0], in_step=place.world_size > 1)
    trainable = made.trainee.attached.trainable.values()
    return Seen(
        [result.loss for result in results],
        [result.grad_norm for result in results],
        answers,
        any(isinstance(parameter, DTensor) for parameter in model.parameters()),
        all(parameter.dtype == torch.float32 for parameter in trainable),
        sent.bytes,
    )


def saved_midway(folder: Path, root: str, kind: str, place: Place) -> float:
    """Train, save while the next step is taken, and return the loss of the step after that."""
    made = learner(folder, kind, SAVED[kind], place)
    for step in range(STEPS):
        made.step(step)
    made.trainee.model.generate([[1, 2, 3]], 2, [0], in_step=True)  # as before a save in training
    saver = Saver(Run(root, kind), place, attempt=1, keep=1)
    progress = checkpoint.Progress(STEPS, {}, is_best=False, micro_batch_size=MICRO)
    saver.save(made.trainee.attached.trainable, made.optimizer, progress)
    made.step(STEPS)
    saved = saver.wait()
    assert saved is not None
    assert saved.progress == progress
    saver.close()
    return made.step(STEPS + 1).loss


def gone_on(folder: Path, root: str, kind: str, place: Place) -> float:
    """Load what two workers saved, and return the loss of the step after the next one."""
    strategy = SAVED[kind] if place.world_size > 1 else "ddp"
    made, run = learner(folder, kind, strategy, place), Run(root, kind)
    record = checkpoint.newest(run, place, attempt=2)
    assert record is not None
    assert record.world_size == 2
    checkpoint.load(run, record, made.trainee.attached.trainable, made.optimizer)
    made.step(STEPS)
    return made.step(STEPS + 1).loss


def joined(rank: int, count: int, root: Path) -> Place:
    """Join a group of so many workers."""
    store = f"file://{root}/store-{count}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=count)
    return Place(rank, count, torch.device("cpu"))


def one_of_four(rank: int, folder: Path, root: Path) -> None:
    """Go on where two have saved."""
    place = joined(rank, 4, root)
    found = {kind: gone_on(folder, str(root), kind, place) for kind in SAVED}
    (root / f"{rank}-of-4.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def one_of_two(rank: int, folder: Path, root: Path) -> None:
    """Train together, then alone."""
    lone, place = Place(0, 1, torch.device("cpu")), joined(rank, 2, root)
    together = {
        f"{kind} {strategy}": asdict(trained(folder, kind, strategy, place))
        for kind, strategy in TOGETHER
    }
    two = {kind: saved_midway(folder, str(root), kind, place) for kind in SAVED}
    dist.destroy_process_group()
    share_of_kinds = list(ADAPTERS)[rank::2]
    alone = {kind: asdict(trained(folder, kind, "ddp", lone)) for kind in share_of_kinds}
    seen = {"together": together, "alone": alone, "after saving": two}
    if rank == 1:
        seen["after loading"] = {kind: gone_on(folder, str(root), kind, lone) for kind in SAVED}
    (root / f"{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    torch.set_num_threads(1)
    count, arguments = int(sys.argv[1]), (Path(sys.argv[2]), Path(sys.argv[3]))
    work = {2: one_of_two, 4: one_of_four}[count]
    fork = multiprocessing.get_context("fork")  # what was imported is there in each
    workers = [fork.Process(target=work, args=(rank, *arguments)) for rank in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    sys.exit(any(worker.exitcode for worker in workers))
