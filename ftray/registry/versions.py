"""Immutable versions of adapters: published, found, and fetched."""

import hashlib
import json
import logging
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ftray import storage
from ftray.errors import RegistryError, did_you_mean
from ftray.owner import Owner, this_process
from ftray.records import Record, RecordError, check_name, encode, read_record

logger = logging.getLogger(__name__)

VERSION = r"[1-9]\d{0,8}"
CLAIM = "claim.json"  # stays when its version is deleted, so that no number comes again


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """The base model that an adapter belongs to."""

    name: str
    revision: str | None
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class FoundBy:
    """The search that found an adapter, and which of its trials it is.

    `value` is the best of the metric that the search saw, which is rosier than the number on the
    hold-out: `held_out_loss` among the record's metrics.
    """

    search: str
    trial: str
    place: int  # 1: the best
    trials: int
    values: dict[str, Any]  # dotted run key → what the trial drew
    metric: str
    value: float
    holdout: str  # what it was measured on, in words; "" where on nothing


@dataclass(frozen=True, kw_only=True)
class AdapterRecord(Record):
    """What an adapter is. A draft for `publish` leaves out the fields from `version` on."""

    name: str
    kind: Literal["adapter", "full"]
    base: BaseModel
    method: str
    rank: int | None
    tokenizer_digest: str
    template_digest: str
    metrics: dict[str, float | None] = field(default_factory=dict)
    config: dict[str, Any] | None = None  # the resolved run config; None for an imported adapter
    search: FoundBy | None = None  # None: it was not found by a search
    project: str | None = None  # whose keys may call it; None: everybody's
    model: str | None = None  # what clients call it, as `ft:…`; None: by its name
    checkpoint: int | None = None  # the step that it was saved at on the way; None: the result
    version: int = 0
    files: dict[str, str] = field(default_factory=dict)  # name → sha256
    digest: str = ""
    created: float = 0.0  # unix seconds

    @property
    def ref(self) -> str:
        """The reference of this one version: `name@3`."""
        return f"{self.name}@{self.version}"


def publish(root: str, folder: Path, draft: AdapterRecord) -> AdapterRecord:
    """Publish a folder's files as the adapter's next version and return its record.

    Publishers at the same time get different versions. A publisher that dies leaves a number that
    is never used again, and no version.
    """
    check_adapter_name(draft.name)
    version = _claim_version(root, draft.name)
    record = replace(draft, version=version, created=time.time())
    target = adapter_folder(root, record)
    files = storage.upload(folder, target, last=(storage.RECORD, CLAIM))
    if not files:
        raise RegistryError(f"cannot publish '{draft.name}': {folder} holds no files")
    record = replace(record, files=files, digest=content_digest(files))
    storage.write(storage.join(target, storage.RECORD), encode(record))
    logger.info("published %s (%d files) in %s", record.ref, len(files), target)
    return record


def check_adapter_name(name: str) -> None:
    """Raise RegistryError if an adapter cannot be called so."""
    checked(name, "adapter name")


def adapter_folder(root: str, record: AdapterRecord) -> str:
    """Return the folder of a version."""
    return storage.join(folder_of(root, record.name), str(record.version))


def fetch_adapter(root: str, record: AdapterRecord, cache: Path) -> Path:
    """Return a local folder with a version's files, whose digests are the recorded ones."""
    folder = adapter_folder(root, record)
    local, problems = _verified_copy(folder, record, cache)
    if problems and storage.is_uri(root):
        shutil.rmtree(local)  # perhaps only the cached copy is damaged
        local, problems = _verified_copy(folder, record, cache)
    if problems:
        raise RegistryError(
            "\n  ".join([f"{record.ref} is damaged:", *problems]),
            f"publish it again, then ftray adapters delete {record.ref}",
        )
    return local


def list_adapters(root: str) -> list[AdapterRecord]:
    """Return every version of every adapter, by name and version."""
    found = storage.names(storage.join(root, "adapters"))
    return [record for name in found for record in versions(root, name)]


def versions(root: str, name: str) -> list[AdapterRecord]:
    """Return an adapter's versions, the oldest first; none when there is no such adapter."""
    records = [_recorded(root, name, number) for number in numbers_in(folder_of(root, name))]
    return [record for record in records if record is not None]


def content_digest(files: Mapping[str, str]) -> str:
    """Return one SHA-256 for a set of files: over their names and digests, sorted by name."""
    return hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()


def latest(root: str, name: str) -> AdapterRecord:
    """Return the newest version; raises RegistryError when there is none."""
    for number in reversed(numbers_in(folder_of(root, name))):
        if record := _recorded(root, name, number):
            return record
    known = [other for other in storage.names(storage.join(root, "adapters")) if other != name]
    hint = did_you_mean(name, known, otherwise="ftray adapters list")
    raise RegistryError(f"no adapter '{name}' in {root}", hint)


def numbered(root: str, name: str, number: int) -> AdapterRecord:
    """Return one version; raises RegistryError when there is none."""
    if record := _recorded(root, name, number):
        return record
    newest = latest(root, name)  # says so if there is no such adapter at all
    raise RegistryError(
        f"adapter '{name}' has no version {number}; the latest is {newest.version}",
        f"ftray adapters show {name}",
    )


def checked(name: str, what: str) -> None:
    """Raise RegistryError unless a name may become a part of a path."""
    try:
        check_name(name, what)
    except ValueError as error:
        raise RegistryError(str(error), "ftray adapters list") from None


def folder_of(root: str, name: str) -> str:
    """Return the folder of an adapter; the name has been checked."""
    return storage.join(root, "adapters", name)


def numbers_in(folder: str) -> list[int]:
    """Return the numbers, sorted, that name a folder's children, with `.json` or without."""
    found = [name.removesuffix(".json") for name in storage.names(folder)]
    return sorted(int(name) for name in found if re.fullmatch(VERSION, name))


@dataclass(frozen=True, kw_only=True)
class Claim(Record):
    """Who has taken a version's number, and when; it stays when the version is deleted."""

    owner: Owner
    time: float


def _claim_version(root: str, name: str) -> int:
    claim = encode(Claim(owner=this_process(), time=time.time()))
    version = max(numbers_in(folder_of(root, name)), default=0) + 1
    while not storage.create(storage.join(folder_of(root, name), str(version), CLAIM), claim):
        version += 1
    return version


def _recorded(root: str, name: str, number: int) -> AdapterRecord | None:
    path = storage.join(folder_of(root, name), str(number), storage.RECORD)
    try:
        record = read_record(path, AdapterRecord)
    except RecordError as error:
        logger.warning("left out: %s", error.message)
        return None
    if record is not None and (record.name, record.version) != (name, number):
        logger.warning("left out: %s says that it is %s", path, record.ref)
        return None
    return record


def _verified_copy(folder: str, record: AdapterRecord, cache: Path) -> tuple[Path, list[str]]:
    local = storage.local_copy(folder, cache)
    return local, storage.verify(str(local), record.files)
