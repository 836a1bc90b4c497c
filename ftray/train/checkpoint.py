"""Checkpoints: what is trained and its optimizer, sharded over workers, published record last.

Only trained tensors are saved: of an adapter run the adapter, of QLoRA never the quantized base,
which is made again from the base model's own files. Random numbers are drawn anew from (seed,
step), so there is no generator state to save.
"""

import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from ftray import runs, storage
from ftray.errors import StorageError, first_line
from ftray.runs import CheckpointRecord, Run
from ftray.train.parallel import Place

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """Where a run stands after `step` optimizer steps."""

    step: int
    metrics: dict[str, float | None]
    is_best: bool
    micro_batch_size: int


def save(
    run: Run,
    trainable: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    place: Place,
    attempt: int,
) -> str:
    """Write this worker's part of a checkpoint; the first worker publishes the record last.

    Returns the checkpoint's folder. Every worker must call it at the same step.
    """
    folder = runs.checkpoint_folder(run, progress.step, attempt)
    with _writable(folder) as local:
        with _translated(folder):
            dcp_save(_state(trainable, optimizer), checkpoint_id=local)
        if storage.is_uri(folder):
            digests = storage.upload(local, folder)
        else:
            own = [path for path in local.iterdir() if _written_by(path.name, place.rank)]
            digests = {path.name: storage.sha256(path) for path in own}
    files = _merged(_gathered(digests))
    if place.is_first:
        record = CheckpointRecord(
            step=progress.step,
            attempt=attempt,
            world_size=place.world_size,
            threads=torch.get_num_threads(),
            micro_batch_size=progress.micro_batch_size,
            metrics=progress.metrics,
            best=progress.is_best,
            files=files,
            time=time.time(),
        )
        runs.write_checkpoint_record(run, record)
    return folder


def newest(run: Run, place: Place) -> CheckpointRecord | None:
    """Return the newest checkpoint whose files match their digests; all workers get the same.

    Damaged ones are deleted: the steps up to theirs come again, and would else count as older.
    """
    found: list[Any] = [_newest_sound(run) if place.is_first else None]
    if dist.is_initialized():
        dist.broadcast_object_list(found, src=0)
    record: CheckpointRecord | None = found[0]
    return record


def load(
    run: Run,
    record: CheckpointRecord,
    trainable: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Fill parameters and optimizer state in place, whatever the number of workers that saved."""
    folder = runs.checkpoint_folder(run, record.step, record.attempt)
    state: dict[str, Any] = {"model": dict(trainable)}
    if optimizer is not None:
        _create_state(optimizer)
        state = _state(trainable, optimizer)
    with _readable(folder) as local, _translated(folder):
        dcp_load(state, checkpoint_id=local)


def _newest_sound(run: Run) -> CheckpointRecord | None:
    for record in runs.checkpoints(run):
        problems = runs.verify(run, record)
        if not problems:
            return record
        logger.warning("checkpoint of step %d is damaged: %s", record.step, "; ".join(problems))
        runs.delete_checkpoint(run, record)
    return None


def _state(trainable: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    moments = {name: optimizer.state[parameter] for name, parameter in trainable.items()}
    return {"model": dict(trainable), "optimizer": moments}


def _create_state(optimizer: torch.optim.Optimizer) -> None:
    """Make the optimizer allocate its state, by a step that changes nothing."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


@contextmanager
def _writable(folder: str) -> Iterator[Path]:
    if storage.is_uri(folder):
        with tempfile.TemporaryDirectory() as local:
            yield Path(local)
    else:
        Path(folder).mkdir(parents=True, exist_ok=True)
        yield Path(folder)


@contextmanager
def _readable(folder: str) -> Iterator[Path]:
    if storage.is_uri(folder):
        with tempfile.TemporaryDirectory() as local:
            storage.download(folder, Path(local))
            yield Path(local)
    else:
        yield Path(folder)


@contextmanager
def _translated(folder: str) -> Iterator[None]:
    """Turn what a file system said to any worker into a StorageError, which all of them raise."""
    try:
        yield
    except CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        if not isinstance(causes[0], OSError):
            raise
        raise StorageError(
            f"checkpoint {folder}: {first_line(causes[0])}", "free some space, or set storage=PATH"
        ) from error


def _written_by(name: str, rank: int) -> bool:
    """DCP names files by the rank that wrote them; the first rank also writes `.metadata`."""
    return name.startswith(f"__{rank}_") or (rank == 0 and name == ".metadata")


def _gathered(digests: dict[str, str]) -> list[dict[str, str]]:
    if not dist.is_initialized():
        return [digests]
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, digests)
    return parts


def _merged(parts: list[dict[str, str]]) -> dict[str, str]:
    return {name: digest for part in parts for name, digest in sorted(part.items())}
