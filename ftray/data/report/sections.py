"""The sections of the report page, each a function from measures to HTML."""

from ftray.data.report.charts import bar_chart
from ftray.data.report.lengths import Filling, Spread
from ftray.data.report.markup import (
    NUMBER,
    PLACE,
    TEXT,
    figures,
    heading,
    meter,
    paragraph,
    section,
    side_by_side,
    table,
)
from ftray.data.report.quality import BadRows, Quality, SetQuality
from ftray.data.report.repeats import Group, Overlap, Repeats
from ftray.data.report.unusual import Odd


def lengths(quality: Quality, sets: list[tuple[str, SetQuality]]) -> str:
    """How long rows are, and what becomes of those that are too long."""
    line = (quality.max_length, "max_length")
    charts = [
        chart
        for title, part in sets
        for chart in (
            (bar_chart(part.length_bars, "tokens a row", line), f"{title}:", "tokens a row"),
            (
                bar_chart(part.label_bars, "learned tokens a row"),
                f"{title}:",
                "learned tokens a row",
            ),
        )
    ]
    rows = [
        [title, what, *_spread(found)]
        for title, part in sets
        for what, found in (("tokens", part.lengths), ("learned", part.labels))
        if found is not None
    ]
    numbers = [(name, NUMBER) for name in ("least", "5%", "median", "mean", "95%", "99%", "most")]
    said = [f"{title}: {_overflow(part, quality.overflow)}" for title, part in sets]
    return section(
        "Lengths",
        figures(charts),
        table([("", PLACE), ("of a row", TEXT), *numbers], rows),
        *(paragraph(words) for words in said if words),
    )


def _spread(found: Spread) -> list[str]:
    ends = (found.p95, found.p99, found.max)
    return [
        *(f"{n:,}" for n in (found.min, found.p5, found.median)),
        f"{found.mean:,.0f}",
        *(f"{n:,}" for n in ends),
    ]


def _overflow(part: SetQuality, overflow: str) -> str:
    found = part.overflow
    done = {
        "truncate": f"they are cut off there ({found.pieces:,} still have something to learn)",
        "split": f"they are split into {found.pieces:,} pieces with something to learn",
        "drop": "they are left out",
        "error": "they are refused",
    }[overflow]
    long = f"{found.too_long:,} of {found.rows:,} rows are longer than max_length: {done}."
    none = f" {found.unlearned:,} rows are left out since nothing to learn is left of them."
    return (long if found.too_long else "no row is longer than max_length.") + (
        none if found.unlearned else ""
    )


def batches(filling: Filling | None) -> str:
    """How an epoch fills its batches, packed and not."""
    if filling is None or not filling.packs:
        return ""
    chosen = "packing is on" if filling.packing else "packing is off"
    return section(
        "Batches",
        paragraph(f"{filling.steps:,} steps in an epoch; {chosen}."),
        meter(filling.packed, f"packed: {filling.packed:.1%} of all positions hold a token"),
        meter(
            1 - filling.padding,
            f"not packed: {1 - filling.padding:.1%}, as rows are padded to the longest beside them",
        ),
    )


def repeats(found: Repeats) -> str:
    """Rows that repeat others, with examples side by side."""
    near = "were not looked for" if found.near is None else f"are {found.near:,}"
    said = (
        f"{found.exact:,} rows repeat an earlier one exactly. Rows that only resemble one {near}:"
        " they share 80% of what is not common to most rows."
    )
    return section(
        "Repeated rows",
        paragraph(said),
        _groups("Equal rows", found.exact_groups),
        _groups("Rows alike", found.near_groups),
        _groups("The most frequent answers, equal rows counted once", found.answers),
    )


def overlap(found: Overlap | None) -> str:
    """Eval rows that occur in train."""
    if found is None:
        return ""
    near = "" if found.near is None else f", and {found.near:,} more resemble a training row"
    said = (
        f"Of {found.rows:,} eval rows {found.prompts:,} have a prompt that is in train,"
        f" {found.whole:,} of them with the same answer{near}."
    )
    pairs = [side_by_side(pair) for pair in found.pairs]
    return section("Eval rows that are in train", paragraph(said), *pairs)


def unusual(title: str, part: SetQuality) -> str:
    """Answers that stand out by length or script."""
    found = part.unusual
    if found is None:
        return ""
    least = max(2, round(found.usual.least))
    said = (
        f"Answers far longer than the others, over {found.usual.most:,.0f} tokens: {found.long:,}."
        f" Far shorter, under {least:,} tokens: {found.short:,}."
    )
    return section(
        f"Unusual answers: {title}",
        paragraph(said),
        _odd("Longest", found.longest),
        _odd("Shortest", found.shortest),
        _scripts(found.scripts),
        _odd("In a rare script", found.rare),
    )


def bad_rows(title: str, found: BadRows) -> str:
    """Rows that cannot be used, by reason and by place."""
    if not found.count:
        return ""
    reasons = [[reason, f"{count:,}"] for reason, count in found.reasons.items()]
    first = [[bad.place, bad.reason, bad.hint] for bad in found.first]
    left = found.count - len(first)
    return section(
        f"Bad rows: {title}",
        table([("reason", TEXT), ("rows", NUMBER)], reasons),
        heading("Where they are"),
        table([("place", PLACE), ("reason", TEXT), ("what to do", TEXT)], first),
        paragraph(f"and {left:,} more", soft=True) if left else "",
    )


def _groups(title: str, groups: list[Group]) -> str:
    if not groups:
        return ""
    parts = [paragraph(_where(group), soft=True) + side_by_side(group.examples) for group in groups]
    return heading(title) + "".join(parts)


def _where(group: Group) -> str:
    more = group.rows - len(group.places)
    said = f"{group.rows:,} rows: {', '.join(group.places)}"
    return f"{said} and {more:,} more" if more else said


def _scripts(counts: dict[str, int]) -> str:
    sampled = sum(counts.values())
    if len(counts) == 1:
        return paragraph(
            f"All of {sampled:,} answers looked at are in {next(iter(counts))} script."
        )
    rows = [[name, f"{count:,}", f"{count / sampled:.2%}"] for name, count in counts.items()]
    columns = [("script", TEXT), ("answers", NUMBER), ("share", NUMBER)]
    return heading(f"Scripts of {sampled:,} answers") + table(columns, rows)


def _odd(title: str, rows: list[Odd]) -> str:
    if not rows:
        return ""
    cells = [[odd.row.place, odd.what, odd.row.text] for odd in rows]
    columns = [("place", PLACE), ("", PLACE), ("answer", TEXT)]
    return heading(title) + table(columns, cells)
