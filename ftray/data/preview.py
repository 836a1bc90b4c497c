"""The first rows as the model will see them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ftray.config.run import DataConfig
from ftray.data.chat import Piece, Renderer
from ftray.data.files import SourceFile, find_sources, place, whole
from ftray.data.renderer import load_renderer
from ftray.data.tokenization import TokenizedRow, tokenize
from ftray.errors import DataError


@dataclass(frozen=True)
class PreviewRow:
    """One row's text in pieces, learned or not, and its counts of tokens; `source` is its line."""

    source: str
    pieces: list[Piece]
    tokens: int
    trained: int


def preview_rows(
    paths: Sequence[str], data: DataConfig, model_folder: Path, count: int
) -> list[PreviewRow]:
    """Render the first `count` rows; bad ones raise DataError, or are left out. Needs no Ray."""
    renderer = load_renderer(model_folder, data)
    rows = (row for source in find_sources(paths) for row in _preview(source, renderer))
    return list(islice(rows, count))


def _preview(source: SourceFile, renderer: Renderer) -> Iterator[PreviewRow]:
    for row in tokenize(whole(source), renderer):
        where = place(source.path, source.kind, row.line)
        if isinstance(row, TokenizedRow):
            tokens = row.tokens
            pieces = renderer.pieces(tokens)
            yield PreviewRow(where, pieces, len(tokens.ids), sum(tokens.trained))
        elif renderer.fails_on_bad_rows:
            raise DataError(f"{where}: {row.reason}", row.hint)
