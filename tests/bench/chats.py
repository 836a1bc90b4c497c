"""Short chat rows for benchmarks: the same bytes for the same seed, a million in half a minute.

Word problems as in GSM8K: a question of a few sentences, an answer in steps and its number. Lengths
are log-normal with GSM8K's spread (sigma 0.37 and 0.5 of the characters), some 430 bytes and 124
tokens a row. One row in 8 has a system turn, one in 16 a second exchange. One word in 30 is made of
syllables and new in its row, as in real text, so that no cache of words holds all of a tokenizer's.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SENTENCES = 20_000  # of each sort: a row of 6 repeats one of them, but no row is there twice


@dataclass(frozen=True)
class Chats:
    """The files that were written, and what is in them."""

    files: list[Path]
    rows: int
    bytes: int


def write_chats(folder: Path, rows: int, files: int = 4, seed: int = 7) -> Chats:
    """Write JSONL files with equally many rows each."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"chats-{number:02d}.jsonl" for number in range(files)]
    ends = [rows * (number + 1) // files for number in range(files)]
    lines, written = chat_lines(rows, seed), 0
    for path, end in zip(paths, ends, strict=True):
        with path.open("w", encoding="utf-8", buffering=2**20) as file:
            for _ in range(written, end):
                file.write(next(lines))
        written = end
    return Chats(paths, rows, sum(path.stat().st_size for path in paths))


def chat_lines(rows: int, seed: int = 7) -> Iterator[str]:
    """Yield rows as JSON lines."""
    words = random.Random(seed)
    asked, told = ([_sentence(words, forms) for _ in range(SENTENCES)] for forms in (_ASKED, _TOLD))
    numbers = np.random.default_rng(seed)
    for start in range(0, rows, _BLOCK):
        size = min(_BLOCK, rows - start)
        lengths = np.column_stack(
            [numbers.lognormal(mean, sigma, (size, 2)) for mean, sigma in (_QUESTION, _ANSWER)]
        )
        picks = iter(numbers.integers(0, SENTENCES, size * 64).tolist())
        for number, (first, second, third, fourth) in enumerate(lengths.tolist(), start=start):
            turns = [_SYSTEM[number // 8 % len(_SYSTEM)]] if number % 8 == 0 else []
            turns += _exchange(picks, asked, told, (first, third), number)
            if number % 16 == 5:
                turns += _exchange(picks, asked, told, (second, fourth), number)
            yield f'{{"messages": [{", ".join(turns)}]}}\n'


def _exchange(
    picks: Iterator[int],
    asked: list[str],
    told: list[str],
    lengths: tuple[float, float],
    number: int,
) -> list[str]:
    """Return a question and its answer, each of about the given number of characters."""
    who, place = (_rare(number * 2 + which) for which in (0, 1))
    question = f"{who} from {place} asks: {' '.join(_sentences(picks, asked, lengths[0]))}"
    steps = "\\n".join(_sentences(picks, told, lengths[1]))
    return [
        f'{{"role": "user", "content": "{question}"}}',
        f'{{"role": "assistant", "content": "{steps}\\n#### {number * 7919 % 10007}"}}',
    ]


def _sentences(picks: Iterator[int], pool: list[str], length: float) -> Iterator[str]:
    """Yield sentences until they are long enough; a fourth of a row's budget of 64 at most."""
    for _ in range(16):
        sentence = pool[next(picks)]
        yield sentence
        length -= len(sentence) + 1
        if length < 25:
            return


def _rare(number: int) -> str:
    """Return one of some ten million words, seldom one twice."""
    mixed = number * 2654435761 & 0xFFFFFFFF
    syllables = (_SYLLABLES[mixed >> shift & 63] for shift in (26, 20, 14, 8))
    return "".join(syllables).capitalize()


def _sentence(words: random.Random, forms: list[str]) -> str:
    chosen = {sort: words.choice(several) for sort, several in _WORDS.items()}
    if words.random() < 0.5:
        chosen["name"] = _syllables(words).capitalize()
    text = words.choice(forms).format(
        **chosen,
        other=words.choice(_WORDS["name"]),
        odd=_syllables(words),
        n=words.randint(2, 99),
        m=words.randint(2, 999),
        price=f"{words.randint(1, 400) / 4:.2f}",
    )
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _syllables(words: random.Random) -> str:
    return "".join(words.choice(_SYLLABLES) for _ in range(words.randint(2, 4)))


_SYLLABLES = [
    start + end for start in ("b", "br", "d", "f", "gr", "k", "l", "m") for end in "aeiou"
]
_SYLLABLES += [start + end for start in ("n", "pl", "s", "t", "v") for end in "aeiou"][:24]
_BLOCK = 10_000
_QUESTION = (np.log(95), 0.37)
_ANSWER = (np.log(120), 0.5)
_SYSTEM = [
    '{"role": "system", "content": "Solve it step by step. End with #### and the number."}',
    '{"role": "system", "content": "You are a patient teacher."}',
    '{"role": "system", "content": "Answer in short sentences, one calculation a line."}',
]
_LISTS = """
name: Natalia Weng Betty Julie James Mark Albert Ken Alexis Tina Tobias Randy Zoë José
thing: clips pages flowers stickers pies shoes eggs bolts downloads kites lemons crêpes
kind: red small purple wooden heavy second-hand dried unopened left-handed cheap
place: market school library bakery garden harbour workshop café station orchard
day: Monday Tuesday Wednesday Thursday Friday Saturday Sunday April May June
"""
_LINES = [line.partition(": ") for line in _LISTS.strip().splitlines()]
_WORDS = {sort: words.split() for sort, _, words in _LINES}
_ASKED = [
    "{name} sold some of the {thing} to {other} at the {place} in {day}, and then half as many.",
    "Every {day} the teacher brings {n} {kind} {thing} to the {place} for all of the children.",
    "The {place} keeps its {kind} {thing} in boxes, and each of the boxes holds {n} of them.",
    "{other} has twice as many {thing} as {name}, who has three fewer than the neighbours.",
    "How many of the {thing} are left at the {place} by the end of {day}?",
    "If a {odd} costs {m} dollars and {other} saves a little every week, how long does it take?",
    "Half of the {kind} {thing} break on the way to the {place}, which is far from the city.",
    "What is the total amount that {name} and {other} have to pay for the {thing}?",
    "One of the workers fills {n} baskets with {kind} {thing} before lunch and rests afterwards.",
]
_TOLD = [
    "First we find out how many {thing} there are: {n} times {m}.",
    "That leaves {m} of the {kind} {thing} for the {place}, as the others were given away.",
    "On {day} each of the {thing} is sold for the same price, so we multiply that by {n}.",
    "Since a quarter of the {kind} {thing} is broken, {other} needs to buy some more of them.",
    "Then {name} gives half of the {thing} to {other}, which makes {n} each.",
    "The {odd} takes several hours and the price is ${price} an hour.",
    "So {name} and {other} together have all of the {thing} that were brought to the {place}.",
    "This is more than before, because every box from the {place} holds {n} {thing}.",
]
