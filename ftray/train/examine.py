"""The data of a run, examined before any of it is trained on."""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Event, Thread

from ftray import cluster, storage
from ftray.config.cluster import ClusterConfig
from ftray.config.data import DataConfig, sources_of
from ftray.config.run import RunConfig
from ftray.connection import connected
from ftray.data.batching.selection import measured_rows, set_aside
from ftray.data.reading.files import RANGE_BYTES
from ftray.data.report.page import page
from ftray.data.report.quality import BadRow, BadRows, Quality, RowSet, measure
from ftray.data.report.verdict import Verdict, judge
from ftray.data.sources import check_sources
from ftray.data.tokens.cache import ShardCache
from ftray.data.tokens.manifest import REPORT, find_manifest, find_token_set
from ftray.data.tokens.pipeline import Job, make_all, plan_tokens
from ftray.data.tokens.rows import Rows
from ftray.model.folder import fetch

logger = logging.getLogger(__name__)

PAGE = "report.html"


@dataclass(frozen=True)
class Examined:
    """What was found, what it comes to, and where the page about it is."""

    name: str
    quality: Quality
    verdict: Verdict
    page: str


def examine(
    config: RunConfig, *, on: ClusterConfig | None = None, html: str | None = None
) -> Examined:
    """Make a run's tokens, measure them, and write the page: to `html`, else beside the tokens.

    Bad rows stop nothing here: all are counted. Ray is started only for data of some size.
    """
    data = config.data
    root = storage.storage_root(config.storage)
    train, evals = _jobs(config, root)
    with _cluster_for([job for job in (train, evals) if job], on, root):
        for job in (train, evals):
            if job is not None:
                with _progress_told(job):
                    make_all(job)
    cache = ShardCache(storage.local_cache(root) / "tokens", int(data.cache_gb * 1e9))
    rows = _rows(train, cache)
    kept, aside = _split(rows, data)
    measured = measure(
        kept,
        aside if evals is None else _rows(evals, cache),
        data,
        config.train,
        train.recipe.renderer.decode,
    )
    verdict = judge(measured, data)
    path = html or storage.join(train.folder, PAGE)
    storage.write(path, page(config.name, measured, verdict).encode("utf-8", "replace"))
    return Examined(config.name, measured, verdict, path)


def _jobs(config: RunConfig, root: str) -> tuple[Job, Job | None]:
    lenient = config.data.model_copy(update={"on_bad_row": "drop"})
    named = [sources_of(config.data.train), sources_of(config.data.eval)]
    for sources in named:
        check_sources(sources, lenient)  # before a model is fetched
    folder = fetch(config.model, root)
    trust = config.model.trust_remote_code
    jobs = [
        plan_tokens(sources, lenient, folder, root, trust_remote_code=trust)
        for sources in named
        if sources
    ]
    return jobs[0], jobs[1] if len(jobs) > 1 else None


@contextmanager
def _cluster_for(jobs: Sequence[Job], on: ClusterConfig | None, root: str) -> Iterator[None]:
    """Connect to a cluster if something is left to make that is too much for this process."""
    missing = [job for job in jobs if find_token_set(job.folder) is None]
    if all(sum(part.size for part in job.ranges) <= RANGE_BYTES for job in missing):
        yield
        return
    with connected(on):
        cluster.check_storage(root)
        yield


@contextmanager
def _progress_told(job: Job) -> Iterator[None]:
    """Say every few seconds how many of the ranges are begun or done."""
    done = Event()

    def tell() -> None:
        while not done.wait(_SECONDS):
            names = [name for name in storage.names(job.folder) if name.endswith(".json")]
            seen = {name.split("-")[1].split(".")[0] for name in names if name.startswith("shard-")}
            logger.info("tokens: %d of %d ranges", len(seen), len(job.ranges))

    thread = Thread(target=tell, name="progress of tokens", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


_SECONDS = 10.0


def _rows(job: Job, cache: ShardCache) -> RowSet:
    rows = Rows(job.folder, cache)
    return RowSet(rows.columns, rows, job.plan.sources, _bad_rows(job))


def _bad_rows(job: Job) -> BadRows:
    """Gather what the shards' records and the report say of rows that were left out."""
    manifest = find_manifest(job.folder)
    by_source, reasons = [0] * len(job.plan.sources), Counter[str]()
    for shard in manifest.shards if manifest else ():
        by_source[shard.source] += shard.bad_rows
        reasons.update(shard.reasons)
    report = json.loads(storage.read(storage.join(job.folder, REPORT)))
    first = [BadRow(row["place"], row["reason"], row["hint"]) for row in report["first"]]
    return BadRows(by_source, dict(reasons.most_common()), first)


def _split(given: RowSet, data: DataConfig) -> tuple[RowSet, RowSet | None]:
    """Set aside what `data.eval_fraction` makes eval rows; bad rows count as training rows."""
    trained = replace(given, columns=given.columns.at(~set_aside(given.columns, data)))
    if data.eval_fraction is None:
        return trained, None
    none = BadRows([0] * len(given.sources))
    evals = given.columns.at(measured_rows(given.columns, data))
    return trained, replace(given, columns=evals, bad=none)
