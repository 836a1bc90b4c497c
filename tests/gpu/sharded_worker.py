"""Workers that train over a sharded base, one on each GPU, as a program of `test_sharded.py`."""

import json
import logging
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from ftray.config.base import validated
from ftray.config.run import RunConfig
from ftray.data.batching.samples import Sample
from ftray.data.rendering.chat import Tokens
from ftray.data.tokens.memory import MemoryRows
from ftray.train.optim import build_optimizer
from ftray.train.parallel import Place
from ftray.train.step import micro_batch, share, train_step
from ftray.train.trainee import build_trainee

TRAINED = bytes([0, *[1] * 29])
ROWS = MemoryRows([Tokens([5 + i, 6, 7, 8, 9 + i] * 6, TRAINED) for i in range(4)])
PACKS = [[Sample(key, 0, len(TRAINED), 0)] for key in range(4)]
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "rank": 8},
    "qlora": {"method": "qlora", "rank": 8},
    "full": {"method": "full"},
}


def trained(folder: Path, adapter: dict[str, Any], place: Place, *, compiled: bool) -> Any:
    tree = {
        "name": "gpu",
        "model": {"name": str(folder)},
        "adapter": adapter,
        "data": {"train": "unused.jsonl", "max_length": 64},
        "train": {"max_steps": 8, "learning_rate": 5e-3, "compile": compiled},
        "scaling": {"num_workers": place.world_size, "strategy": "fsdp"},
    }
    config = validated(RunConfig, tree, "test")
    trainee = build_trainee(config, folder, place, "")
    weights = {name: digest(values) for name, values in trainee.model.state_dict().items()}
    optimizer = build_optimizer(trainee.attached.trainable.values(), config.train)
    losses = []
    for step in range(3):
        work = [micro_batch(ROWS, PACKS, some) for some in share(len(PACKS), place, 1)]
        losses.append(train_step(trainee, work, place, config.train, step).loss)
        optimizer.step()
        optimizer.zero_grad()
    answers = trainee.model.generate([[5, 6, 7]], 4, [0], in_step=place.world_size > 1)
    return {"weights": weights, "losses": losses, "answers": answers}


def digest(values: Tensor) -> list[float]:
    """Two sums over its bytes that tell any two tensors of these tests apart."""
    whole = values.full_tensor() if isinstance(values, DTensor) else values
    whole = whole.flatten().view(torch.uint8).double()
    return [
        whole.sum().item(),
        (whole * torch.arange(len(whole), device=whole.device)).sum().item(),
    ]


def one(rank: int, count: int, root: Path, folders: list[Path]) -> None:
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", init_method=f"file://{root}/s", rank=rank, world_size=count)
    logging.basicConfig(filename=root / f"{rank}.log", level=logging.INFO)
    place = Place(rank, count, device)
    seen = {
        f"{kind} {'compiled' if compiled else 'eager'}": [
            trained(folder, adapter, place, compiled=compiled) for folder in folders
        ]
        for kind, adapter in ADAPTERS.items()
        for compiled in (False, True)
    }
    (root / f"{rank}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


if __name__ == "__main__":
    root, folders = Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]]
    spawn, count = multiprocessing.get_context("spawn"), torch.cuda.device_count()
    workers = [
        spawn.Process(target=one, args=(rank, count, root, folders)) for rank in range(count)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    sys.exit(any(worker.exitcode for worker in workers))
