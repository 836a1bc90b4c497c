"""What a report on data comes to: would a run train on it, and what is worth a look."""

from dataclasses import dataclass

from ftray.config.data import DataConfig
from ftray.data.limits import violations
from ftray.data.report.quality import Quality, SetQuality


@dataclass(frozen=True)
class Verdict:
    """What stops a run before it trains, and what does not but is rarely meant."""

    stops: list[str]
    notes: list[str]

    @property
    def is_ok(self) -> bool:
        """Whether nothing stops a run."""
        return not self.stops


def judge(quality: Quality, data: DataConfig) -> Verdict:
    """Judge a report by the settings of its run."""
    return Verdict(_stops(quality, data), _notes(quality, data))


def _stops(quality: Quality, data: DataConfig) -> list[str]:
    found = violations(quality.shares, data.limits)
    for name, part in (("data.train", quality.train), ("data.eval", quality.eval)):
        if part is None:
            continue
        if data.on_bad_row == "fail" and part.bad.first:
            first = part.bad.first[0]
            found.append(
                f"bad rows in {name}: {part.bad.count:,}; data.on_bad_row=fail stops at the first,"
                f" {first.place}: {first.reason}"
            )
        if data.overflow == "error" and part.overflow.too_long:
            found.append(f"{_too_long(name, part, data)}; data.overflow=error refuses them")
    if not found and (filling := quality.train.filling) is not None and not filling.steps:
        found.append(_nothing_left(quality.train, data))
    if quality.eval is not None and not quality.eval.rows:
        found.append("no eval row is left: set a larger data.eval_fraction, or data.eval")
    return found


def _nothing_left(train: SetQuality, data: DataConfig) -> str:
    if not train.rows:
        return "no training row is left: check data.train and data.eval_fraction"
    return (
        f"no training step: with data.max_length={data.max_length} and data.overflow="
        f"{data.overflow} too few labels or rows are left"
    )


def _notes(quality: Quality, data: DataConfig) -> list[str]:
    found = [*_about_repeats(quality, data), *_about_lengths(quality, data)]
    if data.on_bad_row == "drop" and quality.train.bad.count:
        found.insert(0, f"bad rows that are left out: {quality.train.bad.count:,}")
    if quality.eval is None:
        found.append("there is no eval data, so overfitting will not be seen: set data.eval")
    if (unusual := quality.train.unusual) is not None:
        if unusual.long:
            found.append(f"answers far longer than the others: {unusual.long:,}")
        if unusual.rare:
            names = ", ".join(dict.fromkeys(odd.what for odd in unusual.rare))
            found.append(f"answers in another script than the others: {names}")
    return found


def _about_repeats(quality: Quality, data: DataConfig) -> list[str]:
    repeats, overlap, found = quality.train.repeats, quality.overlap, []
    if repeats.exact and data.duplicates == "keep":
        found.append(
            f"rows that repeat another: {repeats.exact:,}; data.duplicates=exact leaves them out"
        )
    if repeats.near and data.duplicates != "near":
        found.append(
            f"rows that resemble another: {repeats.near:,}; data.duplicates=near leaves them out"
        )
    if overlap is not None and overlap.prompts:
        found.append(
            f"eval rows whose prompt is in train too: {overlap.prompts:,}; they measure memory"
        )
    return found


def _about_lengths(quality: Quality, data: DataConfig) -> list[str]:
    train, found = quality.train, []
    done = {"truncate": "they are cut off there", "drop": "they are left out"}.get(data.overflow)
    if train.overflow.too_long and done:
        found.append(f"{_too_long('data.train', train, data)}; {done}")
    if train.filling is not None and not data.packing and train.filling.padding > _MUCH_PADDING:
        found.append(
            f"padding: {train.filling.padding:.0%} of all positions; data.packing=true leaves"
            f" {1 - train.filling.packed:.0%}"
        )
    return found


_MUCH_PADDING = 0.2


def _too_long(name: str, part: SetQuality, data: DataConfig) -> str:
    count = part.overflow.too_long
    return f"rows in {name} longer than data.max_length={data.max_length}: {count:,}"
