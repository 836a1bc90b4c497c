"""Source files to published token shards, by Ray Data tasks on the cluster's CPUs.

A task publishes its shard itself and hands back a small record, so tokens never pass through the
object store or the driver. Tasks, not actors: an actor pool holds its CPUs, and on a small cluster
starves whatever else the plan needs.
"""

import logging
import pickle
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path

import pyarrow as pa
import ray
import ray.data
from ray import ObjectRef
from ray.data.exceptions import ExecutionTimeoutError

from ftray import storage
from ftray.config.run import DataConfig
from ftray.data.chat import Renderer, load_renderer
from ftray.data.files import RANGE_BYTES, Range, find_sources, plan_ranges, scan_sources
from ftray.data.manifest import (
    Manifest,
    ShardRecord,
    SourceRecord,
    TokenSet,
    find_token_set,
    publish_manifest,
    published_shards,
    token_digest,
)
from ftray.data.tokenization import make_shard
from ftray.errors import ClusterError, DataError, FtrayError

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
        return found
    ranges = plan_ranges(sources, scans)
    shards = published_shards(folder)
    missing = [part for part in ranges if part.number not in shards]
    is_small = sum(part.size for part in missing) <= range_bytes
    make = _make_here if is_small else _make_on_cluster
    for record in make(missing, renderer, folder):
        shards[record.number] = record
    files = [
        SourceRecord(Path(source.path).name, source.kind, source.size, scan.sha256)
        for source, scan in zip(sources, scans, strict=True)
    ]
    in_order = [shards[part.number] for part in ranges]
    manifest = Manifest(digest, renderer.template_digest, files, in_order)
    _check_has_rows(manifest)
    made = publish_manifest(folder, manifest)
    logger.info(
        "tokens %s: %d rows, %d tokens, %d bad rows left out",
        *(digest[:8], made.rows, made.tokens, made.bad_rows),
    )
    return made


def _make_here(parts: Sequence[Range], renderer: Renderer, folder: str) -> Iterator[ShardRecord]:
    """Make what is less than one task's work without one: to start it takes 7 s on 2 cores."""
    for part in parts:
        yield make_shard(part, renderer, folder)


def _make_on_cluster(
    parts: Sequence[Range], renderer: Renderer, folder: str
) -> Iterator[ShardRecord]:
    """Yield the records in the order of the ranges, so that the first error is always the same."""
    work = [{"part": pickle.dumps(part)} for part in parts]
    run_tasks = partial(_run_tasks, renderer=ray.put(renderer), folder=folder)
    made = ray.data.from_items(work, override_num_blocks=len(work)).map_batches(
        run_tasks, batch_format="pyarrow", num_cpus=1
    )
    made.context.execution_options.preserve_order = True
    made.context.enable_progress_bars = False
    made.context.print_on_execution_start = False
    made.context.execution_no_progress_timeout_s = timeout = _timeout(parts)
    try:
        for row in made.iter_rows():
            outcome: ShardRecord | FtrayError = pickle.loads(row["outcome"])
            if isinstance(outcome, FtrayError):
                raise outcome
            yield outcome
    except ExecutionTimeoutError:
        raise ClusterError(
            f"no token shard was finished in {timeout} s",
            f"a task needs 1 CPU; the cluster has {ray.available_resources().get('CPU', 0):g} free",
        ) from None


def _run_tasks(batch: pa.Table, renderer: ObjectRef[Renderer], folder: str) -> pa.Table:
    """Make the shards of a block; errors for the user travel as data, whole and in order."""
    outcomes = []
    for part in batch["part"].to_pylist():
        try:
            outcome: ShardRecord | FtrayError = make_shard(
                pickle.loads(part), _fetched(renderer), folder
            )
        except FtrayError as error:
            outcome = error
        outcomes.append(pickle.dumps(outcome))
    return pa.table({"outcome": outcomes})


@lru_cache(maxsize=1)
def _fetched(renderer: ObjectRef[Renderer]) -> Renderer:
    """Build the renderer once per process, not per task: a large vocabulary takes a second."""
    return ray.get(renderer)


def _timeout(parts: Sequence[Range]) -> int:
    """Seconds after which a shard counts as stuck: 5 minutes, and 100 kB/s for the largest."""
    return 300 + max(part.size for part in parts) // 100_000


def _check_has_rows(manifest: Manifest) -> None:
    if any(shard.rows for shard in manifest.shards):
        return
    names = ", ".join(source.name for source in manifest.sources[:3])
    if not any(shard.bad_rows for shard in manifest.shards):
        raise DataError(f"{names}: no rows in it")
    bad = next(shard for shard in manifest.shards if shard.bad_rows)
    line, reason = bad.first_bad[0]
    raise DataError(
        f"{names}: every row is bad; the first is line {line}: {reason}",
        "set data.on_bad_row=fail to see what to do about it",
    )
