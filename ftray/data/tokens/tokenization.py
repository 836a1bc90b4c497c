"""One range of rows into token shards: the work of one task."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from ftray.data.reading.files import Range
from ftray.data.reading.readers import BadRow, RangeReader, Row
from ftray.data.rendering.chat import Renderer, Tokens
from ftray.data.rendering.examples import Form
from ftray.data.tokens.columns import MAX_ROWS
from ftray.data.tokens.demand import Gate
from ftray.data.tokens.manifest import REASONS, BadLine, ShardRecord, publish_shard, withdraw_shard
from ftray.data.tokens.shards import ShardBuilder
from ftray.errors import DataError

SHARD_TOKENS = 2**20  # 5 MB: seconds of work, so that training can start on the first of them


@dataclass(frozen=True)
class TokenizedRow:
    """A row that is fit for training: the line that it comes from, and what it became."""

    line: int
    tokens: list[Tokens]


class BadRowError(DataError):
    """The first bad row of a range, where bad rows are to end the run; its line is the range's."""

    def __init__(self, message: str, hint: str = "", line: int = 0) -> None:
        super().__init__(message, hint)
        self.line = line

    def __reduce__(self) -> tuple[type["BadRowError"], tuple[str, str, int]]:
        return BadRowError, (self.message, self.hint, self.line)


def make_shards(
    part: Range, renderer: Renderer, form: Form, folder: str, gate: Gate, *, shard_tokens: int
) -> Iterator[ShardRecord]:
    """Tokenize a range and publish its shards, one after the other.

    With `data.on_bad_row=fail` the first bad row raises BadRowError, and the shard that it would
    have been missing from is not published.
    """
    published = 0
    try:
        for shard in _made(part, renderer, form, gate, shard_tokens):
            publish_shard(folder, shard.tokens, shard.columns, shard.record)
            published += 1
            yield shard.record
    except BadRowError:
        raise
    except DataError:  # a file that changed while it was read: what came before is not of it
        for number in range(published):
            withdraw_shard(folder, part.number, number)
        raise


def _made(
    part: Range, renderer: Renderer, form: Form, gate: Gate, shard_tokens: int
) -> Iterator["_Finished"]:
    draft = _Draft(part, 0, 0)
    reader = RangeReader(part)
    for row in tokenize(reader, renderer, form):
        if isinstance(row, BadRow):
            if renderer.fails_on_bad_rows:
                raise BadRowError(row.reason, row.hint, row.line)
            draft.leave_out(row)
            continue
        if draft.is_full(row, shard_tokens):
            gate.wait(part, draft.number)
            yield draft.finished(row.line - 1, is_last=False)
            draft = _Draft(part, draft.number + 1, row.line - 1)
        draft.add(row)
    gate.wait(part, draft.number)
    yield draft.finished(reader.lines, is_last=True)


def tokenize(
    reader: RangeReader, renderer: Renderer, form: Form
) -> Iterator[TokenizedRow | BadRow]:
    """Render the rows of a range; one that nothing can be learned from is bad too."""
    rows = iter(reader)
    while several := list(islice(rows, _ROWS_AT_ONCE)):
        good = [row for row in several if isinstance(row, Row)]
        rendered = iter(renderer.render_batch([row.values for row in good], form))
        for row in several:
            yield row if isinstance(row, BadRow) else _tokenized(row.line, next(rendered))


_ROWS_AT_ONCE = 256


def _tokenized(line: int, rendered: Sequence[Tokens] | DataError) -> TokenizedRow | BadRow:
    if isinstance(rendered, DataError):
        return BadRow(line, rendered.message, rendered.hint)
    return TokenizedRow(line, list(rendered))


@dataclass(frozen=True)
class _Finished:
    """A shard as it will be published."""

    tokens: bytes
    columns: bytes
    record: ShardRecord


class _Draft:
    """A shard before it is published, and what was left out of it."""

    def __init__(self, part: Range, number: int, lines_before: int) -> None:
        self.number = number
        self._part = part
        self._lines_before = lines_before
        self._builder = ShardBuilder()
        self._source_rows = 0
        self._reasons = Counter[str]()
        self._first_bad: list[BadLine] = []

    def is_full(self, row: TokenizedRow, shard_tokens: int) -> bool:
        """Say whether the row belongs to the next shard."""
        rows = self._builder.rows + len(row.tokens)
        return self._builder.tokens >= shard_tokens or rows > MAX_ROWS

    def add(self, row: TokenizedRow) -> None:
        """Append a row."""
        self._source_rows += 1
        self._builder.add(row.line, row.tokens)

    def leave_out(self, row: BadRow) -> None:
        """Count a bad row, and remember the first ones."""
        self._reasons[_kind(row.reason)] += 1
        if len(self._first_bad) < REASONS:
            self._first_bad.append(BadLine(row.line, row.reason, row.hint))

    def finished(self, lines: int, *, is_last: bool) -> _Finished:
        """Return the shard's files and record; `lines` of the range have been read by its end."""
        tokens, columns = self._builder.to_bytes(), self._builder.columns_to_bytes()
        record = ShardRecord(
            self._part.number,
            self.number,
            is_last,
            self._part.source,
            lines=lines - self._lines_before,
            source_rows=self._source_rows,
            rows=self._builder.rows,
            tokens=self._builder.tokens,
            label_tokens=self._builder.label_tokens,
            bad_rows=self._reasons.total(),
            reasons=dict(self._reasons.most_common(REASONS)),
            first_bad=self._first_bad,
            bytes=len(tokens),
            columns_bytes=len(columns),
            sha256=hashlib.sha256(tokens).hexdigest(),
        )
        return _Finished(tokens, columns, record)


def _kind(reason: str) -> str:
    return reason.partition(":")[0].partition(" (")[0]
