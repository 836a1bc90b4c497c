"""The rows of a set that repeat each other, as a report tells of them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ftray.data.duplicates import (
    earlier_like,
    exact,
    first_of_group,
    near_overlap,
    origins,
    overlap,
    whole_overlap,
)
from ftray.data.report.excerpts import Excerpt, Reader, side_by_side
from ftray.data.signatures import PERMUTATIONS, Signatures, blocks, common_ngrams, hash_from, sign
from ftray.data.tokens.columns import Columns, Digests, Flags, Longs

TOLD = 3  # how many groups and pairs a report shows


@dataclass(frozen=True)
class Prints:
    """What tells rows apart that the columns don't: signatures, and digests of the answers."""

    common: Digests
    signatures: Signatures
    answers: Digests


@dataclass(frozen=True)
class Group:
    """How many rows are alike, where the first of them are, and the text of one or of two."""

    rows: int
    places: list[str]
    examples: list[Excerpt]


@dataclass(frozen=True)
class Repeats:
    """Rows that repeat an earlier one, and those that only resemble one; None: not looked for.

    `answers` are the answers that most rows have, equal rows counted once.
    """

    exact: int
    near: int | None
    exact_groups: list[Group]
    near_groups: list[Group]
    answers: list[Group]


@dataclass(frozen=True)
class Overlap:
    """Eval rows that occur in train: by their prompt, as a whole, or nearly (None: not looked for).

    Pairs are of an eval row and a training row.
    """

    rows: int
    prompts: int
    whole: int
    near: int | None
    pairs: list[list[Excerpt]]


def prints(reader: Reader, common: Digests | None = None) -> Prints:
    """Read all tokens once; `common` n-grams are found in the rows themselves unless given."""
    columns, rows = reader.columns, reader.rows
    common = common_ngrams(columns, rows) if common is None else common
    signatures = np.empty((len(columns), PERMUTATIONS), np.uint32)
    answers = np.empty(len(columns), np.uint64)
    done = 0
    for block in blocks(columns, rows):
        part = slice(done, done + len(block.ends) - 1)
        signatures[part] = sign(block, common)
        answers[part] = hash_from(block, columns.first_label[part])
        done = part.stop
    return Prints(common, signatures, answers)


def find_repeats(reader: Reader, known: Prints | None) -> Repeats:
    """Find rows that repeat others; without prints only those that do so exactly."""
    repeats = exact(reader.columns)
    copies = _most(reader.columns.digest)
    equal = [_group(reader, rows, [reader.excerpt(rows[0])]) for rows in copies]
    if known is None:
        return Repeats(int(repeats.sum()), None, equal, [], [])
    like = earlier_like(known.signatures, origins(reader.columns))
    similar = (like >= 0) & ~repeats
    once = np.flatnonzero(~repeats)
    answers = [once[rows] for rows in _most(known.answers[once])]
    return Repeats(
        exact=int(repeats.sum()),
        near=int(similar.sum()),
        exact_groups=equal,
        near_groups=_near_groups(reader, like, similar),
        answers=[_group(reader, rows, [reader.answer_excerpt(rows[0])]) for rows in answers],
    )


def find_overlap(
    train: Reader, evals: Reader, known: Prints | None, asked: Prints | None
) -> Overlap:
    """Find eval rows that occur in train; nearly only where both have prints."""
    prompts = overlap(train.columns, evals.columns)
    whole = whole_overlap(train.columns, evals.columns)
    pairs = [
        side_by_side(evals, row, train, _row_with(train.columns, evals.columns, row))
        for row in np.flatnonzero(prompts)[:TOLD].tolist()
    ]
    if known is None or asked is None:
        return Overlap(len(prompts), int(prompts.sum()), int(whole.sum()), None, pairs)
    like = near_overlap(known.signatures, asked.signatures)
    nearly = np.flatnonzero((like >= 0) & ~prompts)
    pairs += [side_by_side(evals, row, train, int(like[row])) for row in nearly[:TOLD].tolist()]
    return Overlap(len(prompts), int(prompts.sum()), int(whole.sum()), len(nearly), pairs)


def _near_groups(reader: Reader, like: Longs, similar: Flags) -> list[Group]:
    """Describe the largest groups that have more in them than equal rows."""
    root = first_of_group(like)
    members = np.flatnonzero(np.isin(root, root[similar]))
    groups = []
    for rows in (members[some] for some in _most(root[members])):
        later = rows[similar[rows]][0]
        pair = side_by_side(reader, int(like[later]), reader, int(later))
        groups.append(_group(reader, rows, pair))
    return groups


def _group(reader: Reader, rows: Longs, examples: list[Excerpt]) -> Group:
    return Group(len(rows), [reader.place(row) for row in rows[:_PLACES].tolist()], examples)


def _most(values: npt.NDArray[np.generic]) -> list[Longs]:
    """Return the rows of the most frequent values, each in order; of equal ones the first."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.append(True, values[order[1:]] != values[order[:-1]]))[: len(order)]
    sizes = np.diff(np.append(starts, len(order)))
    ranked = np.lexsort((order[starts], -sizes))[:TOLD]
    return [order[starts[n] : starts[n] + sizes[n]] for n in ranked if sizes[n] > 1]


_PLACES = 5


def _row_with(train: Columns, evals: Columns, row: int) -> int:
    return int(np.argmax(train.prompt_digest == evals.prompt_digest[row]))
