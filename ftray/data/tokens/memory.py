"""Tokenized rows that were never in a shard: a few, for an eval."""

from collections.abc import Callable, Sequence

import numpy as np

from ftray.data.rendering.chat import Tokens
from ftray.data.tokens.columns import Columns, ColumnsBuilder, Flags, Ints, columns_of


class MemoryRows:
    """Rows by key, which is their number here."""

    def __init__(self, rows: Sequence[Tokens], source: int = 0) -> None:
        self._ids = [np.array(row.ids, np.int32) for row in rows]
        self._trained = [np.frombuffer(row.trained, np.uint8).view(np.bool_) for row in rows]
        builder = ColumnsBuilder()
        for line, row in enumerate(rows, start=1):
            builder.add(line, [row])
        self.columns: Columns = columns_of(builder.to_bytes(), source)

    def ids(self, key: int) -> Ints:
        """Token ids of a row. [tokens]"""
        return self._ids[key]

    def trained(self, key: int) -> Flags:
        """Which tokens of a row are learned. [tokens]"""
        return self._trained[key]

    def place(self, key: int) -> str:
        """Name a row."""
        return f"row {key + 1}"

    def remembered(self, name: str, find: Callable[[], Flags]) -> Flags:
        """Find it out: there is nowhere to keep it."""
        return find()
