"""Which rows of a token set are trained on, and which are set aside to measure with."""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from ftray.config.data import DataConfig
from ftray.data.batching.samples import Overflow, Samples, samples_of
from ftray.data.duplicates import exact, near
from ftray.data.tokens.columns import Columns, Flags, TokenRows
from ftray.errors import DataError


class TokenTable(TokenRows, Protocol):
    """Tokenized rows with their columns."""

    @property
    def columns(self) -> Columns:
        """The columns of all rows."""

    def remembered(self, name: str, find: Callable[[], Flags]) -> Flags:
        """Return what was once found out of each row, finding it now if it never was."""


def training_samples(rows: TokenTable, data: DataConfig) -> tuple[Samples, Overflow]:
    """Return what is trained on, without duplicates if the config says so and without eval rows."""
    columns = rows.columns
    if data.duplicates == "exact":
        columns = columns.at(~exact(columns))
    elif data.duplicates == "near":
        columns = columns.at(~rows.remembered("near-duplicates", lambda: near(rows.columns, rows)))
    return fitted(columns.at(~set_aside(columns, data)), rows, data)


def eval_samples(columns: Columns, rows: TokenRows, data: DataConfig) -> tuple[Samples, Overflow]:
    """Return what is measured: all rows of an eval set, or those set aside of a training set."""
    if data.eval_fraction is None:
        return fitted(columns, rows, data)
    chosen = columns.at(set_aside(columns, data))
    if not len(chosen):
        raise DataError(
            f"data.eval_fraction={data.eval_fraction} of {len(columns)} rows sets none aside",
            "raise it, or name eval data with data.eval",
        )
    return fitted(chosen, rows, data)


def set_aside(columns: Columns, data: DataConfig) -> Flags:
    """Say of each row whether `data.eval_fraction` makes it an eval row.

    By the digest of its prompt: the same at any place in any file, and for all rows of one prompt.
    """
    share = data.eval_fraction or 0.0
    return columns.prompt_digest < np.uint64(int(share * 2**64))


def fitted(columns: Columns, rows: TokenRows, data: DataConfig) -> tuple[Samples, Overflow]:
    """Fit rows into `data.max_length`; DataError where that leaves nothing to learn."""
    samples, overflow = samples_of(columns, rows, data)
    if not len(samples):
        longest = columns.length.max(initial=0)
        raise DataError(
            f"no row has a token to learn within data.max_length={data.max_length}",
            f"raise data.max_length: the longest row has {longest} tokens",
        )
    return samples, overflow
