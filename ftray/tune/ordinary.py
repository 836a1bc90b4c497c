"""Ordinary trials: what cannot share a base, each a run of its own on Ray Train's workers."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from ftray import cluster
from ftray.cluster import Allotment
from ftray.config.base import override
from ftray.config.run import RunConfig
from ftray.config.search import SearchConfig
from ftray.errors import ClusterError
from ftray.model.folder import fetch
from ftray.model.shape import read_shape
from ftray.runs import Run
from ftray.searches import Opened, Search, run_name
from ftray.train.memory import GIB, estimate
from ftray.tune.deciders import Span, trial_count
from ftray.tune.driver import Course
from ftray.tune.hosts import started
from ftray.tune.places import allot_runs, check_targets, corners, worker_of
from ftray.tune.runner import RunnerPlan
from ftray.tune.stage import Stage, longest_of, span_of
from ftray.tune.tokens import made_tokens
from ftray.tune.used import Used

logger = logging.getLogger(__name__)

_TRIAL_ID = "0" * 11  # as long as Ray Tune's


@dataclass(frozen=True)
class Plan:
    """What is decided before anything starts; `allotment` is of all trials at once."""

    base: RunConfig
    allotment: Allotment
    at_once: int
    span: Span
    trials: int


def run_ordinary(base: RunConfig, asked: SearchConfig, opened: Opened) -> Used:
    """Run each trial of a search as a run of its own."""
    search = opened.search
    plan = _planned(base, asked, search)
    stage = Stage(Course(search, asked, plan.span, plan.trials, plan.at_once), opened)
    runner_plan = RunnerPlan(plan.base, search.name, search.root, stage.rules)
    with started(runner_plan, plan.at_once) as hosts:
        try:
            stage.run(hosts)
        finally:
            held = stage.note(hosts)
    held *= plan.allotment.workers / plan.at_once
    return Used(stage.results, plan.allotment, held, None, stage.is_interrupted, stage.ended_by)


def _planned(base: RunConfig, asked: SearchConfig, search: Search) -> Plan:
    """Decide how many trials train at once, and for how long, and check that they can."""
    Run(search.root, run_name(search.name, _TRIAL_ID))  # raises where the name is too long
    machines, trials = cluster.nodes(), trial_count(asked)
    at_once, allotment = allot_runs(asked.hosts, base.scaling, machines, trials)
    base = _with_share(base, allotment, allotment.workers // at_once)
    ends = corners(base, asked.space)
    _check_each(ends, search, allotment, machines)
    span = span_of(asked, base, _longest(ends, search))
    logger.info(
        "%d trials of up to %d steps, a report every %d; %d at once, on %d workers of %g CPUs%s",
        trials,
        span.longest,
        span.every,
        at_once,
        allotment.workers // at_once,
        allotment.cpus,
        f" and {allotment.gpus:g} GPUs" if allotment.gpus else "",
    )
    return Plan(base, allotment, at_once, span, trials)


def _with_share(base: RunConfig, allotment: Allotment, workers: int) -> RunConfig:
    """Let each trial take its share of the cluster, and no more."""
    share = {
        "scaling.num_workers": workers,
        "scaling.cpus_per_worker": allotment.cpus,
        "scaling.gpus_per_worker": allotment.gpus,
    }
    return override(base, share)


def _check_each(
    ends: Sequence[RunConfig], search: Search, allotment: Allotment, machines: list[cluster.Node]
) -> None:
    """Check what the ends of the space need: layers, and memory with the least micro-batch."""
    worker = worker_of(allotment, machines)
    for end in ends:
        shape = read_shape(fetch(end.model, search.root))
        check_targets([end], shape)
        if shape is None or worker.memory is None:
            continue
        needed = estimate(end, shape, worker, 1).peak
        if needed > worker.memory:
            raise ClusterError(
                f"a trial's worker needs {needed / GIB:.1f} GiB and has"
                f" {worker.memory / GIB:.1f}, its share of the machine",
                "lower hosts.count in the space file, or data.max_length in the run",
            )


def _longest(ends: Sequence[RunConfig], search: Search) -> int:
    """Make the tokens of all trials, once for each base model; returns the longest one's steps."""
    by_model: dict[str, list[RunConfig]] = {}
    for end in ends:
        by_model.setdefault(end.model.model_dump_json(), []).append(end)
    return max(
        longest_of(alike, made_tokens(alike[0], fetch(alike[0].model, search.root), search.root))
        for alike in by_model.values()
    )
