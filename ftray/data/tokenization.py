"""One range of rows into one token shard: the work of one task."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from ftray.data.chat import Renderer, Tokens
from ftray.data.files import Range, row_error
from ftray.data.manifest import REASONS, ShardRecord, publish_shard
from ftray.data.readers import BadRow, read_range
from ftray.data.shards import ShardBuilder
from ftray.errors import DataError


@dataclass(frozen=True)
class TokenizedRow:
    """A row that is fit for training, and the line that it comes from."""

    line: int
    tokens: Tokens


def make_shard(part: Range, renderer: Renderer, folder: str) -> ShardRecord:
    """Tokenize a range and publish its shard; DataError names the line that is bad."""
    builder, reasons = ShardBuilder(), Counter[str]()
    first_bad: list[tuple[int, str]] = []
    for row in tokenize(part, renderer):
        if isinstance(row, TokenizedRow):
            builder.add(row.line, row.tokens)
            continue
        if renderer.fails_on_bad_rows:
            raise row_error(part.path, part.kind, row.line, row.reason, row.hint)
        reasons[_kind(row.reason)] += 1
        if len(first_bad) < REASONS:
            first_bad.append((row.line, row.reason))
    data = builder.to_bytes()
    record = ShardRecord(
        part.number,
        part.source,
        rows=builder.rows,
        tokens=builder.tokens,
        label_tokens=builder.label_tokens,
        bad_rows=reasons.total(),
        reasons=dict(reasons.most_common(REASONS)),
        first_bad=first_bad,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    publish_shard(folder, data, record)
    return record


def tokenize(part: Range, renderer: Renderer) -> Iterator[TokenizedRow | BadRow]:
    """Render the rows of a range; one that nothing can be learned from is bad too."""
    for row in read_range(part):
        if isinstance(row, BadRow):
            yield row
            continue
        try:
            yield TokenizedRow(row.line, renderer.render(row.values))
        except DataError as error:
            yield BadRow(row.line, error.message, error.hint)


def _kind(reason: str) -> str:
    return reason.partition(":")[0].partition(" (")[0]
