"""Which writing systems answers are in: a cheap way to see rows of another language."""

import unicodedata
from collections import Counter
from functools import lru_cache

NO_LETTERS = "no letters"


def dominant_script(text: str) -> str:
    """Return the script that most letters are of, as in `latin`; han and kana count as one."""
    letters: Counter[str] = Counter()
    for character, count in Counter(text).items():
        if character.isalpha():
            letters[_script(character)] += count
    return max(letters, key=lambda name: (letters[name], name)) if letters else NO_LETTERS


_EAST_ASIAN = {"cjk", "hiragana", "katakana", "katakana-hiragana", "halfwidth", "ideographic"}


@lru_cache(maxsize=4096)
def _script(character: str) -> str:
    """Read it off the character's name: LATIN SMALL LETTER A."""
    name = unicodedata.name(character, "unknown").split(" ")[0].lower()
    return "han or kana" if name in _EAST_ASIAN else name
