"""An HTML page and its pieces. Whatever comes from data goes through `text`."""

import html
import re
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from typing import Protocol

from ftray.data.report.style import CSS

NUMBER, TEXT, PLACE = "number", "text", "place"  # how a table's column is set


class Passage(Protocol):
    """Some text, and the place that it is from."""

    @property
    def place(self) -> str:
        """As people look for it."""

    @property
    def text(self) -> str:
        """Empty where it is not shown."""


def text(value: str) -> str:
    """Make a text safe to stand anywhere in a page; control characters become visible."""
    return html.escape(_CONTROLS.sub(_visible, value), quote=True)


def short(count: int) -> str:
    """Write a number in little room: 12k, 3.4M."""
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if count >= size:
            return f"{count / size:.1f}".removesuffix(".0") + letter
    return str(count)


def document(title: str, *parts: str) -> str:
    """A whole page: no script, no network, nothing beside it."""
    body = "\n".join(part for part in parts if part)
    return _PAGE.format(title=text(title), css=CSS, body=body)


def section(title: str, *parts: str) -> str:
    """Put parts under a heading; nothing where all are empty."""
    body = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{text(title)}</h2>\n{body}\n</section>" if body else ""


def paragraph(words: str, *, soft: bool = False) -> str:
    """A sentence or two."""
    return f'<p class="soft">{text(words)}</p>' if soft else f"<p>{text(words)}</p>"


def heading(words: str) -> str:
    """A small heading within a section."""
    return f"<h3>{text(words)}</h3>"


def tiles(values: Iterable[tuple[str, str]]) -> str:
    """The numbers that matter most: (number, what it is)."""
    made = [
        f'<div class="tile"><b>{text(n)}</b><span>{text(what)}</span></div>' for n, what in values
    ]
    return f'<div class="tiles">{"".join(made)}</div>'


def table(columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns are (title, how it is set)."""
    if not rows:
        return ""
    head = "".join(f'<th class="{kind}">{text(title)}</th>' for title, kind in columns)
    body = "".join(f"<tr>{_cells(columns, row)}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def meter(share: float, words: str) -> str:
    """A share as a bar, with what it is of."""
    filled = f'<i style="width:{min(1.0, share):.1%}"></i>'
    return f'<p class="soft">{text(words)}</p><div class="meter">{filled}</div>'


def figures(drawn: Iterable[tuple[str, str, str]]) -> str:
    """Pictures beside each other: (svg, title, explanation); empty ones are left out."""
    made = [
        f"<figure><figcaption><b>{text(title)}</b> {text(words)}</figcaption>{svg}</figure>"
        for svg, title, words in drawn
        if svg
    ]
    return f'<div class="charts">{"".join(made)}</div>' if made else ""


def picture(data: str, words: str) -> str:
    """A PNG, given in base64, that lies in the page itself; `words` are for who cannot see it."""
    return (
        f'<figure class="png"><img src="data:image/png;base64,{data}" alt="{text(words)}"></figure>'
    )


def code(words: str) -> str:
    """Lines to copy."""
    return f'<div class="row"><pre>{text(words)}</pre></div>'


def side_by_side(rows: Sequence[Passage]) -> str:
    """Texts beside each other; where there are two, the words that differ are marked."""
    shown = [text(row.text) for row in rows]
    if len(rows) == 2 and all(row.text for row in rows):
        shown = _marked(rows[0].text, rows[1].text)
    made = [
        f'<div class="row"><span class="soft">{text(row.place)}</span>'
        + (f'<pre dir="auto">{words}</pre>' if words else "")
        + "</div>"
        for row, words in zip(rows, shown, strict=True)
    ]
    return f'<div class="pair">{"".join(made)}</div>'


_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{css}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{body}
</main>
</body>
</html>
"""

_CONTROLS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def _visible(found: re.Match[str]) -> str:
    """Show what would change how the page is read, as direction marks do, by its number."""
    return f"⟨{ord(found[0]):04X}⟩"


def _cells(columns: Sequence[tuple[str, str]], row: Sequence[str]) -> str:
    kinds = [kind for _, kind in columns]
    return "".join(
        f'<td class="{_STATES.get(cell, kind)}">{text(cell)}</td>'
        for kind, cell in zip(kinds, row, strict=True)
    )


_STATES = {"kept": "ok", "broken": "bad"}


def _marked(left: str, right: str) -> list[str]:
    words = [re.findall(r"\s+|\w+|[^\w\s]", side) for side in (left, right)]
    shown: list[list[str]] = [[], []]
    steps = SequenceMatcher(None, words[0], words[1], autojunk=False).get_opcodes()
    is_cut = any(side.endswith("…") for side in (left, right))
    for step, (kind, *places) in enumerate(steps):
        # where a text was cut it differs from the other, but the rows may not
        is_same = kind == "equal" or (is_cut and step >= len(steps) - 2 and step > 1)
        for number, side in enumerate(shown):
            part = text("".join(words[number][places[2 * number] : places[2 * number + 1]]))
            side.append(part if is_same or not part else f"<mark>{part}</mark>")
    return ["".join(side) for side in shown]
