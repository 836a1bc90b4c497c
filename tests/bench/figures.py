"""What a watched side took, as figures of one run; times are in seconds, memory in MB."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from watch import Event, Process, Watched, quarter_medians, steady_rows

Figures = dict[str, Any]
MB = 1e6


def of_ours(side: Watched) -> Figures:
    """Return the figures of ftray's side; its clock starts when Ray is up."""
    said = side.said
    events = [Event(*event) for event in said["events"]]
    workers = [process for process in side.others if _task_times(process)]
    begun = min((_task_times(process)[0] for process in workers), default=float("nan"))
    ended = max(event.time for event in events)
    figures = _of_both(side, said["times"]["ray_up"], steady_rows(events))
    return figures | {
        "import": said["times"]["imported"] - said["started"],
        "ray_start": said["times"]["ray_up"] - said["times"]["imported"],
        "worker_start": begun - said["times"]["ray_up"],
        "first_part": min(event.time for event in events) - said["times"]["ray_up"],
        "parts": len(events),
        "driver_growth": (said["rss_peak"] - said["rss_ray_up"]) / MB,
        "workers": [_quarters(process, ended) for process in workers],
    }


def of_peer(side: Watched) -> Figures:
    """Return the figures of the peer's side; its clock starts when its imports are done."""
    said = side.said
    phases: dict[str, list[Event]] = {}
    for name, events in said["events"].items():
        phases.setdefault(name.partition("-")[0], []).extend(Event(*event) for event in events)
    # one phase goes through all rows after the other: seconds a row add up
    steady = 1 / sum(1 / steady_rows(events) for events in phases.values())
    first = min(event.time for events in phases.values() for event in events)
    figures = _of_both(side, said["times"]["imported"], steady)
    return figures | {
        "import": said["times"]["imported"] - said["started"],
        "read": said["times"]["read"] - said["times"]["imported"],
        "first_part": first - said["times"]["imported"],
        "driver_growth": (said["rss_peak"] - said["rss_imported"]) / MB,
    }


def medians(runs: Sequence[Figures]) -> Figures:
    """Return the median of each number over repetitions; what is no number is the last one's."""
    numbers = (int, float)
    return {
        key: median(run[key] for run in runs) if isinstance(value, numbers) else value
        for key, value in runs[-1].items()
    }


def _of_both(side: Watched, start: float, steady: float) -> Figures:
    said, times = side.said, side.said["times"]
    return {
        "rows": said["rows"],
        "tokens": said["tokens"],
        "rows_per_second": steady,
        "tokens_per_second": steady * said["tokens"] / said["rows"],
        "made": times["made"] - start,
        "packed": times["packed"] - start,
        "first_batch": times["batch"] - start,
        "wall": side.seconds,
        "cpu_us_per_row": side.cpu_seconds / said["rows"] * 1e6,
        "peak_rss": side.peak_rss / MB,
        "fill": said["fill"],
    }


def _task_times(process: Process) -> list[float]:
    """Return when a Ray worker was seen in a task of Ray Data."""
    titles = zip(process.times, process.titles, strict=True)
    return [at for at, title in titles if title.startswith("ray::MapBatches")]


def _quarters(process: Process, ended: float) -> list[float]:
    """Return a worker's median memory in the first and the last quarter of its working time.

    The first second, in which it imports what it needs, is left out.
    """
    samples = process.between(_task_times(process)[0] + 1.0, ended) or process.rss
    return [value / MB for value in quarter_medians(samples)]
