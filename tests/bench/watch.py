"""Runs one side of a benchmark as a process of its own and watches it from outside."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import psutil

EVERY = 0.2  # seconds between samples; one takes about 5 ms of a core


@dataclass(frozen=True)
class Event:
    """Rows and tokens that one worker had ready at a time."""

    time: float
    rows: int
    tokens: int


@dataclass
class Process:
    """What one process took: its title and memory over time, CPU time up to the last sample."""

    times: list[float] = field(default_factory=list)
    titles: list[str] = field(default_factory=list)
    rss: list[int] = field(default_factory=list)
    cpu_seconds: float = 0.0

    def between(self, start: float, end: float) -> list[int]:
        """Return the memory samples of a stretch of time."""
        return [rss for at, rss in zip(self.times, self.rss, strict=True) if start <= at <= end]


@dataclass(frozen=True)
class Watched:
    """A finished side: what it says itself, and what was seen; `driver` is its first process."""

    said: dict[str, Any]
    seconds: float
    driver: Process
    others: list[Process]

    @property
    def cpu_seconds(self) -> float:
        """CPU time of all its processes."""
        return sum(process.cpu_seconds for process in [self.driver, *self.others])

    @property
    def peak_rss(self) -> int:
        """Most memory of all its processes at one time; what they share counts in each."""
        at_once: dict[float, int] = {}
        for process in [self.driver, *self.others]:
            for at, rss in zip(process.times, process.rss, strict=True):
                at_once[at] = at_once.get(at, 0) + rss
        return max(at_once.values(), default=0)


def run_side(script: str, settings: dict[str, Any], folder: Path) -> Watched:
    """Run a script beside this file; it gets its settings and leaves its answer as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    asked, answer = folder / "settings.json", folder / "said.json"
    asked.write_text(json.dumps({**settings, "answer": str(answer)}))
    watched = run_command(
        [sys.executable, str(Path(__file__).with_name(script)), str(asked)], folder
    )
    return replace(watched, said=json.loads(answer.read_text()))


def run_command(command: Sequence[str], folder: Path) -> Watched:
    """Run a command that says nothing of itself; its output goes to a file in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    started = time.time()
    with (folder / "log.txt").open("w") as log:
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        seen = _watch(child)
    if child.returncode:
        raise SystemExit(f"{command} failed:\n{(folder / 'log.txt').read_text()[-4000:]}")
    seconds = time.time() - started
    driver = seen.pop(child.pid)
    return Watched({}, seconds, driver, list(seen.values()))


def steady_rows(events: Sequence[Event], workers: int = 2) -> float:
    """Return rows a second from when each worker had its first result to the last result.

    The tail, when not all workers have work, is in it.
    """
    ordered = sorted(events, key=lambda event: event.time)
    if len(ordered) <= workers:
        return float("nan")
    rows = sum(event.rows for event in ordered[workers:])
    return rows / (ordered[-1].time - ordered[workers - 1].time)


def quarter_medians(samples: Sequence[int]) -> tuple[float, float]:
    """Return the medians of the first and of the last quarter: equal where memory is flat."""
    size = max(1, len(samples) // 4)
    return median(samples[:size]), median(samples[-size:])


def _watch(child: "subprocess.Popen[bytes]") -> dict[int, Process]:
    seen: dict[int, Process] = {}
    root = psutil.Process(child.pid)
    while child.poll() is None:
        at = time.time()
        for process in _tree(root):
            _sample(process, at, seen)
        time.sleep(EVERY)
    return seen


def _tree(root: psutil.Process) -> list[psutil.Process]:
    try:
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _sample(process: psutil.Process, at: float, seen: dict[int, Process]) -> None:
    try:
        with process.oneshot():
            rss = process.memory_info().rss
            spent = process.cpu_times()
            title = (process.cmdline() or [""])[0]
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return
    record = seen.setdefault(process.pid, Process())
    record.times.append(at)
    record.rss.append(rss)
    record.titles.append(title)
    record.cpu_seconds = spent.user + spent.system
