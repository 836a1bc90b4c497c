"""Sources to a published token set: made once, and found again by its digest."""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event

from ftray import storage
from ftray.config.data import DataConfig, SourceConfig
from ftray.data.reading.files import (
    RANGE_BYTES,
    Range,
    SourceFile,
    bad_row_error,
    content_ids,
    find_files,
    plan_ranges,
)
from ftray.data.rendering.examples import Form
from ftray.data.rendering.renderer import load_renderer
from ftray.data.sources import forms_of
from ftray.data.tokens.manifest import (
    REPORT,
    Manifest,
    ShardRecord,
    TokenPlan,
    TokenSet,
    file_records,
    find_token_set,
    lines_before,
    publish_manifest,
    publish_plan,
    published_ranges,
    where,
)
from ftray.data.tokens.tasks import Made, Recipe, make_here, make_on_cluster
from ftray.data.tokens.tokenization import BadRowError
from ftray.errors import DataError, FtrayError

logger = logging.getLogger(__name__)

DATA_VERSION = 3  # raised when the same rows would become other tokens or another file


@dataclass(frozen=True)
class Job:
    """A token set that is to be made: what it will be, its ranges, and how they are made."""

    plan: TokenPlan
    ranges: list[Range]
    recipe: Recipe
    fails_on_bad_rows: bool

    @property
    def folder(self) -> str:
        """The token set's folder."""
        return self.recipe.folder


def plan_tokens(
    sources: Sequence[SourceConfig],
    data: DataConfig,
    model_folder: Path,
    root: str,
    *,
    trust_remote_code: bool = False,
    range_bytes: int = RANGE_BYTES,
) -> Job:
    """Find out what a token set will be, from listings and first rows, without reading it all."""
    files = find_files(sources)
    forms = forms_of(sources, files, data)
    ranges = plan_ranges(files, range_bytes)
    renderer = load_renderer(model_folder, data, trust_remote_code=trust_remote_code)
    digest = token_digest(files, ranges, forms, renderer.digest, data)
    records = file_records([(file.source, file.name, file.kind) for file in files], ranges)
    names = [source.name for source in sources]
    plan = TokenPlan(digest, renderer.template_digest, names, records)
    recipe = Recipe(renderer, tuple(forms), storage.join(root, "tokens", digest))
    return Job(plan, ranges, recipe, data.on_bad_row == "fail")


def make_all(job: Job, range_bytes: int = RANGE_BYTES) -> TokenSet:
    """Return a job's token set, made on the cluster unless it is published already.

    Needs an initialised Ray, unless at most `range_bytes` are missing. Shards that an interrupted
    run left are kept. With `data.on_bad_row=fail` the first bad row in file order raises DataError.
    """
    digest = job.plan.digest
    if found := find_token_set(job.folder):
        logger.info("tokens %s: %d rows, reused", digest[:8], found.rows)
        _check_bad_rows(found, fails=job.fails_on_bad_rows)
        return found
    publish_plan(job.folder, job.plan)
    shards = published_ranges(job.folder)
    missing = [part for part in job.ranges if part.number not in shards]
    is_small = sum(part.size for part in missing) <= range_bytes
    with closing((make_here if is_small else make_on_cluster)(missing, job.recipe)) as outcomes:
        for part, made in zip(missing, checked(job, missing, outcomes, shards), strict=True):
            shards[part.number] = made
    made_set = complete(job, shards)
    logger.info("tokens %s: %d rows, %d tokens", digest[:8], made_set.rows, made_set.tokens)
    return made_set


def complete(job: Job, shards: dict[int, list[ShardRecord]]) -> TokenSet:
    """Publish the manifest of a token set whose ranges are all made."""
    in_order = [shard for part in job.ranges for shard in shards[part.number]]
    manifest = Manifest(job.plan, in_order)
    _check_has_rows(manifest)
    made = publish_manifest(job.folder, manifest)
    _check_bad_rows(made, fails=job.fails_on_bad_rows)
    return made


def checked(
    job: Job,
    parts: Sequence[Range],
    outcomes: Iterable[Made],
    known: dict[int, list[ShardRecord]],
) -> Iterator[list[ShardRecord]]:
    """Yield the shards of each range, or raise what went wrong, naming a bad row's line.

    `known` has the shards of all ranges before: their lines are counted.
    """
    for part, made in zip(parts, outcomes, strict=True):
        match made:
            case BadRowError():
                earlier = [shard for shards in known.values() for shard in shards]
                before = lines_before(job.plan, earlier, part.number)
                at = where(job.plan, before, part.number, made.line)
                raise bad_row_error(at, made.message, made.hint)
            case FtrayError():
                raise made
            case _:
                yield made


def made_on_cluster(
    job: Job,
    parts: Sequence[Range],
    known: dict[int, list[ShardRecord]],
    tasks: int,
    stopped: Event,
) -> Iterator[tuple[Range, list[ShardRecord]]]:
    """Yield ranges with their shards as they are made, until told to stop.

    However long it takes: a stretch may wait for its trainer.
    """
    if not parts:
        return
    with closing(make_on_cluster(parts, job.recipe, tasks, timeout_seconds=-1)) as outcomes:
        for part, made in zip(parts, checked(job, parts, outcomes, known), strict=True):
            if stopped.is_set():
                return
            yield part, made


def token_digest(
    files: Sequence[SourceFile],
    ranges: Sequence[Range],
    forms: Sequence[Form],
    rendering: str,
    data: DataConfig,
) -> str:
    """Digest all that decides what the tokens are; `rendering` is the renderer's own digest.

    Names and folders of the files are not in it, nor is what batches are made by: length, packing,
    mixture and seed.
    """
    starts = [[part.file, part.start] for part in ranges]
    identity = [[file.source, file.kind, file.compression] for file in files]
    parts = [
        DATA_VERSION,
        rendering,
        data.reasoning,
        [asdict(form) for form in forms],
        identity,
        content_ids(files),
        hashlib.sha256(json.dumps(starts).encode()).hexdigest(),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _check_bad_rows(made: TokenSet, *, fails: bool) -> None:
    if not made.bad_rows:
        return
    report = storage.join(made.folder, REPORT)
    if fails:
        first = json.loads(storage.read(report))["first"][0]
        raise bad_row_error(first["place"], first["reason"], first["hint"])
    logger.warning("%d bad rows are left out, see %s", made.bad_rows, report)


def _check_has_rows(manifest: Manifest) -> None:
    if any(shard.rows for shard in manifest.shards):
        return
    names = ", ".join(file.name for file in manifest.plan.files[:3])
    bad = [shard for shard in manifest.shards if shard.bad_rows]
    if not bad:
        raise DataError(f"{names}: no rows in it")
    first = bad[0].first_bad[0]
    before = lines_before(manifest.plan, manifest.shards, bad[0].range)
    at = where(manifest.plan, before, bad[0].range, first.line)
    raise DataError(
        f"{names}: every row is bad; {at}: {first.reason}",
        first.hint or "set data.on_bad_row=fail to see what to do about it",
    )
