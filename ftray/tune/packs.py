"""Packed trials: hosts that hold the base model once, each with slots for several trials."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ftray import cluster, storage
from ftray.cluster import Allotment
from ftray.config.run import RunConfig
from ftray.config.search import SearchConfig
from ftray.errors import ConfigError
from ftray.model.folder import fetch
from ftray.model.shape import read_shape
from ftray.searches import Opened, Search
from ftray.tune.deciders import Span, trial_count
from ftray.tune.driver import Course
from ftray.tune.floor import Figures
from ftray.tune.host import HostPlan
from ftray.tune.hosts import Hosts, placed
from ftray.tune.packed.intake import Tokens
from ftray.tune.packed.trial import Capacity, Trial, check_shares
from ftray.tune.places import allot_hosts, capacity, check_targets, corners, worker_of
from ftray.tune.stage import Stage, longest_of, span_of
from ftray.tune.tokens import made_tokens
from ftray.tune.used import Used, saved_seconds

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What is decided before anything starts."""

    allotment: Allotment
    capacity: Capacity
    tokens: Tokens
    folder: Path
    span: Span
    trials: int

    @property
    def at_once(self) -> int:
        """Trials that train at the same time."""
        return min(self.trials, self.allotment.workers * self.capacity.slots)


def run_packed(base: RunConfig, asked: SearchConfig, opened: Opened) -> Used:
    """Run all trials of a search on shared bases."""
    search = opened.search
    plan = _planned(base, asked, search)
    stage = Stage(Course(search, asked, plan.span, plan.trials, plan.at_once), opened)
    host_plan = HostPlan(
        base=base,
        folder=str(plan.folder),
        tokens=plan.tokens,
        capacity=plan.capacity,
        rules=stage.rules,
        threads=plan.allotment.threads,
        on_gpu=plan.allotment.gpus > 0,
    )
    with placed(host_plan, plan.allotment, base.scaling.placement_timeout_seconds) as hosts:
        try:
            stage.run(hosts)
            figures = hosts.figures()
        finally:
            held = stage.note(hosts)
    _tell(figures)
    _write_figures(search, figures, hosts)
    saved = saved_seconds(stage.results, figures, hosts.loaded, held)
    return Used(stage.results, plan.allotment, held, saved, stage.is_interrupted, stage.ended_by)


def _planned(base: RunConfig, asked: SearchConfig, search: Search) -> Plan:
    """Decide where trials train and for how long, and check that they can."""
    machines, trials = cluster.nodes(), trial_count(asked)
    allotment = allot_hosts(asked.hosts, machines, trials)
    folder = fetch(base.model, search.root)
    ends = corners(base, asked.space)
    check_targets(ends, read_shape(folder))
    for number, end in enumerate(ends):
        check_shares(base, Trial(str(number), end))
    share, worker = -(-trials // allotment.workers), worker_of(allotment, machines)
    room = capacity(base, ends, share, folder, worker, asked.hosts)
    _check_population(asked, trials, allotment.workers * room.slots)
    tokens = made_tokens(base, folder, search.root)
    span = span_of(asked, base, longest_of(ends, tokens))
    logger.info(
        "%d trials of up to %d steps, a report every %d; hosts: %d of %g CPUs%s, %d slots each",
        trials,
        span.longest,
        span.every,
        allotment.workers,
        allotment.cpus,
        f" and {allotment.gpus:g} GPUs" if allotment.gpus else "",
        room.slots,
    )
    return Plan(allotment, room, tokens, folder, span, trials)


def _check_population(asked: SearchConfig, trials: int, slots: int) -> None:
    if asked.scheduler.kind == "pbt" and trials > slots:
        raise ConfigError(
            f"scheduler pbt trains its {trials} trials at once, and there are {slots} slots",
            f"set num_samples={slots}, or more hosts",
        )


def _write_figures(search: Search, figures: Sequence[Figures], hosts: Hosts) -> None:
    loaded = [asdict(ready) for ready in hosts.loaded]
    tree = {"hosts": [asdict(found) for found in figures], "loaded": loaded}
    storage.write(storage.join(search.folder, "hosts.json"), json.dumps(tree).encode())


def _tell(figures: Sequence[Figures]) -> None:
    for found in figures:
        spent = found.stepping + found.measuring + found.saving + found.between
        share = found.between / spent if spent else 0.0
        logger.info(
            "a host's time: %.1f s steps, %.1f s evals, %.1f s saves, %.1f%% between them",
            found.stepping,
            found.measuring,
            found.saving,
            100 * share,
        )
