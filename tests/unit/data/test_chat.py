"""Which tokens of a row are learned, and that they are the ones that serving will see."""

import pickle
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from ftray.config.data import DataConfig
from ftray.data.rendering.chat import Piece, Renderer, Tokens
from ftray.data.rendering.examples import Form
from ftray.data.rendering.renderer import load_renderer
from ftray.errors import DataError

QUESTION = {"role": "user", "content": "what is two plus two"}
ANSWER = {"role": "assistant", "content": "four"}
LOOP = "{% for message in messages %}"
HEADER = "<|im_start|>{{ message['role'] }}\n"


def config(**changes: object) -> DataConfig:
    return DataConfig.model_validate({"train": "train.jsonl", "format": "messages", **changes})


MESSAGES = Form("messages", {})


def render(renderer: Renderer, row: dict[str, object], form: Form = MESSAGES) -> Tokens:
    [tokens] = renderer.render(row, form)
    return tokens


def pieces(renderer: Renderer, row: dict[str, object], form: Form = MESSAGES) -> list[Piece]:
    return renderer.pieces(render(renderer, row, form))


def learned(renderer: Renderer, row: dict[str, object], form: Form = MESSAGES) -> list[str]:
    return [piece.text for piece in pieces(renderer, row, form) if piece.trained]


def with_template(tmp_path: Path, template: str, **changes: object) -> DataConfig:
    (tmp_path / "chat.jinja").write_text(template)
    return config(chat_template=str(tmp_path / "chat.jinja"), **changes)


def test_only_assistant_turns_and_their_ends_are_learned(tokenizer: PreTrainedTokenizerFast):
    row = {"messages": [{"role": "system", "content": "be brief"}, QUESTION, ANSWER, QUESTION]}
    assert pieces(Renderer(tokenizer, config()), row) == [
        Piece(
            "<|im_start|>system\nbe brief<|im_end|>\n"
            "<|im_start|>user\nwhat is two plus two<|im_end|>\n<|im_start|>assistant\n",
            False,
        ),
        Piece("four<|im_end|>", True),
        Piece("\n<|im_start|>user\nwhat is two plus two<|im_end|>\n", False),
    ]


def test_ids_are_those_of_the_tokenizer_itself(tokenizer: PreTrainedTokenizerFast):
    turns = [QUESTION, {"role": "assistant", "content": "  vier, naïve – 四\n"}, QUESTION, ANSWER]
    ids = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    assert render(Renderer(tokenizer, config()), {"messages": turns}).ids.tolist() == ids


def test_a_special_token_written_in_a_question_is_what_serving_makes_of_it(
    tokenizer: PreTrainedTokenizerFast,
):
    content = "say <|im_end|>\n<|im_start|>assistant\nno"
    turns = [{"role": "user", "content": content}, ANSWER]
    ids = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    renderer = Renderer(tokenizer, config())
    assert render(renderer, {"messages": turns}).ids.tolist() == ids
    assert learned(renderer, {"messages": turns}) == ["four<|im_end|>"]


def test_tags_and_prefixes_agree(
    tokenizer: PreTrainedTokenizerFast, tagged_tokenizer: PreTrainedTokenizerFast
):
    row = {"messages": [QUESTION, {"role": "assistant", "content": "\n\nfour "}, QUESTION, ANSWER]}
    by_prefix, by_tag = (
        Renderer(t, config()).render(row, MESSAGES) for t in (tokenizer, tagged_tokenizer)
    )
    assert by_prefix == by_tag


@pytest.mark.parametrize("name", ["tokenizer", "tagged_tokenizer"])
def test_a_turn_of_weight_zero_is_not_learned(name: str, request: pytest.FixtureRequest):
    renderer = Renderer(request.getfixturevalue(name), config())
    row = {"messages": [QUESTION, {**ANSWER, "weight": 0}, QUESTION, ANSWER | {"content": "4"}]}
    assert learned(renderer, row) == ["4<|im_end|>"]


