"""Data: rows as the model sees them, and the report on all of them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from ftray.screen.tables import FEW, fact_list, new_table

if TYPE_CHECKING:
    from ftray.data.preview import PreviewRow
    from ftray.data.report.quality import Quality, SetQuality
    from ftray.train.examine import Examined


def preview(found: Sequence["PreviewRow"]) -> RenderableType:
    """Rows as the model sees them: what is trained stands between « and », and in green."""
    return Group(*(_preview_row(row) for row in found))


def report(found: "Examined") -> RenderableType:
    """What the data is like, on one screen, and what it comes to; the rest is on the page."""
    quality, verdict = found.quality, found.verdict
    table = new_table("", "rows", "tokens", "learned", "median", "longest", "bad rows")
    for name, part in (("train", quality.train), ("eval", quality.eval)):
        if part is not None:
            table.add_row(*_set_cells(name, part))
    said = "nothing stops a run on this data" if verdict.is_ok else "ftray train would refuse this:"
    return Group(
        table,
        "",
        fact_list(_data_facts(quality)),
        "",
        *(Text(f"note: {note}", style="yellow") for note in verdict.notes),
        Text(said, style="green" if verdict.is_ok else "bold red"),
        *(Text(f"  {stop}", style="red") for stop in verdict.stops),
        f"page: {found.page}",
    )


def _preview_row(row: "PreviewRow") -> RenderableType:
    text = Text(f"── {row.source}: {row.tokens} tokens, {row.trained} trained\n", style="dim")
    for piece in row.pieces:
        if piece.trained:
            text.append("«", style="dim").append(piece.text, style="green").append("»", style="dim")
        else:
            text.append(piece.text)
    return text.append("\n")


def _set_cells(name: str, part: "SetQuality") -> tuple[str, ...]:
    lengths = part.lengths
    ends = ("–", "–") if lengths is None else (f"{lengths.median:,}", f"{lengths.max:,}")
    counts = (f"{part.rows:,}", f"{part.tokens:,}", f"{part.label_share:.1%}")
    return name, *counts, *ends, f"{part.bad.count:,}"


def _data_facts(found: "Quality") -> dict[str, str]:
    train, overlap = found.train, found.overlap
    facts = {}
    if train.lengths is not None:
        bars = _sparkline(train.length_bars.counts)
        facts["lengths"] = f"{train.lengths.min:,} {bars} {train.lengths.max:,} tokens a row"
    facts["too long"] = (
        f"{train.overflow.too_long:,} over data.max_length={found.max_length} ({found.overflow})"
    )
    if (filling := train.filling) is not None:
        full = filling.packed if filling.packing else 1 - filling.padding
        facts["batches"] = f"{full:.1%} of all positions filled, {filling.steps:,} steps an epoch"
    near = "" if train.repeats.near is None else f", {train.repeats.near:,} like one"
    facts["repeats"] = f"{train.repeats.exact:,} equal to an earlier row{near}"
    if overlap is not None:
        near = "" if overlap.near is None else f", {overlap.near:,} more rows like one"
        facts["eval in train"] = f"{overlap.prompts:,} of {overlap.rows:,} prompts{near}"
    facts |= {f"bad: {reason}": f"{n:,}" for reason, n in list(train.bad.reasons.items())[:FEW]}
    return facts


def _sparkline(counts: Sequence[int]) -> str:
    heights = [-(-count * (len(_BLOCKS) - 1) // max(counts)) for count in counts]
    return "".join(_BLOCKS[height] for height in heights).strip()


_BLOCKS = " ▁▂▃▄▅▆▇█"
