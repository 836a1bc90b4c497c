"""Every verb as a function: the table of contents of ftray, and its Python API.

What a verb needs is imported when it is called, so that `ftray check` loads neither torch nor Ray.
Files and overrides are given as on the command line: `train("run.yaml", ["train.max_steps=10"])`.
Mistakes raise an FtrayError. `storage` is a root folder or URI; None: $FTRAY_HOME, else ~/.ftray.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ftray.commands.clusters import down, maybe_cluster, up
from ftray.commands.jobs import job_logs, list_jobs, show_job, stop_job, submit
from ftray.commands.keys import NewKey, create_key, list_keys, list_usage, revoke_key
from ftray.commands.projects import audit_log, list_projects, set_project
from ftray.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from ftray.data.preview import PreviewRow
    from ftray.garbage.sweep import Disk
    from ftray.registry import AdapterRecord
    from ftray.runs import CheckpointRecord, Metrics, Status
    from ftray.serve.chat import Talk
    from ftray.serve.server import Running
    from ftray.train.evaluate import EvalResult
    from ftray.train.examine import Examined
    from ftray.train.fit import RunResult
    from ftray.train.plan import Plan
    from ftray.train.quickstart import QuickstartResult
    from ftray.train.usage import SourceUse
    from ftray.tune.search import Found


__all__ = [
    "NewKey",
    "audit_log",
    "create_key",
    "down",
    "job_logs",
    "list_jobs",
    "list_keys",
    "list_projects",
    "list_usage",
    "revoke_key",
    "set_project",
    "show_job",
    "stop_job",
    "submit",
    "up",
]


@dataclass(frozen=True)
class RunSummary:
    """A run as `runs list` shows it."""

    name: str
    status: "Status"


@dataclass(frozen=True)
class RunDetails:
    """A run with its config, its newest metrics and its checkpoints."""

    name: str
    folder: str
    status: "Status"
    config: dict[str, object]
    last: "Metrics | None"
    last_eval: "Metrics | None"
    checkpoints: list["CheckpointRecord"]
    sources: list["SourceUse"]


@dataclass(frozen=True)
class AdapterVersions:
    """All versions of one adapter, the oldest first, and what its aliases point at."""

    name: str
    versions: list["AdapterRecord"]
    aliases: dict[str, int]


@dataclass(frozen=True)
class Done:
    """What a verb did, for verbs that have nothing to show."""

    what: str


def init(preset: str) -> str:
    """Return a preset run file as text."""
    known = presets()
    if preset not in known:
        raise ConfigError(f"no preset '{preset}'", did_you_mean(preset, known))
    return (_PRESETS / f"{preset}.yaml").read_text(encoding="utf-8")


def presets() -> list[str]:
    """Return the names that `init` knows."""
    return sorted(file.stem for file in _PRESETS.glob("*.yaml"))


def check(run: str, overrides: Sequence[str] = (), *, cluster: str | None = None) -> "Plan":
    """Plan a run without starting anything: batches, parameters, memory, verdict, warnings."""
    from ftray.config.run import load_run
    from ftray.model.shape import shape_of
    from ftray.storage import storage_root
    from ftray.train.machine import this_machine
    from ftray.train.plan import make_plan

    config = load_run(Path(run), overrides)
    on = maybe_cluster(cluster)
    shape = shape_of(config.model.name, config.model.revision, storage_root(config.storage))
    return make_plan(config, shape, on, this_machine())


def train(
    run: str, overrides: Sequence[str] = (), *, cluster: str | None = None, overwrite: bool = False
) -> "RunResult":
    """Train a run, or go on with one that was interrupted, and publish its adapter."""
    from ftray.config.run import load_run
    from ftray.connection import connecting

    config = load_run(Path(run), overrides)
    on = maybe_cluster(cluster)
    with connecting(on) as connection:  # Ray starts beside the import of torch
        from ftray.train.fit import fit

        return fit(config, connection, overwrite=overwrite)


def tune(
    run: str,
    space: str,
    overrides: Sequence[str] = (),
    *,
    cluster: str | None = None,
    overwrite: bool = False,
) -> "Found":
    """Search the values of a space file, or go on with a search, and publish the best trials.

    Overrides that begin with `search.` are of the space file, the others of the run.
    """
    from ftray.config.run import load_run
    from ftray.config.search import load_search, split_overrides
    from ftray.connection import connecting

    of_run, of_search = split_overrides(overrides)
    config = load_run(Path(run), of_run)
    asked = load_search(Path(space), config, of_search)
    on = maybe_cluster(cluster)
    with connecting(on) as connection:  # Ray starts beside the import of torch
        from ftray.tune.search import search

        return search(config, asked, connection, overwrite=overwrite)


def preview(run: str, overrides: Sequence[str] = (), *, count: int = 3) -> "list[PreviewRow]":
    """Return the first rows of the training data as the model will see them."""
    from ftray.config.data import sources_of
    from ftray.config.run import load_run
    from ftray.data.preview import preview_rows
    from ftray.data.sources import check_sources
    from ftray.model.folder import fetch
    from ftray.storage import storage_root

    config = load_run(Path(run), overrides)
    sources = sources_of(config.data.train)
    check_sources(sources, config.data)  # before a model is fetched
    folder = fetch(config.model, storage_root(config.storage))
    trust = config.model.trust_remote_code
    return preview_rows(sources, config.data, folder, count, trust_remote_code=trust)


def check_data(
    run: str,
    overrides: Sequence[str] = (),
    *,
    cluster: str | None = None,
    html: str | None = None,
) -> "Examined":
    """Measure a run's data, and write a page about it; what its limits refuse is in the verdict."""
    from ftray.config.run import load_run
    from ftray.train.examine import examine

    config = load_run(Path(run), overrides)
    on = maybe_cluster(cluster)
    return examine(config, on=on, html=html)


