"""Source rows, read here and now: for checks before Ray starts, and for evals."""

from collections.abc import Iterator, Sequence
from itertools import chain, islice

from ftray.config.data import DataConfig, SourceConfig
from ftray.data.reading.files import Range, SourceFile, find_files, head_of, plan_ranges, row_error
from ftray.data.reading.readers import BadRow, RangeReader, Row, Values
from ftray.data.rendering.detect import recognise
from ftray.data.rendering.examples import Form, parse_example
from ftray.errors import DataError


def check_sources(sources: Sequence[SourceConfig], data: DataConfig) -> list[Form]:
    """Find the files, and parse the first rows of some; DataError names what is wrong.

    Returns what the rows of each source hold. Where bad rows are dropped, a file is wrong if all
    of its first rows are. No tokenizer is needed, nor anything heavy imported.
    """
    return forms_of(sources, find_files(sources), data)


def forms_of(
    sources: Sequence[SourceConfig], files: Sequence[SourceFile], data: DataConfig
) -> list[Form]:
    """Do what `check_sources` does, with files that are found already."""
    forms = []
    for number, source in enumerate(sources):
        ours = [file for file in files if file.source == number]
        chosen = ours if len(ours) <= _FILES else ours[:: -(-len(ours) // _FILES)]
        heads = [(head_of(file), _first_rows(file)) for file in chosen]
        good = [row.values for _, rows in heads for row in rows if isinstance(row, Row)]
        form = recognise(good[:_FIRST_ROWS], source, data) if good else None
        for part, rows in heads:
            errors = [error for row in rows if (error := _error(part, 0, row, form, data))]
            if errors and (data.on_bad_row == "fail" or len(errors) == len(rows)):
                raise errors[0]
        if form:
            forms.append(form)
    return forms


def read_rows(sources: Sequence[SourceConfig], data: DataConfig) -> Iterator[tuple[Values, Form]]:
    """Yield the rows of all files in order; a bad one raises DataError, or is left out."""
    files = find_files(sources)
    forms = forms_of(sources, files, data)
    file, lines = -1, 0
    for part in plan_ranges(files):
        file, lines = part.file, lines if part.file == file else 0
        reader, form = RangeReader(part), forms[part.source]
        for row in reader:
            error = _error(part, lines, row, form, data)
            if isinstance(row, Row) and error is None:
                yield row.values, form
            elif error and data.on_bad_row == "fail":
                raise error
        lines += reader.lines


_FIRST_ROWS = 10
_FILES = 16  # of a source, evenly chosen: its first ones may all come from one day


def _first_rows(file: SourceFile) -> list[Row | BadRow]:
    rows = list(islice(RangeReader(head_of(file)), _FIRST_ROWS))
    if not rows:  # it may begin with blank lines, or with an empty row group
        readers = map(RangeReader, plan_ranges([file]))
        rows = list(islice(chain.from_iterable(readers), _FIRST_ROWS))
    if not rows:
        raise DataError(f"{file.path}: no rows in it", "each row is one training example")
    return rows


def _error(
    part: Range, before: int, row: Row | BadRow, form: Form | None, data: DataConfig
) -> DataError | None:
    """Say what is wrong with a row; `before` is how many lines of its file lie before the range."""
    where = (part.name, part.kind, before + row.line)
    if isinstance(row, BadRow):
        return row_error(*where, row.reason, row.hint)
    try:
        if form:
            parse_example(row.values, form, data)
    except DataError as error:
        return row_error(*where, error.message, error.hint)
    return None
