"""Text that is cut at blanks has the ids that the tokenizer gives it as a whole."""

import pickle
import random
from typing import Any

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from ftray.data.rendering.words import Words, is_splittable

LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = LLAMA.replace("{1,3}", "")
GPT_4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MISTRAL = GPT_4O.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "").replace("{1,3}", "")


def split(pattern: str) -> Any:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level])


GPT_2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
KINDS = {
    "gpt 2": GPT_2,
    "single digits": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), GPT_2]
    ),
    "llama 3": split(LLAMA),
    "qwen": split(QWEN),
    "gpt 4o": split(GPT_4O),
    "mistral": split(MISTRAL),
}
# Everything that a pattern treats in its own way, and the blanks between and around it.
PARTS = [
    *(
        "word",
        "Word",
        "WORD",
        "naïve",
        "it's",
        "IT'S",
        "'",
        "'t",
        "12",
        "3456",
        "7.5",
        ".",
        "...",
        "/",
    ),
    *("四", "é", "e\u0301", "\u0308", "😀", "👩‍👩‍👧", "ſ", "_", "<", "<|", "İ", "ǅ", "٣", "½"),
    *(
        " ",
        " ",
        " ",
        " ",
        " ",
        " ",
        "  ",
        "\n",
        "\n\n",
        "\r\n",
        "\t",
        "\xa0",
        "\x1c",
        "\u2028",
        "\u3000",
    ),
    *("\u200b", "\ufeff", "\x00", "\x85"),
]


def build(pre_tokenizer: Any, normalizer: Any = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.normalizer = pre_tokenizer, normalizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        show_progress=False,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts(300, seed=1), trainer)
    return tokenizer


def texts(count: int, seed: int) -> list[str]:
    chance = random.Random(seed)
    return ["".join(chance.choices(PARTS, k=chance.randint(1, 14))) for _ in range(count)]


@pytest.mark.parametrize("normalizer", [None, normalizers.NFC()])
@pytest.mark.parametrize("kind", KINDS)
def test_the_ids_are_those_of_the_whole_text(kind: str, normalizer: Any):
    tokenizer = build(KINDS[kind], normalizer)
    assert is_splittable(tokenizer)
    words, given = Words(tokenizer), texts(2000, seed=2)
    expected = [part.ids for part in tokenizer.encode_batch(given, add_special_tokens=False)]
    for _ in range(2):  # what is learned, then what is remembered
        found = [memoryview(words.encode(text)).cast("i").tolist() for text in given]
        assert found == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_blank_between_visible_characters_is_a_boundary_for_every_character(kind: str):
    """The proof that text may be cut there, character by character, without the memory."""
    tokenizer = build(KINDS[kind])
    visible = [chr(code) for code in range(0x3000) if not chr(code).isspace()]
    pairs = list(zip(visible, random.Random(3).sample(visible, len(visible)), strict=True))
    whole = tokenizer.encode_batch([f"{a} {b}" for a, b in pairs], add_special_tokens=False)
    before = tokenizer.encode_batch([a for a, _ in pairs], add_special_tokens=False)
    behind = tokenizer.encode_batch([f" {b}" for _, b in pairs], add_special_tokens=False)
    parts = zip(before, behind, strict=True)
    assert [text.ids for text in whole] == [first.ids + last.ids for first, last in parts]


def test_the_memory_stays_small_and_at_home():
    words, new = Words(build(GPT_2), most=100), Words(build(GPT_2), most=100)
    for number in range(1000):
        words.encode(f"the {number} of {number} words")
    assert len(words) < 220
    assert len(pickle.dumps(words)) == len(pickle.dumps(new))


@pytest.mark.parametrize(
    "change",
    [
        {"pre_tokenizer": None},
        {"pre_tokenizer": pre_tokenizers.Metaspace()},
        {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)},
        {"pre_tokenizer": split(r"\w+ \w+|\s+")},
        {"pre_tokenizer": split(r"\p{N}{1,3}")},
        {"normalizer": normalizers.Lowercase()},
        {"model": models.WordPiece()},
        {"model": models.BPE(dropout=0.1)},
    ],
)
def test_other_tokenizers_are_not_cut(change: dict[str, Any]):
    tokenizer = build(GPT_2)
    for name, part in change.items():
        setattr(tokenizer, name, part)
    assert not is_splittable(tokenizer)


def test_special_tokens_that_take_blanks_with_them_are_not_cut_at():
    tokenizer = build(GPT_2)
    tokenizer.add_special_tokens([AddedToken("<|mask|>", lstrip=True)])
    assert not is_splittable(tokenizer)