def evaluate(
    ref: str, data: str, overrides: Sequence[str] = (), *, storage: str | None = None
) -> "EvalResult":
    """Measure a published adapter on a data file: loss, perplexity, exact match by generation."""
    from ftray.storage import storage_root
    from ftray.train.tuned import evaluate as evaluate_published

    return evaluate_published(ref, data, overrides, root=storage_root(storage))


def quickstart(*, storage: str | None = None) -> "QuickstartResult":
    """Fine-tune the built-in model on a small task, and measure it before and after."""
    from ftray.storage import storage_root
    from ftray.train.quickstart import quickstart as run_quickstart

    return run_quickstart(root=storage_root(storage))


def list_runs(*, storage: str | None = None) -> list[RunSummary]:
    """Return every run of a storage root, by name."""
    from ftray import runs
    from ftray.storage import storage_root

    found = runs.list_runs(storage_root(storage))
    return [RunSummary(name, status) for name, status in found.items()]


def show_run(name: str, *, storage: str | None = None) -> RunDetails:
    """Return what is known of one run."""
    from ftray import runs
    from ftray.storage import storage_root
    from ftray.train.usage import read_usage

    run = runs.Run(storage_root(storage), name)
    status, config, lines = runs.read_status(run), runs.read_config(run), runs.read_metrics(run)
    steps = [line for line in lines if "loss" in line]
    evals = [line for line in lines if "eval_loss" in line]
    last, last_eval = (found[-1] if found else None for found in (steps, evals))
    tree = config.model_dump(mode="json")
    saved, used = runs.checkpoints(run), read_usage(run)
    return RunDetails(name, run.folder, status, tree, last, last_eval, saved, used)


def delete_run(name: str, *, force: bool = False, storage: str | None = None) -> Done:
    """Delete a run with its checkpoints; the adapters that it published stay."""
    from ftray import runs
    from ftray.storage import storage_root

    runs.delete_run(storage_root(storage), name, force=force)
    return Done(f"deleted run '{name}'")


