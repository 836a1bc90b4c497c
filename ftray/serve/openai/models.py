"""Model ids to immutable versions, over the registry of a storage root.

An id is the base's name, `name` (the latest version), `name@3`, `name@alias`, or
`ft:<base>:<organization>:<name>:<first 8 of the digest>`. An alias may be split between versions.
What the service made is `ft:<base>:<project>:<suffix>:<8 letters of the job>`,
and checkpoints have it with `:ckpt-step-<n>` behind.
"""

import asyncio
import logging
import re
from dataclasses import dataclass
from pathlib import Path

from ftray import registry, storage
from ftray.errors import ModelError, RegistryError, ServeError, StorageError
from ftray.registry import AdapterRecord, Target
from ftray.serve.ends import named_ends
from ftray.serve.openai.fresh import MAX_AGE, Fresh
from ftray.serve.openai.service import ModelCard, Resolved
from ftray.serve.protocol import AdapterSource

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Base:
    """The base model that is served."""

    name: str
    fingerprint: str
    folder: Path
    tokenizer_digest: str
    created: int = 0
    is_nf4: bool = False  # in 4 bits, as QLoRA trains over


@dataclass(frozen=True)
class _Local:
    """A version's files on local disk.

    `ends` is for a version that ships its tokenizer: the end tokens that its generation config
    names, the base's where it ships none.
    """

    folder: Path
    ends: tuple[int, ...] | None


@dataclass(frozen=True)
class _Meaning:
    """What an id means now."""

    targets: tuple[Target, ...]
    records: dict[int, AdapterRecord]  # by version
    shadow: int | None


