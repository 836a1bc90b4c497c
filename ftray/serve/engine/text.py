"""From token ids to text that may be shown: whole characters only, and no part of a stop string."""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class AnswerText:
    """The text of one answer as it grows."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._unfinished: list[int] = []  # tokens that end inside a character
        self._stops = [StopString(text) for text in stop]
        self._held = ""  # it may become a stop string

    def add(self, token: int) -> str:
        """Return what may be shown now; `is_stopped` tells whether a stop string ends the text."""
        return self._release(self._decode(token))

    def end(self) -> str:
        """Return what was held back and turns out not to be a stop string."""
        rest = self._tokenizer.decode(self._unfinished, skip_special_tokens=True)
        self._unfinished = []
        shown = self._release(rest) if rest else ""
        shown += "" if self.is_stopped else self._held
        self._held = ""
        return shown

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string has been found."""
        return any(stop.is_found for stop in self._stops)

    def _decode(self, token: int) -> str:
        self._unfinished.append(token)
        try:
            text = self._stream.step(self._tokenizer, token)
        except Exception:  # noqa: BLE001  # tokenizers raises no other: the text is no prefix now
            self._stream = DecodeStream(skip_special_tokens=True)
            text = self._tokenizer.decode(self._unfinished, skip_special_tokens=True)
        if text is None:
            return ""
        self._unfinished = []
        return text

    def _release(self, text: str) -> str:
        if not self._stops:
            return text
        self._held += text
        fresh = len(self._held) - len(text)
        for end in range(fresh, len(self._held)):
            for stop in self._stops:
                stop.add(self._held[end])
            if found := [stop.length for stop in self._stops if stop.is_found]:
                shown, self._held = self._held[: end + 1 - max(found)], ""
                return shown
        keep = max(stop.matched for stop in self._stops)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown


class StopString:
    """Finds a string in a stream of characters, however long it is (Knuth, Morris and Pratt 1977).

    `matched` is the length of the longest end of the stream that the string starts with.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._falls = [0] * len(text)  # where to go on after a mismatch
        matched = 0
        for index in range(1, len(text)):
            while matched and text[index] != text[matched]:
                matched = self._falls[matched - 1]
            matched += text[index] == text[matched]
            self._falls[index] = matched
        self.length, self.matched = len(text), 0

    @property
    def is_found(self) -> bool:
        """Whether the stream ends with the string."""
        return self.matched == self.length

    def add(self, character: str) -> None:
        """Go on by one character; not after it was found."""
        while self.matched and character != self._text[self.matched]:
            self.matched = self._falls[self.matched - 1]
        self.matched += character == self._text[self.matched]
