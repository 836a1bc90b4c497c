"""A trial's saved state: adapter and moments in PEFT's names, published record last.

Files are named by their step and the record is replaced whole, so a folder that is saved into again
holds the old state until it holds the new one.
"""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ftray import storage
from ftray.config.base import validated
from ftray.config.run import RunConfig
from ftray.errors import ModelError, StorageError
from ftray.records import Record, encode, read_record

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class StateRecord(Record):
    """What a saved state is, and the digests that its files must have.

    `updates` counts the optimizer's updates: less than `step` where steps were skipped.
    """

    trial: str
    step: int
    updates: int
    config: dict[str, Any]
    files: dict[str, str]
    time: float = field(default_factory=time.time)


@dataclass(frozen=True)
class State:
    """A trial as it stands between two steps."""

    trial: str
    config: RunConfig
    step: int
    updates: int
    adapter: dict[str, Tensor]
    moments: dict[str, dict[str, Tensor]]  # by moment, then as the adapter


def write_state(folder: str, state: State) -> None:
    """Publish a state in a folder, in place of the one that may be there."""
    moments = {
        f"{kind}.{name}": tensor
        for kind, tensors in state.moments.items()
        for name, tensor in tensors.items()
    }
    digests = {}
    for name, tensors in ((_adapter(state.step), state.adapter), (_moments(state.step), moments)):
        data = save(tensors, metadata={"format": "pt"})
        storage.write(storage.join(folder, name), data)
        digests[name] = hashlib.sha256(data).hexdigest()
    record = StateRecord(
        trial=state.trial,
        step=state.step,
        updates=state.updates,
        config=state.config.model_dump(mode="json"),
        files=digests,
    )
    storage.write(storage.join(folder, storage.RECORD), encode(record))
    for name in storage.names(folder):
        if name not in digests and name.endswith(_SUFFIX):
            storage.delete(storage.join(folder, name))


def read_state(folder: str) -> State:
    """Read a published state; StorageError where there is none, or a damaged one."""
    path = storage.join(folder, storage.RECORD)
    record = read_record(path, StateRecord)
    if record is None:
        raise StorageError(f"{folder}: no saved trial is there")
    moments: dict[str, dict[str, Tensor]] = {}
    for name, tensor in _tensors(folder, _moments(record.step), record).items():
        kind, _, rest = name.partition(".")
        moments.setdefault(kind, {})[rest] = tensor
    return State(
        trial=record.trial,
        config=validated(RunConfig, record.config, source=path),
        step=record.step,
        updates=record.updates,
        adapter=_tensors(folder, _adapter(record.step), record),
        moments=moments,
    )


def check_fits(expected: Mapping[str, Tensor], state: State, folder: str) -> None:
    """Raise ModelError where a state is of another rank, or of other layers."""
    ours = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in state.adapter.items()}
    if ours != theirs:
        raise ModelError(
            f"{folder}: the saved trial {state.trial} has another adapter.rank or adapter.target"
            " than the trial that is to go on from it",
            "a trial keeps its rank and its target layers",
        )


_SUFFIX = ".safetensors"


def _adapter(step: int) -> str:
    return f"adapter-{step:06d}{_SUFFIX}"


def _moments(step: int) -> str:
    return f"moments-{step:06d}{_SUFFIX}"


def _tensors(folder: str, name: str, record: StateRecord) -> dict[str, Tensor]:
    path = storage.join(folder, name)
    data = storage.read(path)
    if hashlib.sha256(data).hexdigest() != record.files.get(name):
        raise StorageError(f"{path}: damaged: its SHA-256 is not the recorded one")
    try:
        return load(data)
    except SafetensorError as error:
        raise StorageError(f"{path}: cannot be read: {error}") from None
