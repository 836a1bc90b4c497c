"""Rows that repeat others, exactly or nearly, and eval rows that occur in the training data.

Near duplicates are pairs whose MinHash signatures agree in 80% of their places. Candidates come
from locality-sensitive hashing (Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets",
chapter 3.4): two signatures meet if all r places of one of b bands are equal, at likeness s with
probability 1 - (1 - s^r)^b. Here b = 12, r = 5:

    likeness s     0.3    0.5    0.6    0.7    0.8    0.9
    they meet     2.9%  31.7%  62.1%  89.0%  99.1%  99.99%

Whoever meets is compared over the whole signature, so a chance meeting costs time, not rows.
"""

from collections.abc import Iterator

import numpy as np

from ftray.data.signatures import (
    PERMUTATIONS,
    Signatures,
    blocks,
    common_ngrams,
    sign,
)
from ftray.data.tokens.columns import Columns, Digests, Flags, Longs, TokenRows

LIKENESS = 0.8


def exact(columns: Columns) -> Flags:
    """Say which rows repeat an earlier one, ids and labels alike. [rows]"""
    return _repeats(columns.digest)


def near(columns: Columns, rows: TokenRows) -> Flags:
    """Say which rows repeat or resemble an earlier one. [rows]"""
    signatures = signatures_of(columns, rows, common_ngrams(columns, rows))
    return exact(columns) | (earlier_like(signatures, origins(columns)) >= 0)


def signatures_of(columns: Columns, rows: TokenRows, common: Digests) -> Signatures:
    """Return the signatures of all rows, 256 bytes each; about 12 µs a row of 110 tokens."""
    signatures = np.empty((len(columns), PERMUTATIONS), np.uint32)
    done = 0
    for block in blocks(columns, rows):
        signed = sign(block, common)
        signatures[done : done + len(signed)] = signed
        done += len(signed)
    return signatures


def origins(columns: Columns) -> Longs:
    """Number the source rows: tokenized rows that a template made of one have the same."""
    lines, prompts = columns.line, columns.prompt_digest
    changes = (lines[1:] != lines[:-1]) | (prompts[1:] != prompts[:-1])
    return np.concatenate([np.zeros(min(1, len(columns)), np.int64), np.cumsum(changes)])


def earlier_like(signatures: Signatures, origin: Longs) -> Longs:
    """Return the number of an earlier row that each row is like, -1 where none is. [rows]

    Which one does not depend on anything but the rows and their order. In a band's bucket a row is
    compared with the first and with the one before it, so the cost is linear in the rows.
    """
    like = np.full(len(signatures), len(signatures), np.int64)
    for band in _bands(signatures):
        order = _in_company(band)
        later, before = order[1:], order[:-1]
        meets = band[later] == band[before]
        starts = np.flatnonzero(np.concatenate([[True], ~meets]))[: len(order)]
        first = np.repeat(order[starts], np.diff(np.append(starts, len(order))))[1:]
        for earlier in (first, before):
            pairs = meets & (like[later] > earlier) & (origin[later] != origin[earlier])
            rows, others = later[pairs], earlier[pairs]
            alike = _alike(signatures, rows, signatures, others)
            np.minimum.at(like, rows[alike], others[alike])
    like[like == len(signatures)] = -1
    return like


def first_of_group(like: Longs) -> Longs:
    """Follow each row's earlier one to the first of all; a row that is like none is its own."""
    root = np.where(like < 0, np.arange(len(like)), like)
    while not np.array_equal(root, following := root[root]):
        root = following
    return root


def overlap(train: Columns, evals: Columns) -> Flags:
    """Say which eval rows have a prompt that occurs in the training data. [eval rows]"""
    return np.isin(evals.prompt_digest, train.prompt_digest)


def whole_overlap(train: Columns, evals: Columns) -> Flags:
    """Say which eval rows are training rows too, answers included. [eval rows]"""
    return np.isin(evals.digest, train.digest)


def near_overlap(train: Signatures, evals: Signatures) -> Longs:
    """Return the number of a training row that each eval row is like, -1 where none is."""
    like = np.full(len(evals), -1, np.int64)
    if not len(train) or not len(evals):
        return like
    for band, asked in zip(_bands(train), _bands(evals), strict=True):
        order = np.argsort(band, kind="stable")
        starts = np.searchsorted(band, asked, sorter=order)
        for step in range(_TRIED):  # a bucket is short, or full of rows that are alike
            at = np.minimum(starts + step, len(order) - 1)
            rows = np.flatnonzero((like < 0) & (band[order[at]] == asked))
            others = order[at[rows]]
            alike = _alike(evals, rows, train, others)
            like[rows[alike]] = others[alike]
    return like


_BANDS, _PLACES = 12, 5
_TRIED = 4
_PAIRS = 1 << 14


def _repeats(digests: Digests) -> Flags:
    order = np.argsort(digests, kind="stable")
    repeats = np.zeros(len(digests), np.bool_)
    repeats[order[1:]] = digests[order[1:]] == digests[order[:-1]]
    return repeats


def _bands(signatures: Signatures) -> Iterator[Digests]:
    """Hash each band of the signatures, one band at a time: 8 bytes a row."""
    if not len(signatures):
        return
    for band in range(_BANDS):
        hashes = np.zeros(len(signatures), np.uint64)
        for place in range(band * _PLACES, (band + 1) * _PLACES):
            hashes = (hashes ^ signatures[:, place]) * np.uint64(0x9E3779B97F4A7C15)
            hashes ^= hashes >> np.uint64(29)
        yield hashes


def _in_company(band: Digests) -> Longs:
    """Return the rows whose bucket has others in it, bucket by bucket, in order within."""
    order = np.argsort(band, kind="stable")
    ordered = band[order]
    meets = ordered[1:] == ordered[:-1]
    kept: Longs = order[np.append(False, meets) | np.append(meets, False)[: len(order)]]
    return kept


def _alike(left: Signatures, rows: Longs, right: Signatures, others: Longs) -> Flags:
    """Compare pairs of rows over their whole signatures, some at a time. [pairs]"""
    alike = np.empty(len(rows), np.bool_)
    for start in range(0, len(rows), _PAIRS):
        part = slice(start, start + _PAIRS)
        equal = left[rows[part]] == right[others[part]]
        alike[part] = np.count_nonzero(equal, axis=1) >= LIKENESS * left.shape[1]
    return alike
