"""Does the data keep within `data.limits`?"""

from dataclasses import dataclass

from ftray.config.data import DataConfig, LimitsConfig
from ftray.data.duplicates import exact, near, overlap
from ftray.data.tokens.columns import Columns, Flags, TokenRows
from ftray.errors import DataError

LEAST = "label_share"


@dataclass(frozen=True)
class Shares:
    """What `data.limits` judges, under its names, from 0 to 1; None: not measured."""

    duplicates: float
    near_duplicates: float | None
    overlap: float | None
    bad_rows: float
    too_long: float
    label_share: float


def quick(
    train: Columns, evals: Columns | None, rows: TokenRows, bad_rows: int, data: DataConfig
) -> Shares:
    """Measure what the limits need from the columns alone, so a million rows take half a second.

    `rows` are read only where `data.limits.near_duplicates` is set.
    """
    wants_near = data.limits.near_duplicates is not None
    return Shares(
        duplicates=_share(exact(train)),
        near_duplicates=_share(near(train, rows)) if wants_near else None,
        overlap=None if evals is None else _share(overlap(train, evals)),
        bad_rows=bad_rows / max(1, bad_rows + len(train)),
        too_long=_share(train.length > data.max_length),
        label_share=int(train.labels.sum()) / max(1, int(train.length.sum())),
    )


def violations(shares: Shares, limits: LimitsConfig) -> list[str]:
    """Name each limit that is broken, with what was found; empty where all is well."""
    found: list[str] = []
    for name, limit in limits.model_dump().items():
        share = vars(shares)[name]
        if limit is None or share is None or not is_broken(name, share, limit):
            continue
        bound = f"at least {limit:.2%} wanted" if name == LEAST else f"at most {limit:.2%} allowed"
        found.append(f"data.limits.{name}: {share:.2%} found, {bound}")
    return found


def is_broken(name: str, share: float, limit: float) -> bool:
    """Say whether a limit of that name is broken: one of them is a least share, not a most."""
    return share < limit if name == LEAST else share > limit


def check(shares: Shares, limits: LimitsConfig) -> None:
    """Raise a DataError that names every limit that is broken."""
    if broken := violations(shares, limits):
        hint = "see the rows with ftray data check, or change the limits"
        raise DataError("the data is not as data.limits wants it:\n  " + "\n  ".join(broken), hint)


def _share(flags: Flags) -> float:
    return float(flags.mean()) if len(flags) else 0.0
