"""One call of an ingress carries the pieces of all its generations, and knows when to end."""

import asyncio

import pytest

from ftray.serve import outbox
from ftray.serve.outbox import Outbox
from ftray.serve.protocol import Piece, RefusedError


def test_pieces_of_all_generations_travel_together_and_in_order() -> None:
    async def carried() -> list[list[Piece]]:
        box = Outbox()
        box.open("a", 1)
        box.open("b", 2)
        taken = []
        box.put(Piece("a", text="1"))
        box.put(Piece("b", text="2"))
        async for pieces in box.carried():
            taken.append(pieces)
            if len(taken) == 1:
                box.put(Piece("a", text="3", finish="stop"))
            elif len(taken) == 2:
                box.close("b")
        return taken

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outbox, "_IDLE_SECONDS", 0.05)
        batches = asyncio.run(carried())
    assert [[piece.text for piece in pieces] for pieces in batches] == [["1", "2"], ["3"]]


def test_a_generation_ends_with_its_last_choice_or_an_error() -> None:
    async def ends() -> list[bool]:
        box = Outbox()
        box.open("a", 2)
        box.open("b", 2)
        lasts = [box.put(Piece("a", index=0, finish="stop"))]
        lasts.append(box.put(Piece("a", index=1, finish="length")))
        lasts.append(box.put(Piece("b", error=RefusedError("late", code="deadline"))))
        await asyncio.wait_for(box.ended("a"), 1)
        await asyncio.wait_for(box.ended("b"), 1)
        return lasts

    assert asyncio.run(ends()) == [False, True, True]


def test_the_carrier_stays_while_anything_is_expected_and_then_makes_way() -> None:
    async def stays() -> tuple[bool, bool]:
        box = Outbox()
        box.open("a", 1)
        carrier = asyncio.ensure_future(anext(box.carried()))
        await asyncio.sleep(0.2)  # four times as long as it would idle
        is_there = box.is_carried and not carrier.done()
        box.close("a")
        with pytest.raises(StopAsyncIteration):
            await carrier
        return is_there, box.is_carried

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outbox, "_IDLE_SECONDS", 0.05)
        assert asyncio.run(stays()) == (True, False)
