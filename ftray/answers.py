"""What each verb answers: the command's result as data, and as people read it."""

import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

from rich.console import RenderableType

from ftray import commands
from ftray.accounts.grant import GIB, ROLES, Grant, Quota
from ftray.errors import DataError, StorageError
from ftray.screen import adapters, data, disk, jobs, keys, plans, projects, runs, serving, tuning
from ftray.submit.asked import How

USUAL = -1  # a limit that was not given


@dataclass(frozen=True)
class Answer:
    """What a command found: as data for --json, and as people read it."""

    data: object
    shown: RenderableType
    exit_code: int = 0
    goes_on: Iterator[str] | None = None  # text that comes later, as it comes


def init(given: Namespace) -> Answer:
    """The text of a preset."""
    text = commands.init(given.preset)
    return Answer(text, text)


def check(given: Namespace) -> Answer:
    """The plan of a run."""
    plan = commands.check(given.run, given.overrides, cluster=given.cluster)
    return Answer(plan, plans.plan(plan))


def train(given: Namespace) -> Answer:
    """A finished run and its adapter."""
    result = commands.train(
        given.run, given.overrides, cluster=given.cluster, overwrite=given.overwrite
    )
    return Answer(result, runs.run_result(result))


def tune(given: Namespace) -> Answer:
    """The trials of a search in their order, and what the best came to."""
    found = commands.tune(
        given.run, given.space, given.overrides, cluster=given.cluster, overwrite=given.overwrite
    )
    return Answer(found.report, tuning.search_result(found))


def quickstart(given: Namespace) -> Answer:
    """The measures before and after."""
    result = commands.quickstart(storage=given.storage)
    return Answer(result, runs.quickstart(result))


def preview(given: Namespace) -> Answer:
    """Rows of the training data."""
    rows = commands.preview(given.run, given.overrides, count=given.rows)
    return Answer(rows, data.preview(rows))


def check_data(given: Namespace) -> Answer:
    """The report on a run's data."""
    found = commands.check_data(given.run, given.overrides, cluster=given.cluster, html=given.html)
    code = 0 if found.verdict.is_ok else DataError.exit_code
    return Answer(found, data.report(found), code)


def list_runs(given: Namespace) -> Answer:
    """Every run, one a line."""
    found = commands.list_runs(storage=given.storage)
    return Answer(found, runs.runs(found))


def show_run(given: Namespace) -> Answer:
    """One run in full."""
    run = commands.show_run(given.name, storage=given.storage)
    return Answer(run, runs.run(run))


def delete_run(given: Namespace) -> Answer:
    """Which run is gone."""
    done = commands.delete_run(given.name, force=given.force, storage=given.storage)
    return Answer(done, done.what)


def list_adapters(given: Namespace) -> Answer:
    """Every version, one a line."""
    found = commands.list_adapters(storage=given.storage)
    return Answer(found, adapters.adapters(found))


def show_adapter(given: Namespace) -> Answer:
    """One record."""
    record = commands.show_adapter(given.ref, storage=given.storage)
    return Answer(record, adapters.adapter(record))


def promote(given: Namespace) -> Answer:
    """Where the alias points now."""
    record = commands.promote(given.ref, given.alias, expect=given.expect, storage=given.storage)
    return Answer(record, f"{record.name}@{given.alias} is now {record.ref}")


def delete_adapter(given: Namespace) -> Answer:
    """Which version is gone."""
    done = commands.delete_adapter(given.ref, force=given.force, storage=given.storage)
    return Answer(done, done.what)


def import_adapter(given: Namespace) -> Answer:
    """The version that it became."""
    record = commands.import_adapter(
        given.name, given.folder, base=given.base, storage=given.storage
    )
    return Answer(record, f"published {record.ref}")


def merge(given: Namespace) -> Answer:
    """Where the merged model is."""
    done = commands.merge(given.ref, given.out, dtype=given.dtype, storage=given.storage)
    return Answer(done, done.what)


def evaluate(given: Namespace) -> Answer:
    """Measures of one version on data."""
    result = commands.evaluate(given.ref, given.data, given.overrides, storage=given.storage)
    return Answer(result, adapters.evaluation(result))


def gc(given: Namespace) -> Answer:
    """What a storage root holds, and what may go or has gone."""
    found = commands.gc(
        delete=given.delete,
        older_than=given.older_than,
        named=given.runs,
        storage=given.storage,
    )
    failed = any(piece.is_error for piece in found.stayed)
    shown = disk.swept(found) if given.delete else disk.usage(found)
    return Answer(found, shown, StorageError.exit_code if failed else 0)


