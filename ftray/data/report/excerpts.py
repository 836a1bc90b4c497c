"""Rows that a report names: where they are, and how their text begins."""

from collections.abc import Callable
from dataclasses import dataclass

from ftray.data.tokens.columns import Columns, TokenRows

Decode = Callable[[list[int]], str]


@dataclass(frozen=True)
class Excerpt:
    """A row's place and some of its text."""

    place: str
    text: str


@dataclass(frozen=True)
class Reader:
    """Reads rows by number, as text."""

    columns: Columns
    rows: TokenRows
    decode: Decode

    def place(self, number: int) -> str:
        """Name the line that a row comes from."""
        return self.rows.place(int(self.columns.key[number]))

    def text(self, number: int, start: int = 0, most: int = 1024) -> str:
        """Return the text of at most so many tokens of a row."""
        ids = self.rows.ids(int(self.columns.key[number]))[start : start + most]
        return self.decode(ids.tolist())

    def answer(self, number: int, most: int = 256) -> str:
        """Return the text from the first learned token on."""
        return self.text(number, int(self.columns.first_label[number]), most)

    def excerpt(self, number: int) -> Excerpt:
        """Return a row's place and how it begins."""
        return Excerpt(self.place(number), _cut(self.text(number, most=256)))

    def answer_excerpt(self, number: int) -> Excerpt:
        """Return a row's place and how its answer begins."""
        return Excerpt(self.place(number), _cut(self.answer(number)))


def side_by_side(left: Reader, first: int, right: Reader, second: int) -> list[Excerpt]:
    """Return two rows' texts from shortly before they begin to differ."""
    texts = [left.text(first), right.text(second)]
    start = _start(*texts)
    cut = [_cut(f"…{text[start:]}" if start else text) for text in texts]
    return [Excerpt(left.place(first), cut[0]), Excerpt(right.place(second), cut[1])]


_LONGEST = 400
_BEFORE = 100
_LONGEST_WORD = 20


def _start(left: str, right: str) -> int:
    """Find a word's begin before the first difference; 0 where there is none."""
    pairs = enumerate(zip(left, right, strict=False))
    differs = next((at for at, (one, other) in pairs if one != other), 0)
    start = max(0, differs - _BEFORE)
    return max(start, left.find(" ", start, start + _LONGEST_WORD) + 1) if start else 0


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