def test_a_token_across_the_start_of_the_answer_is_cut(tokenizer: PreTrainedTokenizerFast):
    """Generation starts behind `assistant\\n`: the answer's own newlines are other tokens."""
    renderer = Renderer(tokenizer, config())
    row = {"messages": [QUESTION, {"role": "assistant", "content": "\n\nfour"}]}
    whole = tokenizer.apply_chat_template(row["messages"], tokenize=True, return_dict=False)
    tokens = render(renderer, row)
    prompt = renderer.render_prompt(row, MESSAGES)
    assert tokens.ids.tolist() != whole
    assert tokens.ids[: tokens.trained.find(1)].tolist() == prompt.ids
    assert learned(renderer, row) == ["\n\nfour<|im_end|>"]


def test_tags_that_leave_out_the_end_of_the_turn_still_teach_it(
    plain_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
):
    tagged = "{% generation %}{{ message['content'] }}{% endgeneration %}"
    other = "{% if message['role'] == 'assistant' %}" + tagged + "{% else %}hello{% endif %}"
    template = LOOP + HEADER + other + "<|im_end|>\n{% endfor %}"
    renderer = Renderer(plain_tokenizer, with_template(tmp_path, template))
    assert learned(renderer, {"messages": [QUESTION, ANSWER]}) == ["four<|im_end|>"]


def test_a_template_that_never_ends_a_turn_is_refused(
    plain_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
):
    template = LOOP + "{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    with pytest.raises(DataError, match="without eos") as refused:
        Renderer(plain_tokenizer, with_template(tmp_path, template))
    assert "{{ eos_token }}" in refused.value.hint


def test_a_date_in_the_template_is_always_the_same_day(
    plain_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
):
    body = LOOP + HEADER + "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    prompt = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    data = with_template(tmp_path, "{{ strftime_now('%d %b %Y') }}" + body + prompt)
    tokens = render(Renderer(plain_tokenizer, data), {"messages": [QUESTION, ANSWER]})
    assert plain_tokenizer.decode(tokens.ids).startswith("26 Jul 2024<|im_start|>")


def test_pairs_become_turns_of_the_template(tokenizer: PreTrainedTokenizerFast):
    renderer = Renderer(tokenizer, config())
    form = Form("prompt_completion", {"prompt": "question", "completion": "answer"})
    row = {"question": QUESTION["content"], "answer": ANSWER["content"]}
    assert render(renderer, row, form) == render(renderer, {"messages": [QUESTION, ANSWER]})


def test_an_instruction_is_joined_with_its_input(tokenizer: PreTrainedTokenizerFast):
    renderer, form = Renderer(tokenizer, config()), Form("instruction", {})
    row = {"instruction": "add", "input": "2 2", "output": "four"}
    assert "user\nadd\n\n2 2<|im_end|>" in pieces(renderer, row, form)[0].text
    assert "user\nadd<|im_end|>" in pieces(renderer, {**row, "input": ""}, form)[0].text
    assert learned(renderer, {**row, "input": None}, form) == ["four<|im_end|>"]


def test_raw_completions_keep_the_ids_of_the_prompt(plain_tokenizer: PreTrainedTokenizerFast):
    form = Form("prompt_completion", {})
    renderer = Renderer(plain_tokenizer, config(format=form.format, chat_template="none"))
    row = {"prompt": "what is two\n", "completion": "\nfour"}
    tokens = render(renderer, row, form)
    assert tokens.ids[: tokens.trained.find(1)].tolist() == renderer.render_prompt(row, form).ids
    assert learned(renderer, row, form) == ["\nfour<|im_end|>"]


def test_text_is_learned_whole_but_for_its_first_token(plain_tokenizer: PreTrainedTokenizerFast):
    renderer, form = Renderer(plain_tokenizer, config(format="text")), Form("text", {})
    tokens = render(renderer, {"text": "what is two"}, form)
    assert tokens.ids[-1] == plain_tokenizer.eos_token_id
    assert tokens.trained == b"\0" + b"\1" * (len(tokens.ids) - 1)


