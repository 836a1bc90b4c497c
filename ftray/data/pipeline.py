"""Source files to a published token set: made once, and found again by its digest."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from ftray import storage
from ftray.config.run import DataConfig
from ftray.data.chat import Renderer
from ftray.data.files import (
    RANGE_BYTES,
    Range,
    Scan,
    SourceFile,
    find_sources,
    place,
    plan_ranges,
    scan_sources,
)
from ftray.data.manifest import (
    REPORT,
    Manifest,
    ShardRecord,
    SourceRecord,
    TokenSet,
    find_token_set,
    publish_manifest,
    published_shards,
    token_digest,
)
from ftray.data.renderer import load_renderer
from ftray.data.tasks import make_on_cluster
from ftray.data.tokenization import make_shard
from ftray.errors import DataError

logger = logging.getLogger(__name__)


def make_tokens(
    paths: Sequence[str],
    data: DataConfig,
    model_folder: Path,
    root: str,
    range_bytes: int = RANGE_BYTES,
) -> TokenSet:
    """Return the token set of these files, made on the cluster unless it is published already.

    Needs an initialised Ray. Shards that an interrupted run left are kept. With
    `data.on_bad_row=fail` the first bad row in file order raises DataError.
    """
    sources = find_sources(paths)
    scans = scan_sources(sources, range_bytes)
    renderer = load_renderer(model_folder, data)
    digest = token_digest(sources, scans, renderer.digest, data)
    folder = storage.join(root, "tokens", digest)
    if found := find_token_set(folder):
        logger.info("tokens %s: %d rows, reused", digest[:8], found.rows)
        _tell_bad_rows(found)
        return found
    ranges = plan_ranges(sources, scans)
    shards = published_shards(folder)
    missing = [part for part in ranges if part.number not in shards]
    is_small = sum(part.size for part in missing) <= range_bytes
    make = _make_here if is_small else make_on_cluster
    for record in make(missing, renderer, folder):
        shards[record.number] = record
    in_order = [shards[part.number] for part in ranges]
    files = _records(sources, scans)
    manifest = Manifest(digest, renderer.template_digest, files, in_order)
    _check_has_rows(manifest)
    made = publish_manifest(folder, manifest)
    logger.info("tokens %s: %d rows, %d tokens", digest[:8], made.rows, made.tokens)
    _tell_bad_rows(made)
    return made


def _make_here(parts: Sequence[Range], renderer: Renderer, folder: str) -> Iterator[ShardRecord]:
    """Make what is less than one task's work without one: to start it takes 7 s on 2 cores."""
    for part in parts:
        yield make_shard(part, renderer, folder)


def _records(sources: Sequence[SourceFile], scans: Sequence[Scan]) -> list[SourceRecord]:
    return [
        SourceRecord(Path(source.path).name, source.kind, source.size, scan.sha256)
        for source, scan in zip(sources, scans, strict=True)
    ]


def _tell_bad_rows(made: TokenSet) -> None:
    if made.bad_rows:
        report = storage.join(made.folder, REPORT)
        logger.warning("%d bad rows are left out, see %s", made.bad_rows, report)


def _check_has_rows(manifest: Manifest) -> None:
    if any(shard.rows for shard in manifest.shards):
        return
    names = ", ".join(source.name for source in manifest.sources[:3])
    bad = [shard for shard in manifest.shards if shard.bad_rows]
    if not bad:
        raise DataError(f"{names}: no rows in it")
    line, reason = bad[0].first_bad[0]
    source = manifest.sources[bad[0].source]
    raise DataError(
        f"{names}: every row is bad; {place(source.name, source.kind, line)}: {reason}",
        "set data.on_bad_row=fail to see what to do about it",
    )
