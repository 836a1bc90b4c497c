"""Records of token shards and of a whole token set, as JSON in its folder.

A shard exists when its record does, a set when its manifest does: both are written last.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ftray import storage
from ftray.config.run import DataConfig
from ftray.data.files import Kind, Scan, SourceFile, place

DATA_VERSION = 1  # raised when the same rows would become other tokens or another file
SCHEMA = 1
REPORT = "report.json"
REASONS = 100  # how many bad rows a report names


@dataclass(frozen=True)
class ShardRecord:
    """One shard: what is in it, what was left out (the first lines with reasons), its digest."""

    number: int
    source: int
    rows: int
    tokens: int
    label_tokens: int
    bad_rows: int
    reasons: dict[str, int]
    first_bad: list[tuple[int, str]]
    bytes: int
    sha256: str
    schema: int = SCHEMA


@dataclass(frozen=True)
class SourceRecord:
    """A source file by its content; the name is for messages."""

    name: str
    kind: Kind
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A whole token set."""

    digest: str
    template_digest: str
    sources: list[SourceRecord]
    shards: list[ShardRecord]
    schema: int = SCHEMA


@dataclass(frozen=True)
class TokenSet:
    """A published token set and its counts; `folder` is a path or a URI."""

    folder: str
    digest: str
    rows: int
    tokens: int
    label_tokens: int
    bad_rows: int


def token_digest(
    sources: Sequence[SourceFile], scans: Sequence[Scan], rendering: str, data: DataConfig
) -> str:
    """Digest all that decides what the tokens are; `rendering` is the renderer's own digest.

    Names and folders of the files are not in it, nor is what batches are made by: length, packing
    and seed.
    """
    parts = [
        DATA_VERSION,
        rendering,
        data.format,
        sorted(data.columns.items()),
        data.on_bad_row,
        [
            [source.kind, source.size, scan.sha256, scan.starts]
            for source, scan in zip(sources, scans, strict=True)
        ],
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def shard_name(number: int) -> str:
    """Return a shard's file name."""
    return f"shard-{number:06d}.arrow"


def publish_shard(folder: str, data: bytes, record: ShardRecord) -> None:
    """Put a shard and then its record; who comes second with the same shard changes nothing."""
    storage.create(storage.join(folder, shard_name(record.number)), data)
    storage.create(storage.join(folder, _record_name(record.number)), _to_json(asdict(record)))


def published_shards(folder: str) -> dict[int, ShardRecord]:
    """Return the records of the shards that exist, by number."""
    names = [name for name in storage.names(folder) if name.startswith("shard-")]
    paths = [storage.join(folder, name) for name in names if name.endswith(".json")]
    records = [ShardRecord(**json.loads(storage.read(path))) for path in paths]
    return {record.number: record for record in records}


def publish_manifest(folder: str, manifest: Manifest) -> TokenSet:
    """Complete a token set: report, then manifest."""
    storage.write(storage.join(folder, REPORT), _to_json(_report(manifest)))
    storage.create(storage.join(folder, _MANIFEST), _to_json(asdict(_without_lines(manifest))))
    return _token_set(folder, manifest)


def find_token_set(folder: str) -> TokenSet | None:
    """Return the complete token set in a folder, None where there is none yet."""
    if not storage.exists(storage.join(folder, _MANIFEST)):
        return None
    return _token_set(folder, read_manifest(folder))


def read_manifest(folder: str) -> Manifest:
    """Read the manifest of a complete token set."""
    tree = json.loads(storage.read(storage.join(folder, _MANIFEST)))
    sources = [SourceRecord(**source) for source in tree.pop("sources")]
    shards = [ShardRecord(**shard) for shard in tree.pop("shards")]
    return Manifest(**tree, sources=sources, shards=shards)


_MANIFEST = "manifest.json"


def _record_name(number: int) -> str:
    return f"shard-{number:06d}.json"


def _to_json(tree: dict[str, Any]) -> bytes:
    return json.dumps(tree, indent=1).encode()


def _without_lines(manifest: Manifest) -> Manifest:
    return replace(manifest, shards=[replace(shard, first_bad=[]) for shard in manifest.shards])


def _report(manifest: Manifest) -> dict[str, Any]:
    """Count what was left out, by kind of reason; name the first lines of the whole set."""
    reasons: Counter[str] = Counter()
    first: list[str] = []
    for shard in manifest.shards:
        reasons.update(shard.reasons)
        source = manifest.sources[shard.source]
        for line, reason in shard.first_bad[: REASONS - len(first)]:
            first.append(f"{place(source.name, source.kind, line)}: {reason}")
    return {
        "schema": SCHEMA,
        "rows": sum(shard.rows for shard in manifest.shards),
        "bad_rows": sum(shard.bad_rows for shard in manifest.shards),
        "reasons": dict(reasons.most_common()),
        "first": first,
    }


def _token_set(folder: str, manifest: Manifest) -> TokenSet:
    shards = manifest.shards
    return TokenSet(
        folder,
        manifest.digest,
        rows=sum(shard.rows for shard in shards),
        tokens=sum(shard.tokens for shard in shards),
        label_tokens=sum(shard.label_tokens for shard in shards),
        bad_rows=sum(shard.bad_rows for shard in shards),
    )
