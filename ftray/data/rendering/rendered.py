"""The text of a chat, and where in it the turns are that are learned."""

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Turn:
    """Characters [start, end) that the assistant wrote, and those in it that are only read."""

    start: int
    end: int
    hidden: tuple[int, int]


@dataclass(frozen=True, slots=True)
class RenderedChat:
    """The text of a conversation, and the turns in it that are learned, in order.

    Where generation tags gave the turns, the token that ends one may be right behind it.
    """

    text: str
    turns: list[Turn]
    is_tagged: bool

    def groups(self, cuts: Collection[int]) -> list[list[Turn]]:
        """Return the turns that can share the text, and alone each that starts at a cut."""
        if not cuts:
            return [self.turns]
        shared = [turn for turn in self.turns if turn.start not in cuts]
        groups = [[turn] for turn in self.turns if turn.start in cuts]
        return sorted([*groups, shared] if shared else groups, key=lambda group: group[0].start)

    def end_of(self, turn: Turn) -> int:
        """Return the end of the text that a turn needs if nothing follows it."""
        if not self.is_tagged:
            return turn.end
        return min(
            (after.start for after in self.turns if after.start > turn.start),
            default=len(self.text),
        )
