"""Records of token shards and of a whole token set, as JSON in its folder.

A plan is written before the first shard, a shard exists when its record does, and a set is complete
when its manifest is there: each is written last.
"""

import json
import re
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

from ftray import storage
from ftray.config.data import SourceConfig
from ftray.data.reading.files import Range, place
from ftray.data.reading.kinds import Kind

SCHEMA = 2
MANIFEST = "manifest.json"
REPORT = "report.json"
REASONS = 100  # how many bad rows a report names


@dataclass(frozen=True)
class BadLine:
    """A row that was left out: its line, counted within its range, and why."""

    line: int
    reason: str
    hint: str


@dataclass(frozen=True)
class ShardRecord:
    """One shard: which rows it holds, what was left out, its sizes in bytes, and the digest of
    its tokens' file.

    `lines` counts the lines that were read for it, bad and blank ones too; `source_rows` the rows
    among them that were fit, of which a template may make several each.
    """

    range: int
    part: int
    is_last: bool
    source: int
    lines: int
    source_rows: int
    rows: int
    tokens: int
    label_tokens: int
    bad_rows: int
    reasons: dict[str, int]
    first_bad: list[BadLine]
    bytes: int
    columns_bytes: int
    sha256: str
    schema: int = SCHEMA


@dataclass(frozen=True)
class FileRecord:
    """A source file: which source it belongs to, and how many ranges it has."""

    source: int
    name: str
    kind: Kind
    ranges: int
    bytes: int


@dataclass(frozen=True)
class TokenPlan:
    """What a token set will be: its files in order, cut into ranges that are numbered through."""

    digest: str
    template_digest: str
    sources: list[str]
    files: list[FileRecord]
    schema: int = SCHEMA

    def ranges_of(self, source: int) -> list[int]:
        """Return the numbers of a source's ranges in order."""
        numbers: list[int] = []
        first = 0
        for file in self.files:
            if file.source == source:
                numbers += range(first, first + file.ranges)
            first += file.ranges
        return numbers

    def shares(self, sources: Sequence[SourceConfig]) -> list[float]:
        """Return each source's share of a streamed run: its weight's, else that of its bytes."""
        sizes = [source.weight or 0.0 for source in sources]
        if not any(sizes):
            for file in self.files:
                sizes[file.source] += file.bytes
        if not all(sizes):  # of a stream nobody knows the size
            sizes = [1.0] * len(sources)
        return [size / sum(sizes) for size in sizes]

    def file_of(self, range_number: int) -> tuple[FileRecord, int]:
        """Return the file that a range is in, and the number of the file's first range."""
        first = 0
        for file in self.files:
            if range_number < first + file.ranges:
                return file, first
            first += file.ranges
        raise IndexError(range_number)


@dataclass(frozen=True)
class Manifest:
    """A whole token set."""

    plan: TokenPlan
    shards: list[ShardRecord]


@dataclass(frozen=True)
class TokenSet:
    """A complete token set and its counts; `folder` is a path or a URI."""

    folder: str
    digest: str
    rows: int
    tokens: int
    label_tokens: int
    bad_rows: int


def shard_name(range_number: int, part: int) -> str:
    """Return the name of the file with a shard's tokens."""
    return f"{_stem(range_number, part)}.arrow"


def columns_name(range_number: int, part: int) -> str:
    """Return the name of the file with the columns of a shard's rows."""
    return f"{_stem(range_number, part)}.rows.arrow"


def publish_shard(folder: str, tokens: bytes, columns: bytes, record: ShardRecord) -> None:
    """Put a shard and then its record; who comes second with the same shard changes nothing."""
    number, part = record.range, record.part
    storage.create(storage.join(folder, shard_name(number, part)), tokens)
    storage.create(storage.join(folder, columns_name(number, part)), columns)
    storage.create(storage.join(folder, _record_name(number, part)), _to_json(asdict(record)))


def withdraw_shard(folder: str, range_number: int, part: int) -> None:
    """Take a shard back, its record first."""
    files = (_record_name, shard_name, columns_name)
    for name in files:
        storage.delete(storage.join(folder, name(range_number, part)))


def find_shard(folder: str, range_number: int, part: int) -> ShardRecord | None:
    """Return the record of a shard, None where it is not made yet."""
    data = storage.read_if_exists(storage.join(folder, _record_name(range_number, part)))
    return None if data is None else _shard_record(json.loads(data))


def published_ranges(
    folder: str, chosen: Container[int] | None = None
) -> dict[int, list[ShardRecord]]:
    """Return the shards of each range that is complete, by its number: of all, or chosen ones."""
    found: dict[int, list[ShardRecord]] = {}
    matches = [match for name in storage.names(folder) if (match := _RECORD_NAME.fullmatch(name))]
    names = [match[0] for match in matches if chosen is None or int(match[1]) in chosen]
    paths = [storage.join(folder, name) for name in names]
    with ThreadPoolExecutor(_THREADS) as pool:
        for data in pool.map(storage.read, paths):
            record = _shard_record(json.loads(data))
            found.setdefault(record.range, []).append(record)
    for shards in found.values():
        shards.sort(key=lambda shard: shard.part)
    return {number: shards for number, shards in found.items() if shards[-1].is_last}


