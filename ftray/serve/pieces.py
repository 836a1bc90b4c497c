"""An engine's one stream of pieces, taken apart for those who wait for a generation each."""

import asyncio
from collections.abc import AsyncIterator, Callable

from ftray.serve.protocol import Piece


def by_generation(pieces: list[Piece]) -> dict[str, list[Piece]]:
    """Sort what a step has added by generation."""
    found: dict[str, list[Piece]] = {}
    for piece in pieces:
        found.setdefault(piece.id, []).append(piece)
    return found


async def until_ended(
    choices: int, arrived: asyncio.Queue[list[Piece]], end: Callable[[], object]
) -> AsyncIterator[list[Piece]]:
    """Yield a generation's pieces; `end` is called before those that end it are yielded."""
    while choices > 0:
        pieces = await arrived.get()
        choices -= sum(piece.finish is not None for piece in pieces)
        if choices <= 0 or any(piece.error is not None for piece in pieces):
            end()
            choices = 0
        yield pieces
