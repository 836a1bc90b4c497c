"""What is read from a row, and what a user is told about one that cannot be read."""

import json
from typing import Any

import pytest

from ftray.config.data import DataConfig
from ftray.data.rendering.examples import Completion, Form, parse_example
from ftray.data.rendering.messages import Conversation
from ftray.errors import DataError

USER = {"role": "user", "content": "2+2"}
ANSWER = {"role": "assistant", "content": "4"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def parse(row: dict[str, Any], format_name: Any = "messages", **changes: Any) -> Any:
    data = DataConfig.model_validate({"train": "train.jsonl", **changes})
    return parse_example(row, Form(format_name, {}), data)


def refusal(row: dict[str, Any], format_name: Any = "messages", **changes: Any) -> DataError:
    with pytest.raises(DataError) as refused:
        parse(row, format_name, **changes)
    return refused.value


def test_sharegpt_turns_become_messages():
    turns = [
        {"from": "human", "value": "hello"},
        {"from": "gpt", "value": "hi", "weight": 0},
        {"from": "user", "value": "2+2"},
        {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 2}}'},
        {"from": "observation", "value": "4"},
        {"from": "chatgpt", "value": "It is 4"},
    ]
    row = {"conversations": turns, "system": "be brief", "tools": json.dumps([TOOL])}
    assert parse(row, "sharegpt") == Conversation(
        [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "hi"},
            USER,
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "4"},
            {"role": "assistant", "content": "It is 4"},
        ],
        [False, False, False, False, True, False, True],
        [TOOL],
    )


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ("no", "'conversations' is text but no JSON: Expecting value"),
        (7, "'conversations' is a number, expected a list of turns"),
        ([], "'conversations' is empty"),
        (["hello"], r"a turn is text (message 1), expected an object"),
        ([{"value": "hello"}], r"a turn has no 'from' (message 1; found: value)"),
        ([{"from": "dog", "value": "wuff"}], "unknown 'from': 'dog' (message 1)"),
        ([{"from": ["gpt"], "value": "hi"}], "unknown 'from': '['gpt']' (message 1)"),
        ([{"from": "human", "value": 7}], "'value' is a number (message 1), expected text"),
        ([{"from": "gpt", "value": " "}], "an assistant turn is empty (message 1)"),
        (
            [{"from": "function_call", "value": "add(2)"}],
            "'value (message 1)' is text but no JSON: Expecting value",
        ),
        ([{"from": "human", "value": "hello"}], "no assistant turn"),
    ],
)
def test_what_is_wrong_with_sharegpt_is_named(turns: object, message: str):
    assert refusal({"conversations": turns}, "sharegpt").message == message


def test_two_different_system_messages_are_refused():
    turns = [{"from": "system", "value": "be long"}, {"from": "gpt", "value": "4"}]
    error = refusal({"conversations": turns, "system": "be brief"}, "sharegpt")
    assert "a system column and a system turn" in error.message
    same = {"conversations": turns, "system": "be long"}
    assert len(parse(same, "sharegpt").messages) == 2


def test_completions_may_be_messages_of_which_the_prompts_are_not_learned():
    row = {"prompt": [USER, ANSWER, USER], "completion": [ANSWER], "tools": [TOOL]}
    conversation = parse(row, "prompt_completion")
    assert conversation.trained == [False, False, False, True]
    assert conversation.tools == [TOOL]
    error = refusal(row, "prompt_completion", chat_template="none")
    assert "need a chat template" in error.message
    text = {"prompt": "2+2", "completion": "4"}
    assert parse(text, "prompt_completion", chat_template="none") == Completion("2+2", "4")


def test_messages_and_tools_may_be_stored_as_json_text():
    call = {"id": "1", "function": {"name": "add", "arguments": '{"a": 2}'}}
    messages = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": json.dumps([call])},
        {"role": "tool", "name": "add", "tool_call_id": "1", "content": "4"},
        {**ANSWER, "weight": 0},
    ]
    row = {"messages": json.dumps(messages), "tools": [json.dumps(TOOL)]}
    conversation = parse(row)
    assert conversation.messages[1]["tool_calls"] == [{**CALL, "id": "1"}]
    assert conversation.messages[2] == messages[2]
    assert conversation.trained == [False, True, False, False]
    assert conversation.tools == [TOOL]