def shards_with_tokens(folder: str) -> set[tuple[int, int]]:
    """Return the range and part of each shard whose tokens are there."""
    found = (_TOKENS_NAME.fullmatch(name) for name in storage.names(folder))
    return {(int(match[1]), int(match[2] or 0)) for match in found if match}


def publish_plan(folder: str, plan: TokenPlan) -> None:
    """Say what a token set will be, before its first shard."""
    storage.create(storage.join(folder, _PLAN), _to_json(asdict(plan)))


def read_plan(folder: str) -> TokenPlan:
    """Read the plan of a token set, complete or not."""
    return _plan(json.loads(storage.read(storage.join(folder, _PLAN))))


def publish_manifest(folder: str, manifest: Manifest) -> TokenSet:
    """Complete a token set: report, then manifest."""
    storage.write(storage.join(folder, REPORT), _to_json(_report(manifest)))
    storage.create(storage.join(folder, MANIFEST), _to_json(asdict(_without_lines(manifest))))
    return _token_set(folder, manifest)


def find_manifest(folder: str) -> Manifest | None:
    """Return the manifest of a complete token set, None where there is none yet."""
    data = storage.read_if_exists(storage.join(folder, MANIFEST))
    if data is None:
        return None
    tree = json.loads(data)
    return Manifest(_plan(tree["plan"]), [_shard_record(shard) for shard in tree["shards"]])


def find_token_set(folder: str) -> TokenSet | None:
    """Return the complete token set in a folder, None where there is none yet."""
    manifest = find_manifest(folder)
    return None if manifest is None else _token_set(folder, manifest)


def where(plan: TokenPlan, lines_before: int, range_number: int, line: int) -> str:
    """Name a line for a message; `lines_before` are in the file's earlier ranges."""
    file, _ = plan.file_of(range_number)
    return place(file.name, file.kind, lines_before + line)


def lines_before(plan: TokenPlan, shards: Iterable[ShardRecord], range_number: int) -> int:
    """Count the lines of the ranges that come before one in its file."""
    _, first = plan.file_of(range_number)
    return sum(shard.lines for shard in shards if first <= shard.range < range_number)


def file_records(
    names: Sequence[tuple[int, str, Kind]], ranges: Sequence[Range]
) -> list[FileRecord]:
    """Return the records of files, given by source, name and kind, that are cut into ranges."""
    counts = Counter(part.file for part in ranges)
    sizes: Counter[int] = Counter()
    for part in ranges:
        sizes[part.file] += part.size
    return [
        FileRecord(source, name, kind, counts[number], sizes[number])
        for number, (source, name, kind) in enumerate(names)
    ]


_PLAN = "plan.json"
_RECORD_NAME = re.compile(r"shard-(\d+)(?:-\d+)?\.json")
_THREADS = 16  # each waits for an object store, mostly
_TOKENS_NAME = re.compile(r"shard-(\d+)(?:-(\d+))?\.arrow")


def _stem(range_number: int, part: int) -> str:
    return f"shard-{range_number:06d}" + (f"-{part:03d}" if part else "")


def _record_name(range_number: int, part: int) -> str:
    return f"{_stem(range_number, part)}.json"


def _to_json(tree: dict[str, Any]) -> bytes:
    return json.dumps(tree, indent=1).encode()


def _shard_record(tree: dict[str, Any]) -> ShardRecord:
    bad = [BadLine(**line) for line in tree.pop("first_bad")]
    return ShardRecord(**tree, first_bad=bad)


def _plan(tree: dict[str, Any]) -> TokenPlan:
    files = [FileRecord(**file) for file in tree.pop("files")]
    return TokenPlan(**tree, files=files)


def _without_lines(manifest: Manifest) -> Manifest:
    """The manifest is read by each worker: what was left out stands in the report."""
    return replace(manifest, shards=[replace(shard, first_bad=[]) for shard in manifest.shards])


def _report(manifest: Manifest) -> dict[str, Any]:
    """Count what was left out, by kind of reason; name the first lines of the whole set."""
    reasons: Counter[str] = Counter()
    first: list[dict[str, str]] = []
    for shard in manifest.shards:
        reasons.update(shard.reasons)
        bad = shard.first_bad[: REASONS - len(first)]
        before = lines_before(manifest.plan, manifest.shards, shard.range) if bad else 0
        for line in bad:
            at = where(manifest.plan, before, shard.range, line.line)
            first.append({"place": at, "reason": line.reason, "hint": line.hint})
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
        manifest.plan.digest,
        rows=sum(shard.rows for shard in shards),
        tokens=sum(shard.tokens for shard in shards),
        label_tokens=sum(shard.label_tokens for shard in shards),
        bad_rows=sum(shard.bad_rows for shard in shards),
    )
