import json

import openai
import pytest

from ftray.errors import DataError
from ftray.serve.openai.tools import Call, CallReader, CallStyle, call_style

TAGS = CallStyle("<tool_call>", "</tool_call>", "arguments")
BARE = CallStyle("", "", "parameters")
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    },
    {"type": "function", "function": {"name": "get_time"}},
]


def written(name: str, **arguments: object) -> str:
    call = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{call}\n</tool_call>"


def read(reader: CallReader, text: str, size: int) -> tuple[str, list[tuple[str, object]]]:
    """Read a text in bits of a size; return what was said and called."""
    bits = [text[i : i + size] for i in range(0, len(text), size)]
    found = [*(reader.read(bit) for bit in bits), reader.finish()]
    calls: list[Call] = [call for part in found for call in part.calls]
    said = "".join(part.text for part in found)
    return said, [(call.name, json.loads(call.arguments)) for call in calls]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    ("text", "said", "calls"),
    [
        ("no calls, 1 < 2 <tool", "no calls, 1 < 2 <tool", []),
        (written("a", x=1), "", [("a", {"x": 1})]),
        ("So: " + written("a", x="<tool_call>"), "So: ", [("a", {"x": "<tool_call>"})]),
        (written("a") + "\n" + written("b", y="ü"), "", [("a", {}), ("b", {"y": "ü"})]),
        (written("a") + "\n done", "done", [("a", {})]),
        ("<tool_call>not json</tool_call>", "<tool_call>not json</tool_call>", []),
        (written("unknown"), written("unknown"), []),
        ('<tool_call>{"name": "a", "arguments": {}}', "", [("a", {})]),
        ('<tool_call>{"name": "a", "arg', '<tool_call>{"name": "a", "arg', []),
    ],
)
def test_calls_are_read_however_the_text_is_cut(text, said, calls, size):
    assert read(CallReader(TAGS, ["a", "b"], several=True), text, size) == (said, calls)


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_a_bare_object_is_a_call_and_other_text_is_none(size):
    call = '{"name": "a", "parameters": {"x": 1}}'
    assert read(CallReader(BARE, ["a"], several=True), call, size) == ("", [("a", {"x": 1})])
    for text in ("plain {text}", '{"name": "b", "parameters": {}}', '{"x": 1'):
        assert read(CallReader(BARE, ["a"], several=True), text, size) == (text, [])


def test_only_one_call_is_given_out_when_calls_may_not_be_parallel():
    text = written("a") + written("b")
    reader = CallReader(TAGS, ["a", "b"], several=False)
    assert read(reader, text, 3) == ("", [("a", {})])


def test_the_style_of_calls_is_read_from_the_template():
    assert call_style("{{ tools }} <tool_call>") == TAGS
    assert call_style('{{ tools }} {"name": n, "parameters": p}') == BARE
    for template in ("no such thing", "tools <tool_call><function=x>", "tools [TOOL_CALLS]"):
        with pytest.raises(DataError):
            call_style(template)


def ask(client: openai.OpenAI, text: str, **changes: object) -> object:
    arguments = {"model": "caller", "tools": TOOLS, **changes}
    return client.chat.completions.create(messages=[{"role": "user", "content": text}], **arguments)


def test_a_call_comes_as_openai_has_it(client):
    answer = ask(client, "I look. " + written("get_weather", city="Köln"))
    [choice] = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content.endswith("I look. ")
    [call] = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "get_weather")
    assert json.loads(call.function.arguments) == {"city": "Köln"}
    assert call.id.startswith("call_")


def test_calls_are_streamed_with_their_index(client):
    text = written("get_weather", city="a") + written("get_time")
    chunks = list(ask(client, text, stream=True))
    found = [c for chunk in chunks for c in chunk.choices[0].delta.tool_calls or []]
    assert [(c.index, c.function.name) for c in found] == [(0, "get_weather"), (1, "get_time")]
    assert [json.loads(c.function.arguments) for c in found] == [{"city": "a"}, {}]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert "tool_call" not in said


def test_plain_text_is_streamed_while_tools_are_offered(client):
    chunks = list(ask(client, "a < b, no <tool> here", stream=True))
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert said.endswith("a < b, no <tool> here")
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_the_template_is_given_the_tools_and_the_history(server, client):
    call = {"id": "c1", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}
    client.chat.completions.create(
        model="caller",
        tools=TOOLS,
        messages=[
            {"role": "user", "content": "When?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "noon"},
        ],
    )
    prompt = server.engine._tokenizer.decode(list(server.engine.seen[-1].prompt))
    assert '"name": "get_weather"' in prompt
    assert '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>' in prompt
    assert "<|im_start|>tool\nnoon<|im_end|>" in prompt


def test_tools_that_may_not_be_called_are_not_shown(server, client):
    answer = ask(client, written("get_time"), tool_choice="none")
    assert answer.choices[0].message.tool_calls is None
    prompt = server.engine._tokenizer.decode(list(server.engine.seen[-1].prompt))
    assert "get_weather" not in prompt


def test_a_required_call_is_held_to_its_schema_by_a_grammar(server, client):
    """The engine here refuses what its grammar forbids; it answers behind its digest."""
    for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, "no call at all", tool_choice=choice)
        assert caught.value.code == "invalid_schema"
    strict = [{**TOOLS[0], "function": {**TOOLS[0]["function"], "strict": True}}]
    assert ask(client, "free text", tools=strict).choices[0].message.content.endswith("free text")
    right = ask(client, written("get_weather", city="a"), tools=strict)
    assert right.choices[0].finish_reason == "tool_calls"
    with pytest.raises(openai.BadRequestError):
        ask(client, written("get_weather", town="a"), tools=strict)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"model": "org/tiny-base"}, "tools"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "no"}}},
            "tool_choice.function.name",
        ),
        ({"tools": [], "tool_choice": "required"}, None),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "retrieval"}]}, "tools.0.type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        (
            {
                "tools": [
                    {"type": "function", "function": {"name": "a", "parameters": {"type": "strng"}}}
                ],
                "tool_choice": "required",
            },
            "tools",
        ),
    ],
)
def test_what_tools_cannot_be_is_a_400_that_names_it(client, changes, param):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, "x", **changes)
    assert caught.value.param == param


def test_the_clients_helper_gathers_streamed_calls(client):
    text = written("get_weather", city="a") + written("get_time")
    with client.chat.completions.stream(
        model="caller", tools=TOOLS, messages=[{"role": "user", "content": text}]
    ) as stream:
        for _ in stream:
            pass
        message = stream.get_final_completion().choices[0].message
    assert [call.function.name for call in message.tool_calls] == ["get_weather", "get_time"]
