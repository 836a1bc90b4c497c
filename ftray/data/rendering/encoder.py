"""The fastest way from chats to ids that a tokenizer allows."""

import re
from array import array
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from itertools import accumulate
from typing import Protocol

from tokenizers import Tokenizer

from ftray.data.rendering.offsets import OffsetEncoder
from ftray.data.rendering.rendered import RenderedChat, Turn
from ftray.data.rendering.tokenizer import Encoded, EncodedTurn
from ftray.data.rendering.words import Words, is_splittable


class Encoder(Protocol):
    """Text to ids, without anything before or behind."""

    def encode(self, text: str) -> "array[int]":
        """Return the ids of a text."""

    def encode_rest(self, text: str) -> "array[int]":
        """Return the ids of a text that goes on from another."""

    def encode_chats(self, chats: Sequence[RenderedChat]) -> list[list[Encoded]]:
        """Return the ids of chats: each turn behind exactly the ids that it is prompted with.

        A text whose start has other ids without the turn behind it (a token reaches across) becomes
        two: one that is cut there and ends with that turn, and one for the other turns.
        """


def build_encoder(backend: Tokenizer, stops: frozenset[int]) -> Encoder:
    """Choose by the tokenizer's kind; `stops` are the ids that may end a turn."""
    if is_splittable(backend):
        return WordEncoder(backend, stops)
    return OffsetEncoder(backend, stops)


class WordEncoder:
    """Encodes what stands between special tokens by words that it remembers.

    A chat with a turn that ends within a text goes by offsets: templates seldom do that.
    """

    def __init__(self, backend: Tokenizer, stops: frozenset[int]) -> None:
        self._offsets = OffsetEncoder(backend, stops)
        self._words = Words(backend)
        added = {
            token.content: index for index, token in backend.get_added_tokens_decoder().items()
        }
        self._special = {text: array("i", [index]).tobytes() for text, index in added.items()}
        self._special[_CUT] = b""
        self._stops = frozenset(text for text, index in added.items() if index in stops)
        self._pattern = _any_of(added)

    def encode(self, text: str) -> "array[int]":
        """Return the ids of a text."""
        return self._pieces(self._pattern.split(text)).ids()

    encode_rest = encode  # such a tokenizer puts nothing before a text

    def encode_chats(self, chats: Sequence[RenderedChat]) -> list[list[Encoded]]:
        """Return the ids of chats: each turn behind exactly the ids that it is prompted with."""
        return [self._encode_chat(chat) or self._offsets.encode_chats([chat])[0] for chat in chats]

    def _encode_chat(self, chat: RenderedChat) -> list[Encoded] | None:
        whole = self._pieces(self._pattern.split(chat.text))
        starts = {turn.start: whole.start(turn.start, self._words.encode) for turn in chat.turns}
        cuts = [start for start, token in starts.items() if token is None]
        encoded = []
        for turns in chat.groups(cuts):
            is_cut = turns[0].start in cuts
            pieces = self._cut(chat, turns[0]) if is_cut else whole
            found = [pieces.find(turn, starts[turn.start], chat) for turn in turns]
            places = [place for place in found if place is not None]
            if len(places) < len(turns):
                return None
            one = Encoded(pieces.ids(), places)
            encoded.append(one.cut() if is_cut else one)
        return encoded

    def _cut(self, chat: RenderedChat, turn: Turn) -> "_Pieces":
        before, behind = chat.text[: turn.start], chat.text[turn.start : chat.end_of(turn)]
        return self._pieces([*self._pattern.split(before), _CUT, *self._pattern.split(behind)])

    def _pieces(self, texts: list[str]) -> "_Pieces":
        packed = [b""] * len(texts)
        packed[::2] = map(self._words.encode, texts[::2])
        packed[1::2] = map(self._special.__getitem__, texts[1::2])
        return _Pieces(texts, packed, self._stops)


_CUT = ""  # stands as a special token without ids where a text is cut


class _Pieces:
    """A text by its special tokens (text, special, text, …, text), and the packed ids of each."""

    def __init__(self, texts: list[str], packed: list[bytes], stops: Collection[str]) -> None:
        self._texts, self._packed, self._stops = texts, packed, stops
        self._ends = list(accumulate(map(len, texts)))
        self._bytes = list(accumulate(map(len, packed)))

    def ids(self) -> "array[int]":
        """Return the ids of the text."""
        return array("i", b"".join(self._packed))

    def boundary(self, character: int) -> int | None:
        """Return how many tokens are before a character that is between two pieces."""
        if character == 0:
            return 0
        index = bisect_left(self._ends, character)
        return self._bytes[index] // 4 if self._ends[index] == character else None

    def start(self, character: int, encode: Callable[[str], bytes]) -> int | None:
        """Return how many tokens are before a turn; None where the text has to be cut there."""
        token = self.boundary(character)
        if token is not None:
            return token
        index = bisect_left(self._ends, character)
        offset, size = (self._ends[index - 1], self._bytes[index - 1]) if index else (0, 0)
        before = encode(self._texts[index][: character - offset])
        return (size + len(before)) // 4 if self._packed[index].startswith(before) else None

    def find(self, turn: Turn, start: int | None, chat: RenderedChat) -> EncodedTurn | None:
        """Return where a turn is; None where it ends within a piece."""
        at = {turn.start: self.boundary(turn.start) if start is None else start}
        first, begin, end = (
            at[character] if character in at else self.boundary(character)
            for character in (turn.start, *turn.hidden)
        )
        if first is None or begin is None or end is None or self.boundary(turn.end) is None:
            return None
        stop = self._stop(turn.end)
        if stop is None or stop <= first:
            stop = self._stop_behind(turn.end) if chat.is_tagged else None
        return EncodedTurn(first, stop, (begin, end))

    def _stop(self, character: int) -> int | None:
        """Return the tokens up to the last stop token before a boundary, if blanks alone follow."""
        for index in range(bisect_right(self._ends, character) - 1, -1, -1):
            text = self._texts[index]
            if index % 2:
                return self._bytes[index] // 4 if text in self._stops else None
            if text and not text.isspace():
                return None
        return None

    def _stop_behind(self, character: int) -> int | None:
        index = bisect_right(self._ends, character)
        is_stop = index < len(self._texts) and self._texts[index] in self._stops
        return self._bytes[index] // 4 if is_stop else None


def _any_of(texts: Collection[str]) -> re.Pattern[str]:
    """Match the longest of some texts; nothing where there are none."""
    return re.compile(f"({_by_letter(texts)})" if texts else "((?!))")


def _by_letter(texts: Collection[str]) -> str:
    """Write texts as a pattern that decides letter by letter: of 1,000 most start alike."""
    tails = defaultdict(list)
    for text in filter(None, texts):
        tails[text[0]].append(text[1:])
    options = [re.escape(first) + _by_letter(rest) for first, rest in tails.items()]
    pattern = options[0] if len(options) == 1 else f"(?:{'|'.join(options)})"
    return f"(?:{pattern})?" if "" in texts and options else pattern
