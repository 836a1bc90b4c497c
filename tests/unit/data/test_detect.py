"""The columns say what the rows hold; where they don't, a user is told what to set."""

import json
import logging
from typing import Any

import pytest

from ftray.config.data import DataConfig, SourceConfig
from ftray.data.rendering.detect import recognise
from ftray.data.rendering.examples import Form
from ftray.errors import DataError

MESSAGES = [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4"}]
TURNS = [{"from": "human", "value": "2+2"}, {"from": "gpt", "value": "4"}]
SOURCE = SourceConfig(path="train.jsonl")


def config(**changes: Any) -> DataConfig:
    return DataConfig.model_validate({"train": "train.jsonl", **changes})


@pytest.mark.parametrize(
    ("row", "form"),
    [
        ({"messages": MESSAGES}, Form("messages", {})),
        ({"messages": json.dumps(MESSAGES)}, Form("messages", {})),
        ({"conversations": MESSAGES}, Form("messages", {"messages": "conversations"})),
        ({"conversations": TURNS}, Form("sharegpt", {})),
        ({"messages": TURNS}, Form("sharegpt", {"conversations": "messages"})),
        ({"prompt": "2+2", "completion": "4"}, Form("prompt_completion", {})),
        ({"prompt": MESSAGES[:1], "completion": MESSAGES[1:]}, Form("prompt_completion", {})),
        ({"instruction": "add", "input": "2 2", "output": "4"}, Form("instruction", {})),
        ({"instruction": "add", "output": "4"}, Form("instruction", {})),
        (
            {"instruction": "add", "context": "2 2", "response": "4"},
            Form("instruction", {"output": "response", "input": "context"}),
        ),
        (
            {"question": "2+2", "answer": "4"},
            Form("prompt_completion", {"prompt": "question", "completion": "answer"}),
        ),
        (
            {"query": "2+2", "response": "4"},
            Form("prompt_completion", {"prompt": "query", "completion": "response"}),
        ),
        (
            {"input": "2+2", "output": "4"},
            Form("prompt_completion", {"prompt": "input", "completion": "output"}),
        ),
        ({"text": "2+2 is 4"}, Form("text", {})),
        ({"content": "2+2 is 4", "url": "x"}, Form("text", {"text": "content"})),
    ],
)
def test_columns_tell_the_format(row: dict[str, Any], form: Form):
    assert recognise([row], SOURCE, config()) == form


@pytest.mark.parametrize(
    ("row", "format_name"),
    [
        ({"prompt": "2+2", "prompt_id": "1", "messages": MESSAGES}, "messages"),
        ({"text": "all of it", "conversations": TURNS}, "sharegpt"),
        ({"instruction": "a", "input": "", "output": "b", "text": "all of it"}, "instruction"),
        (
            {"prompt": "a", "completion": "b", "instruction": "a", "output": "b"},
            "prompt_completion",
        ),
        ({"messages": "a note", "text": "2+2 is 4"}, "text"),
        ({"messages": [], "prompt": "a", "completion": "b"}, "prompt_completion"),
    ],
)
def test_the_most_specific_reading_wins(row: dict[str, Any], format_name: str):
    assert recognise([row], SOURCE, config()).format == format_name


def test_the_choice_is_logged_once_with_its_reason(caplog: pytest.LogCaptureFixture):
    logged = SourceConfig(path="logged.jsonl")
    with caplog.at_level(logging.INFO, logger="ftray.data.rendering.detect"):
        for _ in range(2):
            recognise([{"id": 1, "conversations": TURNS}], logged, config())
            recognise([{"question": "2+2", "answer": "4"}], logged, config())
    assert caplog.messages == [
        "format=sharegpt: the rows of logged.jsonl have 'conversations' of from and value"
        " (not read: id)",
        "format=prompt_completion: the rows of logged.jsonl have 'question' and 'answer'",
    ]


def test_configured_columns_narrow_the_choice():
    row = {"q": "2+2", "a": "4", "text": "2+2 is 4"}
    columns = {"prompt": "q", "completion": "a"}
    assert recognise([row], SOURCE, config(columns=columns)) == Form("prompt_completion", columns)


def test_a_source_has_its_own_format_and_columns():
    source = SourceConfig(path="train.jsonl", format="text", columns={"text": "body"})
    assert recognise([{"body": "4"}], source, config(format="messages")) == Form(
        "text", {"text": "body"}
    )
    inherited = SourceConfig(path="train.jsonl", format="text")
    data = config(columns={"text": "body", "prompt": "q"})
    assert recognise([], inherited, data) == Form("text", {"text": "body"})


def test_a_row_that_fits_nothing_does_not_decide():
    assert recognise([{"id": 1}, {"text": "4"}], SOURCE, config()) == Form("text", {})


def test_columns_that_fit_nothing_are_named_with_what_to_set():
    with pytest.raises(DataError, match=r"no format fits the columns \(found: id, a, b\)") as error:
        recognise([{"id": 1, "a": "x"}, {"id": 2, "b": "y"}], SOURCE, config())
    assert "data.columns={prompt: YOUR_COLUMN}" in error.value.hint


@pytest.mark.parametrize("row", [{"messages": MESSAGES}, {"conversations": TURNS}])
def test_conversations_need_a_chat_template(row: dict[str, Any]):
    with pytest.raises(DataError, match="needs a chat template") as error:
        recognise([row], SOURCE, config(chat_template="none"))
    assert "data.chat_template=model" in error.value.hint


@pytest.mark.parametrize("value", [4, None, float("nan")])
def test_columns_of_the_wrong_kind_still_tell_the_format(value: object):
    row = {"prompt": "2+2", "completion": value}
    assert recognise([row], SOURCE, config()) == Form("prompt_completion", {})


def test_a_hint_sees_past_capitals_and_blanks():
    with pytest.raises(DataError) as error:
        recognise([{"Question": "2+2", " answer": "4"}], SOURCE, config())
    assert error.value.hint == "set data.columns='{prompt: Question, completion: \" answer\"}'"
