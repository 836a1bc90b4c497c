"""The preview shows rows as they will be learned."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ftray.config.data import DataConfig, SourceConfig
from ftray.data.preview import PreviewRow, preview_rows
from ftray.data.rendering.chat import Piece
from ftray.errors import DataError

ROW = {"prompt": "what is two plus two", "completion": "four"}


def preview(path: str, folder: Path, count: int, **changes: object) -> list[PreviewRow]:
    data = DataConfig.model_validate({"train": path, **changes})
    return preview_rows([SourceConfig(path=path)], data, folder, count, trust_remote_code=False)


def test_rows_come_in_learned_and_other_pieces(
    write_lines: Callable[..., str], tokenizer_folder: Path
):
    [shown] = preview(write_lines(ROW, ROW), tokenizer_folder, 1)
    prompt = "<|im_start|>user\nwhat is two plus two<|im_end|>\n<|im_start|>assistant\n"
    pieces = [Piece(prompt, False), Piece("four<|im_end|>", True), Piece("\n", False)]
    assert shown == PreviewRow("train.jsonl line 1", pieces, shown.tokens, 2)


def test_a_row_that_becomes_several_is_shown_as_several(
    write_lines: Callable[..., str], tokenizer_folder: Path
):
    turns = [{"from": "human", "value": "two"}, {"from": "gpt", "value": "\n\ntwo"}] * 2
    rows = preview(write_lines({"conversations": turns}), tokenizer_folder, 3)
    names = ["train.jsonl line 1 (1 of 2)", "train.jsonl line 1 (2 of 2)"]
    assert [row.source for row in rows] == names


def test_bad_rows_fail_or_are_left_out(write_lines: Callable[..., str], tokenizer_folder: Path):
    path = write_lines(b"no", ROW)
    with pytest.raises(DataError, match=r"train\.jsonl line 1: invalid JSON"):
        preview(path, tokenizer_folder, 2)
    [shown] = preview(path, tokenizer_folder, 2, on_bad_row="drop")
    assert shown.source == "train.jsonl line 2"
