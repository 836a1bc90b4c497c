"""The preview shows rows as they will be learned."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ftray.config.run import DataConfig
from ftray.data.chat import Piece
from ftray.data.preview import PreviewRow, preview_rows
from ftray.errors import DataError

ROW = {"prompt": "what is two plus two", "completion": "four"}


def config(**changes: object) -> DataConfig:
    return DataConfig(train="train.jsonl", format="prompt_completion", **changes)


def test_rows_come_in_learned_and_other_pieces(
    write_lines: Callable[..., str], tokenizer_folder: Path
):
    [shown] = preview_rows([write_lines(ROW, ROW)], config(), tokenizer_folder, 1)
    prompt = "<|im_start|>user\nwhat is two plus two<|im_end|>\n<|im_start|>assistant\n"
    pieces = [Piece(prompt, False), Piece("four<|im_end|>", True), Piece("\n", False)]
    assert shown == PreviewRow("train.jsonl line 1", pieces, shown.tokens, 2)


def test_bad_rows_fail_or_are_left_out(write_lines: Callable[..., str], tokenizer_folder: Path):
    path = write_lines(b"no", ROW)
    with pytest.raises(DataError, match=r"train\.jsonl line 1: invalid JSON"):
        preview_rows([path], config(), tokenizer_folder, 2)
    [shown] = preview_rows([path], config(on_bad_row="drop"), tokenizer_folder, 2)
    assert shown.source == "train.jsonl line 2"
