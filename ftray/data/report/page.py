"""The report on a run's data as one HTML file: no script, no network, nothing beside it."""

from collections.abc import Iterator

from ftray.data.limits import LEAST, is_broken
from ftray.data.report.markup import (
    NUMBER,
    PLACE,
    TEXT,
    document,
    section,
    short,
    table,
    text,
    tiles,
)
from ftray.data.report.quality import Quality, SetQuality
from ftray.data.report.sections import bad_rows, batches, lengths, overlap, repeats, unusual
from ftray.data.report.verdict import Verdict


def page(name: str, quality: Quality, verdict: Verdict) -> str:
    """Return the page about the data of the run of that name."""
    sets = [("train", quality.train)] + ([] if quality.eval is None else [("eval", quality.eval)])
    parts = [
        _verdict(verdict),
        tiles(_numbers(quality)),
        _limits(quality),
        _sources(sets),
        lengths(quality, sets),
        batches(quality.train.filling),
        repeats(quality.train.repeats),
        overlap(quality.overlap),
        *(unusual(title, part) for title, part in sets),
        *(bad_rows(title, part.bad) for title, part in sets),
    ]
    return document(f"Data of {name}", *parts)


def _verdict(verdict: Verdict) -> str:
    said = (
        "Nothing stops a run on this data."
        if verdict.is_ok
        else "ftray train would refuse this data."
    )
    parts = [f"<b>{said}</b>", _list(verdict.stops)]
    if verdict.notes:
        parts += ["<p>Worth a look:</p>", _list(verdict.notes)]
    return f'<div class="verdict{"" if verdict.is_ok else " stops"}">{"".join(parts)}</div>'


def _list(sentences: list[str]) -> str:
    return (
        f"<ul>{''.join(f'<li>{text(said)}</li>' for said in sentences)}</ul>" if sentences else ""
    )


def _numbers(quality: Quality) -> Iterator[tuple[str, str]]:
    train = quality.train
    yield f"{train.rows:,}", "rows to train on"
    if quality.eval is not None:
        yield f"{quality.eval.rows:,}", "rows to measure with"
    yield short(train.tokens), f"tokens, {train.label_share:.0%} of them learned"
    yield f"{train.bad.count:,}", "bad rows"
    yield f"{train.overflow.too_long:,}", f"rows over {quality.max_length:,} tokens"
    again = train.repeats.exact + (train.repeats.near or 0)
    yield f"{again:,}", "rows that repeat or resemble another"
    if train.filling is not None:
        filling = train.filling
        filled = filling.packed if filling.packing else 1 - filling.padding
        yield f"{filled:.0%}", "of all positions filled"
        yield f"{filling.steps:,}", "steps in an epoch"


def _limits(quality: Quality) -> str:
    rows = []
    for name, limit in quality.limits.items():
        found = vars(quality.shares)[name]
        if limit is not None and found is not None:
            bound = "at least" if name == LEAST else "at most"
            state = "broken" if is_broken(name, found, limit) else "kept"
            rows.append([name, f"{found:.2%}", f"{bound} {limit:.2%}", state])
    columns = [("data.limits", PLACE), ("found", NUMBER), ("limit", NUMBER), ("", TEXT)]
    return section("Limits", table(columns, rows))


def _sources(sets: list[tuple[str, SetQuality]]) -> str:
    rows = [
        [
            title,
            source.name,
            f"{source.rows:,}",
            f"{source.tokens:,}",
            f"{source.label_tokens / max(1, source.tokens):.1%}",
            f"{source.bad_rows:,}",
        ]
        for title, part in sets
        for source in part.sources
    ]
    titles = [("rows", NUMBER), ("tokens", NUMBER), ("learned", NUMBER), ("bad rows", NUMBER)]
    return section("Sources", table([("", PLACE), ("source", TEXT), *titles], rows))
