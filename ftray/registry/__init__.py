"""The registry: immutable versions of adapters, and aliases that point at them."""

import re

from ftray import storage
from ftray.errors import RegistryError, did_you_mean
from ftray.registry.aliases import Pointer, Target, aliases, choose, pointer_of
from ftray.registry.aliases import move as _move
from ftray.registry.aliases import roll_back as _roll_back
from ftray.registry.versions import (
    CLAIM,
    VERSION,
    AdapterRecord,
    BaseModel,
    FoundBy,
    adapter_folder,
    check_adapter_name,
    checked,
    content_digest,
    fetch_adapter,
    latest,
    list_adapters,
    numbered,
    publish,
    versions,
)

__all__ = [
    "CLAIM",
    "AdapterRecord",
    "BaseModel",
    "FoundBy",
    "Pointer",
    "Target",
    "adapter_folder",
    "aliases",
    "check_adapter_name",
    "choose",
    "content_digest",
    "delete",
    "fetch_adapter",
    "list_adapters",
    "pointer",
    "promote",
    "publish",
    "resolve",
    "rollback",
    "split",
    "versions",
]


def resolve(root: str, ref: str) -> AdapterRecord:
    """Find the version that `name` (the latest), `name@3` or `name@alias` means.

    An alias that is split between versions means the first of them here.
    """
    name, at, which = ref.partition("@")
    check_adapter_name(name)
    if not at:
        return latest(root, name)
    if re.fullmatch(VERSION, which):
        return numbered(root, name, int(which))
    return numbered(root, name, pointer(root, ref).version)


def pointer(root: str, ref: str) -> Pointer:
    """Return where an alias, given as `name@alias`, points."""
    name, _, alias = ref.partition("@")
    check_adapter_name(name)
    checked(alias, "alias")
    found = pointer_of(root, name, alias)
    if found is None:
        latest(root, name)  # says so if there is no such adapter at all
        known = aliases(root, name)
        listed = f"its aliases: {', '.join(known)}" if known else "it has no aliases"
        raise RegistryError(
            f"adapter '{name}' has no alias '{alias}'; {listed}",
            did_you_mean(alias, known, otherwise=f"ftray adapters show {name}"),
        )
    return found


def promote(root: str, ref: str, alias: str, expect: int | None = None) -> AdapterRecord:
    """Let an alias point at a version, and at that alone.

    `expect` is the version that the caller believes the alias to point at (0: there is no such
    alias yet); if it is another one by now, nothing changes and RegistryError is raised.
    """
    _check_alias(alias)
    record = resolve(root, ref)
    _move(root, record.name, alias, (Target(record.version),), expect=expect)
    return record


def split(
    root: str,
    ref: str,
    targets: tuple[Target, ...],
    shadow: int | None = None,
    expect: int | None = None,
) -> Pointer:
    """Let an alias, given as `name@alias`, point at several versions by weight.

    Put the new version last: while its weight grows, who has got it once keeps it. `shadow` is a
    version that gets a copy of each request, whose answers nobody sees. `expect` is as for
    `promote`, of the first version.
    """
    name, _, alias = ref.partition("@")
    check_adapter_name(name)
    _check_alias(alias)
    numbers = [target.version for target in targets]
    if not numbers or len(set(numbers)) != len(numbers):
        raise RegistryError(f"'{ref}' needs one weight for each of its versions")
    if any(target.weight < 0 for target in targets) or not any(t.weight for t in targets):
        raise RegistryError(f"the weights of '{ref}' must not be negative, nor all 0")
    for number in [*numbers, *([shadow] if shadow is not None else [])]:
        numbered(root, name, number)
    return _move(root, name, alias, targets, shadow=shadow, expect=expect)


def rollback(root: str, ref: str) -> Pointer:
    """Let an alias, given as `name@alias`, point where it did before; again, and it goes further.

    Raises RegistryError where there is nothing before, or its version has been deleted.
    """
    name, _, alias = ref.partition("@")
    pointer(root, ref)  # says so if there is none
    return _roll_back(root, name, alias)


def delete(root: str, ref: str, *, force: bool = False) -> AdapterRecord:
    """Delete one version, given as `name@3`; its number is never used again.

    A version that an alias points at is deleted by force only: the alias then leads nowhere.
    """
    record = resolve(root, ref)
    if ref != record.ref:
        raise RegistryError(f"'{ref}' does not say which version to delete", f"e.g. {record.ref}")
    pointers = {alias: pointer_of(root, record.name, alias) for alias in aliases(root, record.name)}
    holders = [alias for alias, to in pointers.items() if to and record.version in to.versions]
    if holders and not force:
        raise RegistryError(
            f"{record.ref} is in use as {', '.join(holders)}",
            "promote another version to it first, or delete with --force",
        )
    storage.delete(adapter_folder(root, record), keep=CLAIM)
    return record


def _check_alias(alias: str) -> None:
    checked(alias, "alias")
    if alias.isdecimal():
        raise RegistryError(f"alias '{alias}' would look like a version", "choose a word")