def test_fields_that_arrow_fills_with_null_are_left_out():
    arguments = {"a": 2, "b": None}
    call = {"function": {"name": "add", "arguments": arguments}, "id": None, "type": None}
    turn = {"role": "assistant", "content": None, "tool_calls": [call], "weight": None}
    tool = {**TOOL, "function": {**TOOL["function"], "description": None}}
    conversation = parse({"messages": [{**USER, "tool_calls": None}, turn], "tools": [tool]})
    assert conversation.messages == [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
    ]
    assert conversation.tools == [TOOL]


def test_a_null_in_arguments_that_are_text_was_meant():
    call = {"function": {"name": "add", "arguments": '{"a": 2, "b": null}'}}
    [_, turn] = parse({"messages": [USER, {**ANSWER, "tool_calls": [call]}]}).messages
    assert turn["tool_calls"][0]["function"]["arguments"] == {"a": 2, "b": None}


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_has_the_names_that_templates_read(key: str):
    conversation = parse({"messages": [USER, {**ANSWER, key: "2 and 2"}]})
    names = {"reasoning_content": "2 and 2", "thinking": "2 and 2"}
    assert conversation.messages[1] == {**ANSWER, **names}
    assert parse({"messages": [USER, {**ANSWER, key: ""}]}).messages[1] == ANSWER


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ("hi", "a message is text (message 2), expected an object"),
        ({"content": "4"}, "a message has no 'role' (message 2; found: content)"),
        ({"role": "bot", "content": "4"}, "unknown role: 'bot' (message 2)"),
        ({"role": ["bot"], "content": "4"}, "unknown role: '['bot']' (message 2)"),
        ({"role": "user"}, "a message has no 'content' (message 2; found: role)"),
        ({"role": "user", "content": 4}, "'content' is a number (message 2), expected text"),
        ({"role": "assistant", "content": " "}, "an assistant turn is empty (message 2)"),
        ({**ANSWER, "weight": 0.5}, "weight is neither 0 nor 1: 0.5 (message 2)"),
        ({**ANSWER, "function_call": {}}, "'function_call' is not supported (message 2)"),
        ({**ANSWER, "reasoning": ["so"]}, "the reasoning is a list (message 2), expected text"),
        (
            {**ANSWER, "tool_calls": {"a": 1}},
            "'tool_calls' is an object (message 2), expected a list",
        ),
        ({**ANSWER, "tool_calls": [1]}, "a tool call is a number (message 2), expected an object"),
        ({**ANSWER, "tool_calls": [{"id": "1"}]}, "a tool call has no 'name' (message 2)"),
        (
            {**ANSWER, "tool_calls": [{"name": "add", "arguments": [1]}]},
            "arguments of 'add' are a list (message 2), expected an object",
        ),
        (
            {**ANSWER, "tool_calls": [{"name": "add", "arguments": "{a}"}]},
            "'arguments of add' is text but no JSON: "
            "Expecting property name enclosed in double quotes",
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            "'content' has a part that is no text (message 2; found: image_url)",
        ),
        (
            {"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]},
            "'content' has a part that is no text (message 2; found: input_audio)",
        ),
    ],
)
def test_what_is_wrong_with_a_message_is_named(turn: object, message: str):
    assert refusal({"messages": [USER, turn, ANSWER]}).message == message


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"messages": [USER, ANSWER], "tools": "add"},
            "'tools' is text but no JSON: Expecting value",
        ),
        ({"messages": [USER, ANSWER], "tools": {"a": 1}}, "'tools' is an object, expected a list"),
        (
            {"messages": [USER, ANSWER], "tools": [7]},
            "'tools' has a number in it, expected objects",
        ),
        ({"messages": {"a": 1}}, "'messages' is an object, expected a list of messages"),
        ({"messages": []}, "'messages' is empty"),
        ({"messages": [USER]}, "no assistant turn"),
        ({"messages": [USER, {**ANSWER, "weight": 0}]}, "every assistant turn has weight 0"),
    ],
)
def test_what_is_wrong_with_a_row_is_named(row: dict[str, Any], message: str):
    assert refusal(row).message.startswith(message)


def test_a_missing_column_names_the_settings_that_would_do():
    error = refusal({"question": "2+2", "answer": "4"})
    assert error.message == "no 'messages' (found: question, answer)"
    settings = "data.columns='{prompt: question, completion: answer}'"
    assert error.hint == f"set data.format=prompt_completion {settings}"
