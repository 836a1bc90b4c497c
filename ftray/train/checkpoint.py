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
from ftray.train.writer import Writer

State = dict[str, Any]  # tensors and numbers, nested by what they belong to

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
    """Publish a checkpoint and return its folder; every worker must call it at the same step."""
    return write(run, state_of(trainable, optimizer), progress, place, attempt)


def state_of(trainable: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> State:
    """Return what a checkpoint holds: the live tensors, not copies."""
    moments = {name: optimizer.state[parameter] for name, parameter in trainable.items()}
    return {"model": dict(trainable), "optimizer": moments}


def write(
    run: Run,
    state: State,
    progress: Progress,
    place: Place,
    attempt: int,
    group: dist.ProcessGroup | None = None,
) -> str:
    """Write this worker's part of a state; the first worker publishes the record last.

    Returns the checkpoint's folder. What one worker cannot write is a StorageError on all of them.
    """
    folder = runs.checkpoint_folder(run, progress.step, attempt)
    parts = _gathered(_written(state, folder, place, group), group)
    files = {name: digest for part in parts for name, digest in sorted(part.items())}
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


def newest(run: Run, place: Place, attempt: int) -> CheckpointRecord | None:
    """Return the newest checkpoint whose files match their digests; all workers get the same.

    Damaged ones are deleted: the steps up to theirs come again, and would else count as older. So
    is what earlier attempts began and never published.
    """
    found: list[Any] = [_newest_sound(run, attempt) if place.is_first else None]
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
    load_folder(runs.checkpoint_folder(run, record.step, record.attempt), trainable, optimizer)


def load_folder(
    folder: str,
    trainable: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """The same, of a checkpoint that its folder names."""
    state: dict[str, Any] = {"model": dict(trainable)}
    if optimizer is not None:
        _create_state(optimizer)
        state = state_of(trainable, optimizer)
    with _readable(folder) as local, _translated(folder):
        dcp_load(state, checkpoint_id=local)


def _newest_sound(run: Run, attempt: int) -> CheckpointRecord | None:
    lost = runs.delete_unpublished(run, before=attempt)
    for record in runs.checkpoints(run):
        problems = runs.verify(run, record)
        if not problems:
            return record
        logger.warning("checkpoint of step %d is damaged: %s", record.step, "; ".join(problems))
        runs.delete_checkpoint(run, record)
        lost += 1
    if lost:
        logger.warning("run '%s' has no sound checkpoint: IT STARTS AGAIN AT STEP 0", run.name)
    return None


def _written(
    state: State, folder: str, place: Place, group: dist.ProcessGroup | None
) -> dict[str, str] | StorageError:
    """Return the digests of what this worker has written, or why they cannot be there."""
    with _writable(folder) as local:
        with _translated(folder):
            dcp_save(state, storage_writer=Writer(local), process_group=group)
        try:
            if storage.is_uri(folder):
                return storage.upload(local, folder)
            own = [path for path in local.iterdir() if _written_by(path.name, place.rank)]
            return {path.name: storage.sha256(path) for path in own}
        except StorageError as error:
            return error


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
        match causes[0]:
            case StorageError() as told:
                raise told from error
            case OSError() as cause:
                raise StorageError(f"checkpoint {folder}: {first_line(cause)}") from error
        raise


def _written_by(name: str, rank: int) -> bool:
    """DCP names files by the rank that wrote them; the first rank also writes `.metadata`."""
    return name.startswith(f"__{rank}_") or (rank == 0 and name == ".metadata")


def _gathered(
    part: dict[str, str] | StorageError, group: dist.ProcessGroup | None
) -> list[dict[str, str]]:
    """Return every worker's part; an error that one of them had is raised on all."""
    parts: list[Any] = [part]
    if dist.is_initialized():
        parts = [None] * dist.get_world_size()
        dist.all_gather_object(parts, part, group)
    for one in parts:
        if isinstance(one, StorageError):
            raise one
    return parts
