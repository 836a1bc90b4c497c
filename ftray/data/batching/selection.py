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
    """Return what is measured: the rows of an eval set, or those set aside of a training set."""
    chosen = columns.at(measured_rows(columns, data))
    if not len(chosen) and data.eval_fraction is not None:
        raise DataError(
            f"data.eval_fraction={data.eval_fraction} of {len(columns)} rows sets none aside",
            "raise it, or name eval data with data.eval",
        )
    if not len(chosen) and data.holdout is not None:
        raise DataError(
            f"data.holdout takes all of {len(columns)} eval rows", "lower data.holdout.share"
        )
    return fitted(chosen, rows, data)


def holdout_samples(
    columns: Columns, rows: TokenRows, data: DataConfig
) -> tuple[Samples, Overflow]:
    """Return what a search's best are measured with, of the set that `data.holdout.of` names."""
    chosen = columns.at(_between(columns, *_held_out(data)))
    if not len(chosen):
        raise DataError(f"data.holdout of {len(columns)} rows holds none out", "raise its share")
    return fitted(chosen, rows, data)


def set_aside(columns: Columns, data: DataConfig) -> Flags:
    """Say of each row of a training set whether it is not trained on: an eval row, or held out.

    By the digest of its prompt: the same at any place in any file, and for all rows of one prompt.
    """
    ends_in_train = data.holdout is not None and data.holdout.of == "train"
    return _between(columns, 0.0, _held_out(data)[1] if ends_in_train else data.eval_fraction or 0)


def measured_rows(columns: Columns, data: DataConfig) -> Flags:
    """Say of each row of an eval set, or of the set it is cut from, whether it is measured."""
    held = 0.0
    if data.holdout is not None and data.holdout.of == "eval":
        held = _held_out(data)[1]
    if data.eval_fraction is None:
        return ~_between(columns, 0.0, held)
    return _between(columns, held, data.eval_fraction)


def _held_out(data: DataConfig) -> tuple[float, float]:
    """From where to where, of all digests, rows are held out of the set that `of` names.

    The eval rows of a training set have the lowest digests, and the held-out ones the lowest of
    these, or those that follow them.
    """
    if data.holdout is None:
        return 0.0, 0.0
    evals, share = data.eval_fraction, data.holdout.share
    if data.holdout.of == "eval":
        return 0.0, share * (1.0 if evals is None else evals)
    start = evals or 0.0
    return start, start + share * (1.0 - start)


def _between(columns: Columns, low: float, high: float) -> Flags:
    start, end = (np.uint64(min(int(share * 2**64), 2**64 - 1)) for share in (low, high))
    flags: Flags = (columns.prompt_digest >= start) & (columns.prompt_digest < end)
    return flags


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
