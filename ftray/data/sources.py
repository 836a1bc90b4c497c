"""Source rows, read here and now: for checks before Ray starts, and for evals."""

from collections.abc import Iterator, Sequence
from itertools import islice

from ftray.config.run import DataConfig
from ftray.data.examples import parse_example
from ftray.data.files import SourceFile, find_sources, row_error, whole
from ftray.data.readers import BadRow, Values, read_range
from ftray.errors import DataError


def check_sources(paths: Sequence[str], data: DataConfig) -> list[SourceFile]:
    """Find the files and parse the first rows of each; DataError names what is wrong.

    Where bad rows are dropped, a file is wrong if all of its first rows are. No tokenizer is
    needed, nor anything heavy imported.
    """
    sources = find_sources(paths)
    for source in sources:
        rows = list(islice(_parsed(source, data), _FIRST_ROWS))
        errors = [row for row in rows if isinstance(row, DataError)]
        if errors and (data.on_bad_row == "fail" or len(errors) == len(rows)):
            raise errors[0]
        if not rows:
            raise DataError(f"{source.path}: no rows in it")
    return sources


def read_rows(paths: Sequence[str], data: DataConfig) -> Iterator[Values]:
    """Yield the rows of all files in order; a bad one raises DataError, or is left out."""
    for source in find_sources(paths):
        for row in _parsed(source, data):
            if not isinstance(row, DataError):
                yield row
            elif data.on_bad_row == "fail":
                raise row


_FIRST_ROWS = 10


def _parsed(source: SourceFile, data: DataConfig) -> Iterator[Values | DataError]:
    for row in read_range(whole(source)):
        where = (source.path, source.kind, row.line)
        if isinstance(row, BadRow):
            yield row_error(*where, row.reason, row.hint)
            continue
        try:
            parse_example(row.values, data)
            yield row.values
        except DataError as error:
            yield row_error(*where, error.message, error.hint)
