"""Whether a disturbed run is what it would have been, and what each fault has cost."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.table import Table

from ftray import registry, runs
from ftray.runs import Run

_TIMES = ("time", "step_seconds", "tokens_per_second", "data_wait_seconds")


@dataclass(frozen=True)
class Cost:
    """What followed a fault: seconds to a step and to a new one, steps again; or what failed."""

    kind: str
    step: int
    seconds: float = 0.0
    new: float = 0.0
    recomputed: int = 0
    wrong: str = ""


@dataclass(frozen=True)
class Difference:
    """How a disturbed run differs from an undisturbed one."""

    lost_steps: int
    duplicated_steps: int
    lost_samples: int
    is_curve_equal: bool
    is_adapter_equal: bool

    @property
    def is_none(self) -> bool:
        """Whether the faults have left no trace."""
        nothing = (self.lost_steps, self.duplicated_steps, self.lost_samples) == (0, 0, 0)
        return nothing and self.is_curve_equal and self.is_adapter_equal


@dataclass(frozen=True)
class Found:
    """What all runs of a soak have cost, and how they have ended."""

    costs: list[Cost] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)

    @property
    def is_green(self) -> bool:
        """Whether all was recovered from, and no number differs."""
        recovered = not any(cost.wrong for cost in self.costs)
        return recovered and all(one.is_none for one in self.differences)

    def table(self) -> Table:
        """Show what each kind of fault has cost; beneath it, how the runs have ended."""
        shown = Table("fault", *_COLUMNS, box=box.SIMPLE, caption=self._ends(), min_width=80)
        for column in shown.columns[1:]:
            column.justify = "right"
        for kind in sorted({cost.kind for cost in self.costs}):
            shown.add_row(kind, *_row([cost for cost in self.costs if cost.kind == kind]))
        shown.add_section()
        shown.add_row("all", *_row(self.costs))
        return shown

    def _ends(self) -> str:
        ends = self.differences
        lost = sum(one.lost_steps for one in ends)
        twice = sum(one.duplicated_steps for one in ends)
        samples = sum(one.lost_samples for one in ends)
        equal = sum(one.is_none for one in ends)
        return (
            f"steps lost {lost}, in the metrics twice {twice}; samples lost {samples}; "
            f"every number and weight as undisturbed: {equal} of {len(ends)} runs"
        )


def difference(run: Run, undisturbed: Run) -> Difference:
    """Compare all numbers but the times, bit for bit, and the digests of what was published."""
    lines, wanted = _numbers(run), _numbers(undisturbed)
    found = Counter(line["step"] for line in lines)
    return Difference(
        lost_steps=len({line["step"] for line in wanted} - set(found)),
        duplicated_steps=sum(count - 1 for count in found.values()),
        lost_samples=sum(line["samples"] for line in wanted)
        - sum(line["samples"] for line in lines),
        is_curve_equal=lines == wanted,
        is_adapter_equal=_weights(run) == _weights(undisturbed),
    )


def _row(costs: Sequence[Cost]) -> list[str]:
    good = [cost for cost in costs if not cost.wrong]
    again = sum(cost.recomputed for cost in good)
    columns = [[cost.seconds for cost in good], [cost.new for cost in good]]
    pairs = [(statistics.median(times), max(times)) for times in columns if times]
    times = [f"{middle:.1f} ({most:.1f})" for middle, most in pairs] or ["", ""]
    return [str(len(costs)), str(len(good)), str(again), *times]


# seconds: the median, and the longest
_COLUMNS = ("injected", "recovered", "steps again", "to a step (max)", "to a new one (max)")


def _numbers(run: Run) -> list[dict[str, Any]]:
    lines = runs.read_metrics(run)
    return [{key: value for key, value in line.items() if key not in _TIMES} for line in lines]


def _weights(run: Run) -> str:
    return registry.resolve(run.root, run.name).files["adapter_model.safetensors"]
