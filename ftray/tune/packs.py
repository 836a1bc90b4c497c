"""Packed trials: hosts that hold the base model once, each with slots for several trials."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ray import tune

from ftray import cluster, storage
from ftray.cluster import Allotment
from ftray.config.run import RunConfig
from ftray.config.search import SearchConfig
from ftray.errors import ConfigError, DataError, did_you_mean
from ftray.model.base import fetch
from ftray.model.shape import ModelShape, read_shape
from ftray.train.memory import unknown_targets
from ftray.tune.deciders import Span, trial_count
from ftray.tune.driver import Course, run_trials
from ftray.tune.floor import Figures
from ftray.tune.folder import Opened, Search, change_status, read_status
from ftray.tune.host import HostPlan
from ftray.tune.hosts import Hosts, placed
from ftray.tune.ledger import Ledger
from ftray.tune.packed.intake import Intake, Tables, Tokens
from ftray.tune.packed.trial import Capacity, Trial, check_shares
from ftray.tune.places import allot_hosts, capacity, corners, worker_of
from ftray.tune.rungs import Rules
from ftray.tune.table import SearchScreen, Whole
from ftray.tune.tokens import made_tokens
from ftray.tune.trainable import PackedTrial
from ftray.tune.used import Used, saved_seconds
from ftray.tune.watch import Desk, open_desk

logger = logging.getLogger(__name__)

_REPORTS = 8  # of the longest trial, where nobody says how many


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
    rules = Rules(search.folder, plan.span.every, asked.metric, asked.mode, asked.hosts.max_losses)
    ledger = Ledger(rules)
    whole = Whole(search.name, plan.trials, plan.span.longest)
    screen = SearchScreen(whole, asked, ledger)
    status = read_status(search)
    desk = Desk(ledger, asked.space, asked.budget, screen, status.seconds)
    open_desk(desk)
    host_plan = HostPlan(
        base=base,
        folder=str(plan.folder),
        tokens=plan.tokens,
        capacity=plan.capacity,
        rules=rules,
        threads=plan.allotment.threads,
        on_gpu=plan.allotment.gpus > 0,
    )
    course = Course(search, asked, plan.span, plan.at_once)
    timeout = base.scaling.placement_timeout_seconds
    with placed(host_plan, plan.allotment, timeout) as hosts:
        desk.on_leave, desk.check = hosts.leave, hosts.check
        try:
            with screen.shown():
                _run(course, hosts, desk, rules, is_new=opened.is_new)
            figures = hosts.figures()
        finally:
            ledger.close()
            held = status.host_seconds + hosts.seconds
            _note(search, ledger, plan, held)
    _tell(figures)
    _write_figures(search, figures, hosts)
    saved = saved_seconds(ledger.results, figures, hosts.loaded, held)
    return Used(ledger.results, plan.allotment, held, saved)


def _run(course: Course, hosts: Hosts, desk: Desk, rules: Rules, *, is_new: bool) -> None:
    space = course.asked.space
    trial = tune.with_parameters(PackedTrial, hosts=hosts.handles, space=space, rules=rules)
    known = run_trials(trial, course, is_new=is_new)
    if desk.failure is not None:
        raise desk.failure
    desk.ledger.keep_only(known)
    if desk.ended_by:
        logger.info("the search has ended by its budget: %s", desk.ended_by)


def _planned(base: RunConfig, asked: SearchConfig, search: Search) -> Plan:
    """Decide where trials train and for how long, and check that they can."""
    machines, trials = cluster.nodes(), trial_count(asked)
    allotment = allot_hosts(asked.hosts, machines, trials)
    folder = fetch(base.model, search.root)
    ends = corners(base, asked.space)
    _check_targets(ends, read_shape(folder))
    for number, end in enumerate(ends):
        check_shares(base, Trial(str(number), end))
    room = capacity(base, ends, folder, worker_of(allotment, machines), asked.hosts)
    _check_population(asked, trials, allotment.workers * room.slots)
    tokens = made_tokens(base, folder, search.root)
    span = _span(asked, base, _lengths(ends, tokens))
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


def _lengths(ends: Sequence[RunConfig], tokens: Tokens) -> list[int]:
    tables = Tables.of(tokens)
    try:
        return [Intake(tables, end).total_steps for end in ends]
    except DataError as error:
        raise DataError(f"data.train: {error.message}", error.hint) from None


def _span(asked: SearchConfig, base: RunConfig, lengths: Sequence[int]) -> Span:
    longest = max(lengths)
    every = asked.every_steps or base.eval.every_steps or max(1, longest // _REPORTS)
    return Span(longest, min(every, longest))


def _check_targets(ends: Sequence[RunConfig], shape: ModelShape | None) -> None:
    if shape is None:
        return
    known = [layer.rpartition(".")[2] for layer in shape.linear]
    for end in ends:
        for name in unknown_targets(end, shape):
            raise ConfigError(
                f"adapter.target: no linear layer of {end.model.name} is called '{name}'",
                did_you_mean(name, known),
            )


def _check_population(asked: SearchConfig, trials: int, slots: int) -> None:
    if asked.scheduler.kind == "pbt" and trials > slots:
        raise ConfigError(
            f"scheduler pbt trains its {trials} trials at once, and there are {slots} slots",
            f"set num_samples={slots}, or more hosts",
        )


def _note(search: Search, ledger: Ledger, plan: Plan, held: float) -> None:
    change_status(
        search,
        lambda now: replace(now, trials=ledger.ended, total_trials=plan.trials, host_seconds=held),
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
