"""MinHash signatures of tokenized rows: short arrays whose agreement estimates likeness.

Likeness is the Jaccard index of two rows' sets of 5-grams of token ids: shared ones over all. The
share of equal places of two MinHash signatures estimates it without bias, with a standard error of
at most sqrt(J (1 - J) / PERMUTATIONS), 0.05 at J = 0.8 (Broder 1997, "On the resemblance and
containment of documents").
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rensa import RMinHash

from ftray.data.tokens.columns import Columns, Digests, Flags, Ints, Longs, TokenRows

Signatures = npt.NDArray[np.uint32]  # [rows, PERMUTATIONS]

PERMUTATIONS = 64  # 256 bytes a row
NGRAM = 5
MOST_TOKENS = 1 << 20  # of one row: a longer one is known by its beginning


@dataclass(frozen=True)
class Block:
    """Some rows' ids, one after the other: row i has `ids[ends[i]:ends[i + 1]]`."""

    ids: Ints  # [tokens]
    ends: npt.NDArray[np.integer]  # [rows + 1]


def blocks(columns: Columns, rows: TokenRows, most: int = MOST_TOKENS) -> Iterator[Block]:
    """Read rows in blocks of about 262,144 tokens; of each row at most its first `most`."""
    lengths = np.minimum(columns.length, most)
    cuts = np.flatnonzero(np.diff(np.cumsum(lengths, dtype=np.int64) // _BLOCK_TOKENS)) + 1
    for keys in np.split(columns.key, cuts):
        parts = [rows.ids(key)[:most] for key in keys.tolist()]
        ends = np.cumsum([0, *map(len, parts)])
        yield Block(np.concatenate([np.empty(0, np.int32), *parts]), ends)


def common_ngrams(columns: Columns, rows: TokenRows) -> Digests:
    """Return hashes, sorted, of n-grams that a quarter of a source's rows have, from a sample.

    These are the template, system prompts and tool lists. They would make rows alike that share
    nothing else, so likeness is of what is left.
    """
    nothing = np.empty(0, np.uint64)
    found = [nothing]
    for source in np.unique(columns.source):
        own = np.flatnonzero(columns.source == source)
        spread = own[np.linspace(0, len(own) - 1, min(len(own), _SAMPLE), dtype=np.int64)]
        _, firsts = np.unique(columns.digest[spread], return_index=True)
        sample = columns.at(spread[np.sort(firsts)])
        grams = [_ngrams(block) for block in blocks(sample, rows, _SAMPLE_TOKENS)]
        sets = [np.unique(one) for some in grams for one in np.split(some.hashes, some.ends[1:-1])]
        hashes, counts = np.unique(np.concatenate([nothing, *sets]), return_counts=True)
        found.append(hashes[counts >= max(_FEWEST, len(sample) / 4)])
    return np.unique(np.concatenate(found))


def sign(block: Block, common: Digests) -> Signatures:
    """Return the signatures of rows, apart from common n-grams where there are others."""
    grams = _without(_ngrams(block), common)
    ends = grams.ends.astype(np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(grams.hashes, ends, PERMUTATIONS, _SEED)
    return np.array(matrix.to_rows(), np.uint32).reshape(-1, PERMUTATIONS)


def hash_from(block: Block, starts: npt.NDArray[np.integer]) -> Digests:
    """Hash each row's tokens from a position on; 0 where there are none. [rows]"""
    lengths = np.diff(block.ends)
    within = np.arange(len(block.ids)) - np.repeat(block.ends[:-1], lengths)
    offset = (within - np.repeat(starts, lengths)).astype(np.uint64)
    mixed = _mix(block.ids.astype(np.uint64) * _PRIMES[0] + offset * _PRIMES[1] + _PRIMES[2])
    mixed[within < np.repeat(starts, lengths)] = 0
    sums = np.cumsum(np.concatenate([np.zeros(1, np.uint64), mixed]))
    hashes: Digests = np.diff(sums[block.ends])
    return hashes


_BLOCK_TOKENS = 1 << 18
_SAMPLE, _SAMPLE_TOKENS = 1000, 8192
_FEWEST = 10  # rows that have an n-gram before it counts as common
_SEED = 42
_PRIMES = np.array(  # odd numbers with about as many ones as zeros
    [
        *(0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9),
        *(0xD6E8FEB86659FD93, 0xFF51AFD7ED558CCD),
    ],
    np.uint64,
)


@dataclass(frozen=True)
class _Grams:
    hashes: Digests
    ends: Longs  # [rows + 1]


def _ngrams(block: Block) -> _Grams:
    """Hash each window of n tokens; a shorter row is one window."""
    lengths = np.diff(block.ends)
    counts = np.maximum(lengths - NGRAM + 1, np.minimum(lengths, 1))
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    starts = np.arange(ends[-1]) + np.repeat(block.ends[:-1] - ends[:-1], counts)
    limits = np.repeat(block.ends[1:], counts)
    values = np.concatenate(
        [block.ids.astype(np.uint64) + np.uint64(1), np.zeros(NGRAM, np.uint64)]
    )
    hashes = np.zeros(len(starts), np.uint64)
    for place, prime in enumerate(_PRIMES):
        hashes += np.where(starts + place < limits, values[starts + place], np.uint64(0)) * prime
    return _Grams(_mix(hashes), ends)


def _without(grams: _Grams, common: Digests) -> _Grams:
    if not len(common):
        return grams
    left = ~_among(grams.hashes, common)
    counts = np.diff(np.concatenate([np.zeros(1, np.int64), np.cumsum(left)])[grams.ends])
    left |= np.repeat(counts == 0, np.diff(grams.ends))  # nothing else: then it is what there is
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(left)])[grams.ends]
    return _Grams(grams.hashes[left], ends)


def _among(hashes: Digests, known: Digests) -> Flags:
    """Say which hashes are in a sorted array; most are told by 16 bits of theirs alone."""
    seen = np.zeros(1 << 16, np.bool_)
    seen[known & np.uint64(0xFFFF)] = True
    found: Flags = seen[hashes & np.uint64(0xFFFF)]
    maybe = np.flatnonzero(found)
    at = np.minimum(np.searchsorted(known, hashes[maybe]), len(known) - 1)
    found[maybe] = known[at] == hashes[maybe]
    return found


def _mix(values: Digests) -> Digests:
    """Spread each bit over all: MurmurHash3's finalizer."""
    values ^= values >> np.uint64(33)
    values *= _PRIMES[4]
    values ^= values >> np.uint64(33)
    values *= np.uint64(0xC4CEB9FE1A85EC53)
    values ^= values >> np.uint64(33)
    return values
