"""Turns found by the characters that each token stands for: right for every tokenizer."""

from array import array
from bisect import bisect_left
from collections.abc import Sequence

from tokenizers import Encoding, Tokenizer

from ftray.data.rendering.rendered import RenderedChat, Turn
from ftray.data.rendering.tokenizer import Encoded, EncodedTurn, continuing


class OffsetEncoder:
    """Has a whole batch tokenized in one call, and looks turns up in the offsets."""

    def __init__(self, backend: Tokenizer, stops: frozenset[int]) -> None:
        self._backend = backend
        self._continuing = continuing(backend)
        self._stops = stops

    def encode(self, text: str) -> "array[int]":
        """Return the ids of a text."""
        return array("i", self._encode([text])[0].ids)

    def encode_rest(self, text: str) -> "array[int]":
        """Return the ids of a text that goes on from another."""
        return array("i", self._continuing.encode(text, add_special_tokens=False).ids)

    def encode_chats(self, chats: Sequence[RenderedChat]) -> list[list[Encoded]]:
        """Return the ids of chats: each turn behind exactly the ids that it is prompted with."""
        whole = self._encode([chat.text for chat in chats])
        return [self._find_turns(chat, part) for chat, part in zip(chats, whole, strict=True)]

    def _encode(self, texts: list[str]) -> list[Encoding]:
        return list(self._backend.encode_batch(texts, add_special_tokens=False))

    def _find_turns(self, chat: RenderedChat, encoding: Encoding) -> list[Encoded]:
        whole = _Tokens(chat.text, [(0, encoding)])
        cuts = [turn.start for turn in chat.turns if self._is_cut(whole, turn.start)]
        encoded = []
        for turns in chat.groups(cuts):
            start, tokens = turns[0].start, whole
            if start in cuts:
                text = chat.text[: chat.end_of(turns[0])]
                before = self._backend.encode(text[:start], add_special_tokens=False)
                behind = self._continuing.encode(text[start:], add_special_tokens=False)
                tokens = _Tokens(text, [(0, before), (start, behind)])
            found = [self._turn(tokens, turn, is_tagged=chat.is_tagged) for turn in turns]
            one = Encoded(tokens.ids, found)
            encoded.append(one.cut() if start in cuts else one)
        return encoded

    def _is_cut(self, tokens: "_Tokens", start: int) -> bool:
        """Say whether the text before a turn has other ids when the turn does not follow.

        A token may reach across; and some tokenizers read ahead when they split blanks.
        """
        if tokens.is_inside_token(start):
            return True
        if not tokens.text[max(start - 2, 0) : start].isspace():
            return False
        [alone] = self._encode([tokens.text[:start]])
        return alone.ids != tokens.ids[: tokens.position(start)].tolist()

    def _turn(self, tokens: "_Tokens", turn: Turn, *, is_tagged: bool) -> EncodedTurn:
        start, end = tokens.position(turn.start), tokens.position(turn.end)
        stop = self._stop(tokens, start, end)
        if stop is None and is_tagged and self._is_stop(tokens, end):
            stop = end + 1
        first, last = (tokens.position(character) for character in turn.hidden)
        return EncodedTurn(start, stop, (first, last))

    def _stop(self, tokens: "_Tokens", start: int, end: int) -> int | None:
        """Return the position behind the turn's last stop token if only blanks follow it there."""
        for position in range(end - 1, start - 1, -1):
            if self._is_stop(tokens, position):
                return position + 1
            if not tokens.is_blank(position):
                return None
        return None

    def _is_stop(self, tokens: "_Tokens", position: int) -> bool:
        return position < len(tokens.ids) and tokens.ids[position] in self._stops


class _Tokens:
    """A text's ids, and of each the characters that it stands for: [starts, ends)."""

    def __init__(self, text: str, parts: Sequence[tuple[int, Encoding]]) -> None:
        self.text = text
        self.ids = array("i")
        self._starts: list[int] = []
        self._ends: list[int] = []
        for before, part in parts:
            self.ids.extend(part.ids)
            self._starts += [before + start for start, _ in part.offsets]
            self._ends += [before + end for _, end in part.offsets]

    def position(self, character: int) -> int:
        """Return the first token that starts at the character or behind it."""
        return bisect_left(self._starts, character)

    def is_inside_token(self, character: int) -> bool:
        """Say whether one token stands for both the character and the one before it."""
        before = self.position(character) - 1
        return before >= 0 and self._ends[before] > character

    def is_blank(self, position: int) -> bool:
        """Say whether a token stands for nothing but white space."""
        return not self.text[self._starts[position] : self._ends[position]].strip()