def list_adapters(*, storage: str | None = None) -> list[AdapterVersions]:
    """Return every adapter of a storage root, by name."""
    from ftray import registry
    from ftray.storage import storage_root

    root = storage_root(storage)
    names = dict.fromkeys(record.name for record in registry.list_adapters(root))
    return [_versions(root, name) for name in names]


def show_adapter(ref: str, *, storage: str | None = None) -> "AdapterRecord":
    """Return the record of the version that `name`, `name@3` or `name@alias` means."""
    from ftray import registry
    from ftray.storage import storage_root

    return registry.resolve(storage_root(storage), ref)


def promote(
    ref: str, alias: str, *, expect: int | None = None, storage: str | None = None
) -> "AdapterRecord":
    """Let an alias point at a version; with `expect` only if it points at that version now."""
    from ftray import registry
    from ftray.storage import storage_root

    return registry.promote(storage_root(storage), ref, alias, expect)


def delete_adapter(ref: str, *, force: bool = False, storage: str | None = None) -> Done:
    """Delete one version; one that an alias points at needs force."""
    from ftray import registry
    from ftray.storage import storage_root

    registry.delete(storage_root(storage), ref, force=force)
    return Done(f"deleted {ref}")


def import_adapter(
    name: str, folder: str, *, base: str | None = None, storage: str | None = None
) -> "AdapterRecord":
    """Check a foreign PEFT folder against its base model and publish it."""
    from ftray.storage import storage_root
    from ftray.train.publish import publish_foreign

    return publish_foreign(storage_root(storage), name, Path(folder), base)


def merge(ref: str, out: str, *, dtype: str = "bfloat16", storage: str | None = None) -> Done:
    """Write a model folder in which the adapter is part of the weights, and verify it."""
    from ftray.storage import storage_root
    from ftray.train.publish import merge_published

    merge_published(storage_root(storage), ref, Path(out), dtype)
    return Done(f"merged {ref} into {out}")


def gc(
    *,
    delete: bool = False,
    older_than: float = 7.0,
    named: Sequence[str] = (),
    storage: str | None = None,
) -> "Disk":
    """Measure what a storage root holds, find what nobody needs, and delete that if asked to.

    Token sets stay that were used in the last `older_than` days. Of a run that did not finish the
    checkpoints go only if it is named, and has been silent for as long. What lies in `files/` and
    `jobs/` goes by the service's database: $FTRAY_DATABASE, else the one in the storage root.
    """
    from ftray.garbage.policy import DAY, Policy
    from ftray.garbage.sweep import look, sweep
    from ftray.service.books import opened
    from ftray.storage import storage_root

    root = storage_root(storage)
    policy = Policy(older_than * DAY, frozenset(named))
    with opened(root) as books:
        disk = look(root, policy, books)
        return sweep(disk, policy, books) if delete else disk


@contextmanager
def serve(
    file: str | None = None, overrides: Sequence[str] = (), *, cluster: str | None = None
) -> "Iterator[Running]":
    """Serve the registry's adapters for the block's time, over OpenAI's HTTP API.

    `file` is Ray Serve's own config (deploy/serve.yaml); None: the built-in base on loopback.
    """
    from ftray.config.serve import load_served
    from ftray.serve.server import serving

    served = load_served(None if file is None else Path(file), list(overrides))
    on = maybe_cluster(cluster)
    with serving(served.app, served.http, on) as running:
        yield running


def chat(
    model: str,
    *,
    url: str = "http://127.0.0.1:8000",
    system: str | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
) -> "Talk":
    """Begin a conversation with a served model; the key is $FTRAY_API_KEY or $OPENAI_API_KEY."""
    from ftray.serve.chat import Talk

    return Talk(model, url, system=system, max_tokens=max_tokens, temperature=temperature)


_PRESETS = Path(__file__).parent.parent / "presets"


def _versions(root: str, name: str) -> AdapterVersions:
    from ftray import registry

    return AdapterVersions(name, registry.versions(root, name), registry.aliases(root, name))
