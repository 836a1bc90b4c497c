"""Text to ids many times faster than the tokenizer itself, and the same ids.

A byte-level BPE tokenizer splits text by special tokens, then by a regular expression, and looks
at each piece alone. None of the known expressions reaches from one visible character over a single
blank to the next one. So text may be cut before such a blank, and what became of a chunk is the
same wherever it stands. Most chunks are words that were met before: they cost one look-up.
"""

import json
import re
from array import array
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, models


class Words:
    """Turns text without special tokens into packed ids: int32, in the machine's byte order."""

    def __init__(self, backend: Tokenizer, most: int = 2**17) -> None:
        self._backend = backend
        self._most = most  # chunks to remember, in each of three places: some 25 MB
        self._whole: dict[str, bytes] = {}  # texts of one chunk, such as a turn's header
        self._first: dict[str, bytes] = {}
        self._later: dict[str, bytes] = {}  # without the blank before them

    def __len__(self) -> int:
        return len(self._whole) + len(self._first) + len(self._later)

    def __reduce__(self) -> tuple[type["Words"], tuple[Tokenizer, int]]:
        return Words, (self._backend, self._most)  # what was remembered is soon learned again

    def encode(self, text: str) -> bytes:
        """Return the packed ids of a text."""
        known = self._whole.get(text)
        if known is not None:
            return known
        first, *later = text.split(" ")
        try:
            before = self._first[first] if first else b""
            return before + b"".join(map(self._later.__getitem__, later))
        except KeyError:
            return self._learn(text, first, later)

    def _learn(self, text: str, first: str, later: list[str]) -> bytes:
        """Encode what is not known; only what neither starts nor ends with white space is kept."""
        missing = [word for word in dict.fromkeys(later) if word not in self._later]
        if not all(map(_is_word, missing)) or first[-1:].isspace():
            first, *later = _JOINT.split(text)
            missing = [word for word in dict.fromkeys(later) if word not in self._later]
        if not later:
            [packed] = self._encode([text])
            self._remember(self._whole, {text: packed})
            return packed
        before = self._first.get(first)
        if before is None:
            [before] = self._encode([first])
            self._remember(self._first, {first: before} if first and " " not in first else {})
        words = dict(zip(missing, self._encode([f" {word}" for word in missing]), strict=True))
        parts = [words[word] if word in words else self._later[word] for word in later]
        self._remember(self._later, {word: ids for word, ids in words.items() if _is_word(word)})
        return before + b"".join(parts)

    def _remember(self, memory: dict[str, bytes], learned: dict[str, bytes]) -> None:
        if len(memory) > self._most:
            memory.clear()  # the frequent ones are back soon, and those of another language go
        memory |= {text: packed for text, packed in learned.items() if len(text) <= _LONGEST}

    def _encode(self, chunks: list[str]) -> list[bytes]:
        encoded = self._backend.encode_batch_fast(chunks, add_special_tokens=False)
        return [array("i", part.ids).tobytes() for part in encoded]


# A blank between visible characters, or before the first one.
_JOINT = re.compile(r"(?:^|(?<=\S)) (?=\S)")
_LONGEST = 64  # characters of a chunk that is remembered


def _is_word(text: str) -> bool:
    return bool(text) and " " not in text and not (text[0].isspace() or text[-1].isspace())


def is_splittable(backend: Tokenizer) -> bool:
    """Say whether a tokenizer is of the kind whose text may be cut, and its special tokens too."""
    added = backend.get_added_tokens_decoder().values()
    if any(t.normalized or t.lstrip or t.rstrip or t.single_word for t in added):
        return False
    if not isinstance(backend.model, models.BPE) or backend.model.dropout:
        return False
    if backend.normalizer is not None and _state(backend.normalizer)["type"] != "NFC":
        return False
    return backend.pre_tokenizer is not None and _keeps_blanks(_state(backend.pre_tokenizer))


def _state(part: Any) -> Any:
    return json.loads(part.__getstate__())


def _keeps_blanks(pre_tokenizer: Any) -> bool:
    """Say whether no piece has a lone blank between visible characters but as its first one."""
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    *before, last = steps
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return False
    if last["use_regex"]:
        return all(step["type"] == "Digits" for step in before)
    return len(before) == 1 and _is_known_split(before[0])


def _is_known_split(step: Any) -> bool:
    if step["type"] != "Split" or step["behavior"] != "Isolated" or step["invert"]:
        return False
    found = set(_alternatives(step["pattern"].get("Regex", "")))
    return r"\s+" in found and found <= _KNOWN  # else a blank may stay inside of what none matches


def _alternatives(pattern: str) -> Iterable[str]:
    """Split a regular expression at each `|` outside of groups and sets."""
    found, depth, start = [], 0, 0
    for position, character in enumerate(pattern):
        depth += (character in "([") - (character in ")]")
        if character == "|" and not depth:
            found.append(pattern[start:position])
            start = position + 1
    return [*found, pattern[start:]]


# What GPT-2's successors split by. Each matches a blank only as its first character, or nothing
# but white space, and looks ahead only behind white space.
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_KNOWN = {
    _CONTRACTIONS,
    r"[^\r\n\p{L}\p{N}]?\p{L}+",
    r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
    *(
        rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]{upper}[{_LOWER}]{lower}{contractions}"
        for upper, lower in (("*", "+"), ("+", "*"))
        for contractions in ("", f"{_CONTRACTIONS}?")
    ),
    r"\p{N}",
    r"\p{N}+",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
    r"\s*[\r\n]+",
    r"\s*[\r\n]",
    r"\s+(?!\S)",
    r"\s+",
}
