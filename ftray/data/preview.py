"""The first rows as the model will see them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ftray.config.data import DataConfig, SourceConfig
from ftray.data.reading.files import SourceFile, find_files, place, plan_ranges, row_error
from ftray.data.reading.readers import BadRow, RangeReader
from ftray.data.rendering.chat import Piece, Renderer, Tokens
from ftray.data.rendering.examples import Form
from ftray.data.rendering.renderer import load_renderer
from ftray.data.sources import forms_of
from ftray.errors import DataError


@dataclass(frozen=True)
class PreviewRow:
    """A row of tokens as text, in pieces that are learned or not; `source` is where it is from."""

    source: str
    pieces: list[Piece]
    tokens: int
    trained: int


def preview_rows(
    sources: Sequence[SourceConfig],
    data: DataConfig,
    model_folder: Path,
    count: int,
    *,
    trust_remote_code: bool,
) -> list[PreviewRow]:
    """Render the first `count` source rows; bad ones raise DataError, or are left out.

    A source row that becomes several rows of tokens is shown as several. Needs no Ray.
    """
    files = find_files(sources)
    forms = forms_of(sources, files, data)
    renderer = load_renderer(model_folder, data, trust_remote_code=trust_remote_code)
    for form in forms:
        renderer.check(form)
    rows = (row for file in files for row in _previews(file, forms[file.source], renderer))
    return [block for blocks in islice(rows, count) for block in blocks]


def _previews(file: SourceFile, form: Form, renderer: Renderer) -> Iterator[list[PreviewRow]]:
    lines = 0  # of the file, before the range
    for part in plan_ranges([file]):
        reader = RangeReader(part)
        for row in reader:
            where = (part.name, part.kind, lines + row.line)
            try:
                if isinstance(row, BadRow):
                    raise DataError(row.reason, row.hint)
                rendered = renderer.render(row.values, form)
            except DataError as error:
                if renderer.fails_on_bad_rows:
                    raise row_error(*where, error.message, error.hint) from None
                continue
            yield _blocks(place(*where), rendered, renderer)
        lines += reader.lines


def _blocks(source: str, rendered: Sequence[Tokens], renderer: Renderer) -> list[PreviewRow]:
    count = len(rendered)
    return [
        PreviewRow(
            f"{source} ({number} of {count})" if count > 1 else source,
            renderer.pieces(row),
            len(row.ids),
            row.trained.count(1),
        )
        for number, row in enumerate(rendered, start=1)
    ]
