"""One search from its configs to its report: planned, checked, run, crowned."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ftray import cluster, storage
from ftray.config.data import sources_of
from ftray.config.run import RunConfig
from ftray.config.search import SearchConfig, is_packed
from ftray.config.vary import needs_ordinary
from ftray.connection import Connection
from ftray.data.sources import check_sources
from ftray.errors import TrainError
from ftray.searches import Search, change_status, open_search, read_status
from ftray.tune.crown import crown
from ftray.tune.holdout import HeldOut, held_out
from ftray.tune.ordinary import run_ordinary
from ftray.tune.packs import run_packed
from ftray.tune.report.summary import Report
from ftray.tune.report.write import write_report
from ftray.tune.results import SearchResult, TrialResult
from ftray.tune.standing import kept
from ftray.tune.used import Used
from ftray.tune.winners import Winners, searched

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """What a search leaves behind."""

    result: SearchResult
    winners: Winners
    report: Report


def search(
    run: RunConfig, asked: SearchConfig, connection: Connection, *, overwrite: bool = False
) -> Found:
    """Run a search, or go on with one that was interrupted, and publish its best trials.

    What can be known beforehand is checked before anything starts: the space against the run, the
    data's form, the cluster's resources, memory, the storage root.
    """
    root = storage.storage_root(run.storage)
    of_its_own = asked.holdout.path if asked.holdout is not None else None
    for sources in (run.data.train, run.data.eval, of_its_own):
        check_sources(sources_of(sources), run.data)
    opened = open_search(root, run, asked, overwrite=overwrite)
    with kept(opened.search):
        connection.wait()
        cluster.check_storage(root)
        base = searched(run, asked)
        holdout = held_out(base, asked)
        if is_packed(asked, base):
            used = run_packed(base, asked, opened)
        else:
            logger.info("each trial is a run of its own: %s", needs_ordinary(asked.space, base))
            used = run_ordinary(base, asked, opened)
        result = _result(base, asked, opened.search, used)
        if used.is_interrupted:
            report = write_report(result, None)
            logger.warning("the report on what there is: %s/report/report.html", report.folder)
            raise KeyboardInterrupt
        _check_any(used.trials)
        found = _crowned(result, used, holdout)
        best = next((winner.ref for winner in found.winners.winners), None)
        change_status(opened.search, lambda status: replace(status, adapter=best))
        return found


def _result(base: RunConfig, asked: SearchConfig, search: Search, used: Used) -> SearchResult:
    status = read_status(search)
    return SearchResult(
        name=search.name,
        metric=asked.metric,
        mode=asked.mode,
        folder=search.folder,
        config=base,
        search=asked,
        trials=used.trials,
        seconds=status.seconds,
        host_seconds=used.host_seconds,
        hosts=used.allotment.workers,
        gpus_per_host=used.allotment.gpus,
        saved_against_solo_seconds=used.saved_seconds,
        ended_by=used.ended_by,
    )


def _crowned(result: SearchResult, used: Used, holdout: HeldOut | None) -> Found:
    """Measure the best on the hold-out, publish them, and write the report."""
    write_report(result, None)  # it is there, should publishing fail
    share = used.allotment
    winners = crown(result, num_cpus=share.cpus, num_gpus=share.gpus, holdout=holdout)
    return Found(result, winners, write_report(result, winners))


def _check_any(trials: Sequence[TrialResult]) -> None:
    """Raise TrainError where no trial came to a result."""
    if any(trial.metric is not None for trial in trials):
        return
    failed = [trial for trial in trials if trial.state == "failed"]
    why = f"; the first: {failed[0].error}" if failed else ""
    raise TrainError(
        f"none of {len(trials)} trials came to a result, {len(failed)} failed{why}",
        "ftray train with the values of one trial shows more",
    )
