"""The report on a search as one HTML file: no script, no network, nothing beside it."""

from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ftray.data.report.markup import (
    NUMBER,
    PLACE,
    TEXT,
    code,
    document,
    meter,
    paragraph,
    picture,
    section,
    short,
    table,
    text,
    tiles,
)
from ftray.tune.report.summary import Report, Row
from ftray.tune.report.words import counted, number, shown, taken, titles


@dataclass(frozen=True)
class Picture:
    """A PNG, its title, and what it shows."""

    png: bytes
    title: str
    words: str


def page(report: Report, pictures: Sequence[Picture], best: str | None) -> str:
    """Return the page; `best` is the text of best.yaml."""
    return document(
        f"Search {report.name}",
        _verdict(report),
        tiles(_numbers(report)),
        _held_out(report),
        section("Trials", table(*_trials(report))),
        _importance(report),
        *(_drawn(drawn) for drawn in pictures),
        _failures(report),
        section("The best as a run file", code(best)) if best else "",
    )


def _verdict(report: Report) -> str:
    best = report.best
    if best is None:
        said = "No trial has a result."
    else:
        said = f"The best is trial {best.trial}: {report.metric} {number(best.metric)}."
    notes = "".join(f"<li>{text(note)}</li>" for note in report.notes)
    listed = f"<ul>{notes}</ul>" if notes else ""
    style = "verdict stops" if best is None else "verdict"
    return f'<div class="{style}"><b>{text(said)}</b> {text(counted(report.states))}.{listed}</div>'


def _numbers(report: Report) -> Iterator[tuple[str, str]]:
    best, costs = report.best, report.costs
    if best is not None:
        yield number(best.metric), f"{report.metric} of the best"
        if best.held_out is not None:
            yield number(best.held_out), f"{report.held_out_metric} of the best, held out"
    yield taken(costs.used_hours, costs.unit), "used"
    if costs.alone_hours is not None and costs.saved_hours is not None:
        yield taken(costs.alone_hours, costs.unit), "one trial at a time, as estimated"
        yield taken(costs.saved_hours, costs.unit), "saved"
    yield short(costs.trial_tokens), "tokens trained on"


def _held_out(report: Report) -> str:
    measured = [row for row in report.rows if row.held_out is not None]
    if not measured:
        words = "Nothing was held out: the numbers here are those that the search chose by."
        return section("Held out", paragraph(words))
    words = (
        f"The best trials were measured at the end on what no trial had seen: {report.holdout}."
        " A search keeps the luckiest of many, so its own number is too good; the held-out one is"
        " what to expect."
    )
    columns = [
        ("trial", PLACE),
        (f"{report.metric} in the search", NUMBER),
        (f"{report.held_out_metric}, held out", NUMBER),
        ("published as", PLACE),
    ]
    rows = [[r.trial, number(r.metric), number(r.held_out), r.adapter or "–"] for r in measured]
    pointed = f"{report.alias} points at the best one." if report.alias else ""
    return section(
        "Held out", paragraph(words), table(columns, rows), paragraph(pointed) if pointed else ""
    )


def _trials(report: Report) -> tuple[list[tuple[str, str]], list[list[str]]]:
    named = titles(report.keys)
    columns = [("", NUMBER), ("trial", PLACE), ("", PLACE), (report.metric, NUMBER)]
    columns += [("steps", NUMBER), *((title, PLACE) for title in named.values())]
    return columns, [_cells(row, list(named)) for row in report.rows]


def _cells(row: Row, keys: list[str]) -> list[str]:
    values = [shown(row.values[key]) if key in row.values else "–" for key in keys]
    place = "" if row.place is None else str(row.place)
    return [place, row.trial, row.state, number(row.metric), f"{row.steps:,}", *values]


def _importance(report: Report) -> str:
    found = report.importance
    if found.why_not:
        return section("What mattered", paragraph(f"Not said: {found.why_not}."))
    bars = [
        meter(
            knob.share,
            f"{knob.key}: {knob.share:.0%}"
            + ("" if knob.stands_out else f"; chance gives as much in {knob.by_chance:.0%}"),
        )
        for knob in found.knobs
    ]
    method = f"{found.method[0].upper()}{found.method[1:]}. {found.trials} trials."
    return section("What mattered", *bars, paragraph(method, soft=True))


def _drawn(drawn: Picture) -> str:
    data = b64encode(drawn.png).decode("ascii")
    return section(drawn.title, paragraph(drawn.words), picture(data, drawn.title))


def _failures(report: Report) -> str:
    rows = [[row.trial, f"{row.steps:,}", row.error] for row in report.rows if row.error]
    columns = [("trial", PLACE), ("step", NUMBER), ("error", TEXT)]
    return section("Failed trials", table(columns, rows))
