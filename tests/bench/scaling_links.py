"""How fast collectives are here: `python scaling_links.py WORKERS ANSWER`, for scaling.py.

Writes bytes a second that each worker sends in a ring, by collective, and each worker's FLOP/s in
large products, to the file ANSWER.
"""

import json
import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as processes

ROUNDS = 10
BYTES = {"cuda": 512 * 2**20, "cpu": 16 * 2**20}


def main() -> None:
    workers = int(sys.argv[1])
    with tempfile.TemporaryDirectory(prefix="ftray-bench-") as folder:
        processes.spawn(_work, (workers, folder, sys.argv[2]), nprocs=workers)


def _work(rank: int, workers: int, folder: str, answer: str) -> None:
    kind = "cuda" if torch.cuda.device_count() >= workers else "cpu"
    device = torch.device(kind, rank) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(device)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)  # collectives have new names since torch 2.12
    backend = "nccl" if kind == "cuda" else "gloo"
    given: dict[str, Any] = {"device_id": device} if kind == "cuda" else {}
    store = f"file://{folder}/store"
    dist.init_process_group(backend, init_method=store, rank=rank, world_size=workers, **given)
    whole = torch.zeros(BYTES[kind] // 4, device=device)
    part = whole.chunk(workers)[rank].clone()
    share = (workers - 1) / workers * whole.nbytes
    found = {
        "backend": backend,
        "megabytes": whole.nbytes / 1e6,
        "all_reduce": 2 * share / _seconds(lambda: dist.all_reduce(whole), device),
        "all_gather": share / _seconds(lambda: dist.all_gather_into_tensor(whole, part), device),
        "reduce_scatter": share / _seconds(lambda: dist.reduce_scatter_tensor(part, whole), device),
    }
    rates: list[Any] = [None] * workers
    dist.all_gather_object(rates, _multiplying(device))
    found["multiplying"] = rates
    if rank == 0:
        Path(answer).write_text(json.dumps(found))
    dist.destroy_process_group()


def _multiplying(device: torch.device) -> float:
    """FLOP/s of large products here while all others multiply too: GPUs of one host differ."""
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (256, torch.float32)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / _seconds(lambda: left @ right, device)


def _seconds(collective: Any, device: torch.device) -> float:
    seconds = []
    for _ in range(ROUNDS + 3):
        dist.barrier()
        _wait(device)
        began = time.perf_counter()
        collective()
        _wait(device)
        seconds.append(time.perf_counter() - began)
    return median(seconds[3:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