def create_key(given: Namespace) -> Answer:
    """The key, and its secret for the only time."""
    grant = Grant(
        name=given.name,
        project=given.project,
        scopes=tuple(given.scopes or ROLES[given.role or "inference"]),
        models=tuple(given.models) if given.models else None,
        requests_per_minute=given.rpm,
        tokens_per_minute=given.tpm,
        expires=None if given.expires is None else time.time() + given.expires,
    )
    made = commands.create_key(grant, storage=given.storage)
    return Answer(made, keys.new_key(made))


def list_keys(given: Namespace) -> Answer:
    """Every key, one a line."""
    found = commands.list_keys(storage=given.storage)
    return Answer(found, keys.keys(found))


def revoke_key(given: Namespace) -> Answer:
    """Which key opens nothing any more."""
    key = commands.revoke_key(given.id, storage=given.storage)
    return Answer(key, f"revoked {key.id} ({key.name}); running servers know within seconds")


def list_projects(given: Namespace) -> Answer:
    """Every project, one a line."""
    found = commands.list_projects(storage=given.storage)
    return Answer(found, projects.projects(found))


def set_project(given: Namespace) -> Answer:
    """What the project may use now."""
    asked = {
        "running_jobs": given.running,
        "queued_jobs": given.waiting,
        "gpus": given.gpus,
        "files": given.files,
        "storage_bytes": given.gib if given.gib in (None, USUAL) else given.gib * GIB,
    }
    quota = replace(Quota(), **{key: limit for key, limit in asked.items() if limit != USUAL})
    found = commands.set_project(given.name, quota, storage=given.storage)
    return Answer(found, projects.projects([found]))


def show_log(given: Namespace) -> Answer:
    """Who changed what, one line each."""
    found = commands.audit_log(given.name, limit=given.limit, storage=given.storage)
    return Answer(found, projects.acts(found))


def list_usage(given: Namespace) -> Answer:
    """What was used, one key and model a line."""
    found = commands.list_usage(
        key=given.key, days=given.days, daily=given.daily, storage=given.storage
    )
    return Answer(found, keys.usage(found, daily=given.daily))


def submit(given: Namespace) -> Answer:
    """The job that a run or a search has become."""
    how = How(given.key, tuple(given.env or ()), given.overwrite, given.wait)
    found = commands.submit(
        given.run, given.overrides, cluster=given.cluster, space=given.space, how=how
    )
    return Answer(found, jobs.submitted(found))


def list_jobs(given: Namespace) -> Answer:
    """Every job, one a line."""
    found = commands.list_jobs(cluster=given.cluster)
    return Answer(found, jobs.jobs(found))


def show_job(given: Namespace) -> Answer:
    """What is known of one job."""
    found = commands.show_job(given.id, cluster=given.cluster)
    return Answer(found, jobs.job(found))


def job_logs(given: Namespace) -> Answer:
    """What a job has written."""
    pieces = commands.job_logs(given.id, cluster=given.cluster, follow=given.follow)
    if given.json:
        text = "".join(pieces)
        return Answer({"id": given.id, "log": text}, text)
    return Answer(None, "", goes_on=pieces)


def stop_job(given: Namespace) -> Answer:
    """How a job is that was asked to end."""
    found = commands.stop_job(given.id, cluster=given.cluster)
    return Answer(found, jobs.stopped(found))


def serve(given: Namespace) -> Answer:
    """Where a server answers; it does until Ctrl-C."""
    file, changes = _file_and_changes(given)
    stack = ExitStack()
    running = stack.enter_context(commands.serve(file, changes, cluster=given.cluster))
    return Answer(running, serving.running(running), goes_on=_until_interrupted(stack))


def up(given: Namespace) -> Answer:
    """What runs where, after this command."""
    file, changes = _file_and_changes(given)
    found = commands.up(file, changes, cluster=given.cluster)
    return Answer(found, serving.up(found))


def down(given: Namespace) -> Answer:
    """What was stopped."""
    found = commands.down()
    return Answer(found, serving.down(found))


def _file_and_changes(given: Namespace) -> tuple[str | None, list[str]]:
    """Tell a file from the first of the overrides."""
    is_file = given.file is not None and "=" not in given.file
    first = [] if given.file is None or is_file else [given.file]
    return given.file if is_file else None, [*first, *given.overrides]


def _until_interrupted(stack: ExitStack) -> Iterator[str]:
    with stack:
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            yield "stopping: running answers may end first; Ctrl-C again stops at once\n"
    yield "stopped\n"


def chat(given: Namespace) -> Answer:
    """What a served model says to one message, or in a conversation."""
    talk = commands.chat(
        given.model,
        url=given.url,
        system=given.system,
        max_tokens=given.max_tokens,
        temperature=given.temperature,
    )
    if given.json:
        text = "".join(talk.say(" ".join(given.message)))
        return Answer({"model": given.model, "answer": text}, text)
    words = serving.said(talk, " ".join(given.message)) if given.message else serving.talked(talk)
    return Answer(None, "", goes_on=words)
