"""Workers that read their rows of several models, as a program of `test_fill.py`."""

import json
import multiprocessing
import sys
from dataclasses import replace
from pathlib import Path

import bitsandbytes  # noqa: F401 slow, and else each worker imports it by itself
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ftray.config.run import AdapterConfig, FullConfig, LoraConfig, ModelConfig, QloraConfig
from ftray.model.adapter import attach
from ftray.model.base import load_base, output_layer
from ftray.model.blank import Blank, blank_base
from ftray.model.loss import LanguageModel
from ftray.model.weights import Weights
from ftray.train.fill import fill
from ftray.train.parallel import shard

ADAPTERS: dict[str, AdapterConfig] = {
    "lora": LoraConfig(rank=4),
    "qlora": QloraConfig(rank=4),
    "qlora-single": QloraConfig(rank=4, double_quantization=False),
    "full": FullConfig(),
}
CPU, DTYPE, WORKERS = torch.device("cpu"), torch.bfloat16, 3


class Counting(Weights):
    """Counts the bytes that are read."""

    read = 0

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        found = super().rows(name, start, stop)
        self.read += found.numel() * found.element_size()
        return found


def whole(part: Tensor) -> Tensor:
    return part.full_tensor() if isinstance(part, DTensor) else part.detach()


def equal(found: Tensor, expected: Tensor) -> bool:
    """Bit for bit: what is packed may look like no number, which equals nothing."""
    found, expected = (part.flatten().view(torch.uint8) for part in (found, expected))
    return torch.equal(found, expected)


def seen(folder: Path, kind: str) -> dict[str, object]:
    config, adapter = ModelConfig(name=str(folder), dtype="bfloat16"), ADAPTERS[kind]
    expected = attach(load_base(folder, config, CPU), adapter, seed=0).model.state_dict()
    blank = blank_base(folder, config, DTYPE, CPU)
    assert isinstance(blank, Blank)
    weights = Counting(folder)
    blank = replace(blank, weights=weights)
    attached = attach(blank.model, adapter, seed=0, device=CPU)
    model = LanguageModel(attached.model, attached.routing)
    shard(model, attached.trainable, compute=DTYPE if kind == "full" else None)
    fill(model, blank)
    model.check(DTYPE)
    made = attached.model
    differing = [
        name
        for name, values in made.state_dict().items()
        if not equal(whole(values), expected[name])
    ]
    embedding: nn.Embedding = made.get_input_embeddings()
    return {
        "differing": differing,
        "same names": made.state_dict().keys() == expected.keys(),
        "tied": output_layer(made).weight is embedding.weight,
        "read": weights.read,
        "trained": sorted(attached.trainable),
    }


def work(rank: int, root: Path, folders: list[Path]) -> None:
    store = f"file://{root}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORKERS)
    found = {f"{folder.name} {kind}": seen(folder, kind) for folder in folders for kind in ADAPTERS}
    (root / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    root, folders = Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]]
    fork = multiprocessing.get_context("fork")  # what was imported is there in each
    workers = [fork.Process(target=work, args=(rank, root, folders)) for rank in range(WORKERS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    sys.exit(any(worker.exitcode for worker in workers))