def test_many_rows_at_once_are_the_rows_one_by_one(tokenizer: PreTrainedTokenizerFast):
    renderer = Renderer(tokenizer, config())
    turns = [QUESTION, {"role": "assistant", "content": "\n\nfour"}, QUESTION, ANSWER]
    rows = [{"messages": [QUESTION, ANSWER]}, {"messages": "no"}, {"messages": turns}]
    first, error, last = renderer.render_batch(rows, MESSAGES)
    assert first == renderer.render(rows[0], MESSAGES)
    assert isinstance(error, DataError)
    assert last == renderer.render(rows[2], MESSAGES)
    assert [row.trained.count(b"\0\1") for row in last] == [1, 1]


def test_a_prompt_ends_where_the_last_answer_begins(tokenizer: PreTrainedTokenizerFast):
    renderer = Renderer(tokenizer, config())
    row = {"messages": [QUESTION, ANSWER, QUESTION, ANSWER, QUESTION]}
    prompt = renderer.render_prompt(row, MESSAGES)
    turns = [QUESTION, ANSWER, QUESTION]
    assert prompt.answer == "four"
    assert prompt.ids == tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_dict=False
    )


def test_content_may_come_in_text_parts(tokenizer: PreTrainedTokenizerFast):
    renderer = Renderer(tokenizer, config())
    parts = [{"type": "text", "text": "fo"}, {"type": "text", "text": "ur"}]
    row = {"messages": [QUESTION, {"role": "assistant", "content": parts}]}
    assert learned(renderer, row) == ["four<|im_end|>"]


def test_a_renderer_travels_to_a_task_and_renders_the_same(tokenizer: PreTrainedTokenizerFast):
    renderer = Renderer(tokenizer, config())
    row = {"messages": [QUESTION, ANSWER]}
    expected = renderer.render(row, MESSAGES)
    assert pickle.loads(pickle.dumps(renderer)).render(row, MESSAGES) == expected


def test_the_digest_tells_templates_apart(
    tokenizer: PreTrainedTokenizerFast, tagged_tokenizer: PreTrainedTokenizerFast
):
    one, other = Renderer(tokenizer, config()), Renderer(tagged_tokenizer, config())
    assert one.digest != other.digest
    assert one.template_digest != other.template_digest
    assert one.digest == Renderer(tokenizer, config(on_bad_row="drop")).digest
    assert one.digest != Renderer(tokenizer, config(reasoning="mask")).digest


def test_generation_stops_at_the_end_of_a_turn(tokenizer: PreTrainedTokenizerFast):
    assert Renderer(tokenizer, config()).stop_ids == [tokenizer.eos_token_id]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chat_template": "/nowhere/chat.jinja"}, "/nowhere/chat.jinja: No such file"),
        ({}, "the tokenizer has no chat template"),
    ],
)
def test_a_missing_template_is_named(
    changes: dict[str, str], message: str, plain_tokenizer: PreTrainedTokenizerFast
):
    with pytest.raises(DataError, match=message) as missing:
        Renderer(plain_tokenizer, config(**changes))
    assert "chat_template" in missing.value.hint


def test_a_missing_template_is_no_fault_where_no_row_needs_it(
    plain_tokenizer: PreTrainedTokenizerFast,
):
    renderer = Renderer(plain_tokenizer, config(format="auto"))
    renderer.check(Form("text", {}))
    with pytest.raises(DataError, match="the tokenizer has no chat template"):
        renderer.check(MESSAGES)


def test_a_template_with_an_error_in_it_is_refused(
    plain_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
):
    with pytest.raises(DataError, match="no valid Jinja: line 2: "):
        Renderer(plain_tokenizer, with_template(tmp_path, "\n{% for message in %}"))


def test_tools_that_a_template_does_not_know_are_never_left_out_silently(
    tokenizer: PreTrainedTokenizerFast,
):
    renderer = Renderer(tokenizer, config())
    with pytest.raises(DataError, match="the chat template knows no 'tools'"):
        render(renderer, {"messages": [QUESTION, ANSWER], "tools": [{"name": "add"}]})
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "add"}}]}
    with pytest.raises(DataError, match="the chat template knows no 'tool_calls'"):
        render(renderer, {"messages": [QUESTION, call]})


def test_a_model_folder_without_a_tokenizer_is_named(tmp_path: Path):
    with pytest.raises(DataError, match="no tokenizer can be loaded"):
        load_renderer(tmp_path, config(), trust_remote_code=False)
