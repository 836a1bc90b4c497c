"""Rows into packs of at most `max_length` tokens: a pure function of lengths and order."""

from collections.abc import Iterable, Sequence


def pack(lengths: Sequence[int], max_length: int, order: Iterable[int]) -> list[list[int]]:
    """Put each row, in the given order, into the pack that it fills best (best-fit).

    Lengths are at least 1 and at most `max_length`. In a shuffled order the packs mix short rows
    with long ones, and their fill is near that of best-fit-decreasing, which would put rows of
    equal length together. Cost per row: a few operations on an integer of `max_length` bits.
    """
    packs: list[list[int]] = []
    open_packs: list[list[int]] = [[] for _ in range(max_length + 1)]  # numbers, by free tokens
    has_open = 0  # bit f is set where open_packs[f] has one
    for row in order:
        length = lengths[row]
        fitting = has_open >> length
        if fitting:
            free = length + (fitting & -fitting).bit_length() - 1  # the least that is enough
            number = open_packs[free].pop()
            if not open_packs[free]:
                has_open ^= 1 << free
            packs[number].append(row)
        else:
            free, number = max_length, len(packs)
            packs.append([row])
        left = free - length
        if left:
            open_packs[left].append(number)
            has_open |= 1 << left
    return packs
