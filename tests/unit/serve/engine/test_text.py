"""What of an answer's text may be shown, and when."""

import pytest
from tokenizers import Tokenizer

from ftray.serve.engine.text import AnswerText, StopString


def shown(tokenizer, text: str, stop: tuple[str, ...]) -> list[str]:
    answer = AnswerText(tokenizer, stop)
    pieces = []
    for token in tokenizer.encode(text).ids:
        pieces.append(answer.add(token))
        if answer.is_stopped:
            return pieces
    return [*pieces, answer.end()]


@pytest.fixture(scope="module")
def tokenizer(tiny_folder):
    return Tokenizer.from_file(str(tiny_folder / "tokenizer.json"))


def test_only_whole_characters_are_shown(tokenizer):
    assert shown(tokenizer, "é😀!", ()) == ["", "é", "", "", "", "😀", "!", ""]


def test_what_may_become_a_stop_string_is_held_back(tokenizer):
    assert shown(tokenizer, "xaab", ("aac",)) == ["x", "", "", "aab", ""]
    assert shown(tokenizer, "xaaac", ("aac",)) == ["x", "", "", "a", ""]
    assert shown(tokenizer, "xaa", ("aac",)) == ["x", "", "", "aa"]


def test_the_first_stop_string_to_end_counts_and_the_longest_of_those(tokenizer):
    assert "".join(shown(tokenizer, "one two three", ("three", "two", "e tw", "zzz"))) == "on"
    assert "".join(shown(tokenizer, "abcd", ("cd", "bcd"))) == "a"


@pytest.mark.parametrize("text", ["abcabcabd", "aaaaaab", "ababac", "the end"])
def test_a_stop_string_is_found_where_a_search_finds_it(text):
    for stop in {text[i:j] for i in range(len(text)) for j in range(i + 1, len(text) + 1)}:
        matcher = StopString(stop)
        read = 0
        while not matcher.is_found:
            matcher.add(text[read])
            read += 1
        assert text.find(stop) == read - len(stop)


def test_a_stop_string_of_many_thousand_characters_is_no_burden(tokenizer):
    stop = "a" * 40_000 + "b"
    text = "a" * 5_000
    assert "".join(shown(tokenizer, text, (stop,))) == text