class RegistryModels:
    """The base, and every adapter of the registry that was made for it."""

    def __init__(self, root: str, base: Base, max_age: float = MAX_AGE) -> None:
        self._root = root
        self._base = base
        self._meanings = Fresh(self._look_up, max_age)
        self._listings = Fresh(self._list, max_age)
        self._locals: dict[str, asyncio.Task[_Local]] = {}

    async def resolve(self, id: str, sticky: str) -> Resolved:
        """Find the version that an id means for this user; its files are on local disk then."""
        if id == self._base.name:
            return self._resolved_base()
        meaning = await self._meanings.get(id)
        version = registry.choose(meaning.targets, f"{id}:{sticky}")
        record = meaning.records[version]
        self._check_served(record)
        local = await self._local(record)
        shadow = f"{record.name}@{meaning.shadow}" if meaning.shadow else None
        own = local.ends is not None
        return Resolved(
            model=record.name,
            version=record.ref,
            record=record,
            source=AdapterSource(record.digest, str(local.folder), record.ref),
            tokenizer=local.folder if own else self._base.folder,
            tokenizer_digest=record.tokenizer_digest if own else self._base.tokenizer_digest,
            ends=local.ends,
            shadow=shadow,
        )

    async def cards(self) -> list[ModelCard]:
        """Return the base, each adapter, and each of its aliases."""
        return await self._listings.get("")

    async def card(self, id: str) -> ModelCard:
        """Return one model, of any form of id."""
        if id == self._base.name:
            return self._base_card()
        meaning = await self._meanings.get(id)
        record = meaning.records[meaning.targets[0].version]
        self._check_served(record)
        return self._card(id, record)

    async def delete(self, id: str) -> None:
        """Delete the one version that an id names."""
        if id == self._base.name:
            raise RegistryError("the base model cannot be deleted")
        meaning = await self._meanings.get(id)
        [record, *_] = meaning.records.values()
        if not (id == record.ref or id.startswith("ft:")):
            raise RegistryError(
                f"'{id}' does not say which version to delete", f"e.g. {record.ref}"
            )
        await asyncio.to_thread(registry.delete, self._root, record.ref)
        self._meanings.forget()
        self._listings.forget()

    def close(self) -> None:
        """Let the threads go."""
        self._meanings.close()
        self._listings.close()

    def _look_up(self, id: str) -> _Meaning:
        if id.startswith("ft:"):
            return self._look_up_tuned(id)
        name, at, which = id.partition("@")
        if not at or which.isdecimal():
            return _only(registry.resolve(self._root, id))
        pointer = registry.pointer(self._root, id)
        versions = {target.version for target in pointer.targets}
        refs = {version: f"{name}@{version}" for version in versions}
        records = {version: registry.resolve(self._root, ref) for version, ref in refs.items()}
        return _Meaning(pointer.targets, records, pointer.shadow)

    def _look_up_tuned(self, id: str) -> _Meaning:
        match = _TUNED.fullmatch(id)
        if match is None:
            raise RegistryError(f"no model '{id}'", "ft:<base>:<organization>:<name>:<digest>")
        name = match["name"] if match["digest"] else f"ft-{match['job']}"
        registry.check_adapter_name(name)
        for record in reversed(registry.versions(self._root, name)):
            if _is_meant(record, match):
                return _only(record)
        raise RegistryError(f"no model '{id}'")

    def _list(self, _: str) -> list[ModelCard]:
        found = registry.list_adapters(self._root)
        latest = {record.name: record for record in found if record.checkpoint is None}
        served = [record for record in latest.values() if self._is_served(record)]
        cards = [self._base_card()]
        for record in served:
            cards.append(self._card(record.model or record.name, record))
            numbers = registry.aliases(self._root, record.name)
            records = {each.version: each for each in registry.versions(self._root, record.name)}
            cards += [
                self._card(f"{record.name}@{alias}", records[number])
                for alias, number in numbers.items()
                if number in records
            ]
        return cards

    def _is_served(self, record: AdapterRecord) -> bool:
        return record.kind == "adapter" and record.base.fingerprint == self._base.fingerprint

    def _check_served(self, record: AdapterRecord) -> None:
        if record.kind != "adapter":
            raise ServeError(f"{record.ref} is a whole model: serve its folder as a base")
        if not self._is_served(record):
            raise ServeError(
                f"{record.ref} was made for {record.base.name}"
                f" ({record.base.fingerprint[:8]}), and this server runs {self._base.name}"
                f" ({self._base.fingerprint[:8]})"
            )

    async def _local(self, record: AdapterRecord) -> "_Local":
        """Return the version's local files; fetched and verified once."""
        key = f"{record.ref} {record.digest}"
        fetch = self._locals.get(key)
        if fetch is None:
            work = asyncio.to_thread(self._fetch, record)
            fetch = self._locals[key] = asyncio.create_task(work)
        try:
            return await asyncio.shield(fetch)  # others wait for it as well
        except (RegistryError, StorageError, ModelError) as error:
            if self._locals.get(key) is fetch:
                del self._locals[key]
            if isinstance(error, StorageError):
                raise
            raise ServeError(error.message, error.hint) from None

    def _fetch(self, record: AdapterRecord) -> "_Local":
        """In a thread."""
        if record.method == "qlora" and not self._base.is_nf4:
            logger.warning(
                "%s was trained over a base in 4 bits and is served over the whole one: its answers"
                " differ a little from its eval; engine.base_precision=nf4 serves it as trained",
                record.ref,
            )
        folder = registry.fetch_adapter(self._root, record, storage.local_cache(self._root))
        if not (folder / "tokenizer_config.json").exists():
            return _Local(folder, None)
        own = named_ends(folder)
        return _Local(folder, (named_ends(self._base.folder) or ()) if own is None else own)

    def _resolved_base(self) -> Resolved:
        base = self._base
        return Resolved(base.name, base.name, None, None, base.folder, base.tokenizer_digest)

    def _base_card(self) -> ModelCard:
        return ModelCard(self._base.name, "base", self._base.created, "ftray")

    def _card(self, id: str, record: AdapterRecord) -> ModelCard:
        return ModelCard(
            id,
            record.name,
            int(record.created),
            record.project or "ftray",
            record.base.name,
            record.ref,
            record.project,
        )


# The 8 characters of a job begin with a letter that no digest in hex has.
_TUNED = re.compile(
    r"(?P<model>ft:[^:]+:[^:]*:(?P<name>[^:]*):(?:(?P<digest>[0-9a-f]{8})|(?P<job>[g-z][a-z0-9]{7})))"
    r"(?::ckpt-step-(?P<step>[1-9]\d{0,11}))?"
)


def _is_meant(record: AdapterRecord, id: re.Match[str]) -> bool:
    if id["digest"]:
        return record.digest.startswith(id["digest"]) and id["step"] is None
    if record.model != id["model"]:
        return False
    if id["step"] is None:
        return record.checkpoint is None
    return record.metrics.get("step") == float(id["step"])


def _only(record: AdapterRecord) -> _Meaning:
    return _Meaning((Target(record.version),), {record.version: record}, None)
