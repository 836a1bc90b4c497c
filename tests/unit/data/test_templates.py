"""Whatever a template does: each learned turn stands behind the ids that it is prompted with."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ftray.config.data import DataConfig
from ftray.data.rendering.chat import Renderer, Tokens
from ftray.data.rendering.examples import Form
from ftray.errors import DataError

TEMPLATES = {
    path.stem: path.read_text() for path in Path(__file__).parent.glob("templates/*.jinja")
}
# As Qwen 3.5: the prompt already opens the reasoning; without any, blank lines meet there.
TEMPLATES["opened"] = TEMPLATES["thinking"].replace(
    "assistant\\n' }}{% endif %}", "assistant\\n<think>\\n' }}{% endif %}"
)
CHATML, THINKING, OPENED = (TEMPLATES[name] for name in ("chatml", "thinking", "opened"))
SPECIAL = [
    *("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|header|>", "<|end|>", "<|eot|>"),
    *("<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "<think>", "</think>"),
]


def build(template: str, *, splits: bool = True) -> PreTrainedTokenizerFast:
    """Build a tokenizer that can be cut at blanks, or one that has to go by offsets."""
    tokenizer = Tokenizer(models.BPE())
    if splits:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        show_progress=False,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    words = "what is two plus two\n\n\nfour assistant user model system naïve so I add it\n\n"
    tokenizer.train_from_iterator([words * 3], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", chat_template=template
    )


def renderer(template: str, *, splits: bool = True, **changes: Any) -> Renderer:
    return Renderer(build(template, splits=splits), config(**changes))


def config(**changes: Any) -> DataConfig:
    return DataConfig.model_validate({"train": "train.jsonl", "format": "messages", **changes})


def render(with_: Renderer, *messages: dict[str, Any], **row: Any) -> list[Tokens]:
    return with_.render({"messages": list(messages), **row}, Form("messages", {}))


def shown(with_: Renderer, *messages: dict[str, Any], **row: Any) -> list[str]:
    """Each row of tokens as text, what is learned between « and »."""
    rows = [with_.pieces(tokens) for tokens in render(with_, *messages, **row)]
    return [
        "".join(f"«{piece.text}»" if piece.trained else piece.text for piece in pieces)
        for pieces in rows
    ]


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": "zwei ü"}}}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
CHATS = {
    "one turn": [user("what is two plus two"), assistant("four")],
    "three turns": [
        *(user("two plus two"), assistant("four")),
        *(user("is it"), assistant(" it is 四, naïve – so 😀")),
        *(user("\n\nwhat"), assistant("so  I\tadd it.\n")),
    ],
    "blank lines first": [user("is it"), assistant("\n\nfour"), user("so"), assistant("\nso")],
    "weight 0": [user("two"), assistant("two", weight=0), user("plus two"), assistant("four")],
    "question last": [user("two"), assistant("two"), user("plus two")],
}


@pytest.mark.parametrize("splits", [True, False])
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_each_learned_turn_follows_the_ids_of_its_prompt(name: str, chat: str, splits: bool):
    tokenizer, messages = build(TEMPLATES[name], splits=splits), CHATS[chat]
    rows = render(Renderer(tokenizer, config()), *messages)
    learned = [
        index
        for index, message in enumerate(messages)
        if message["role"] == "assistant" and message.get("weight", 1)
    ]
    assert sum(starts(row) for row in rows) == len(learned)
    for index in learned:
        prompt = prompt_ids(tokenizer, messages[:index])
        [row] = [
            row
            for row in rows
            if row.ids[: len(prompt)].tolist() == prompt and follows(row, prompt)
        ]
        first_unlearned = row.trained.find(0, len(prompt))
        end = first_unlearned if first_unlearned >= 0 else len(row.ids)
        answer = tokenizer.decode(row.ids[len(prompt) : end].tolist(), skip_special_tokens=True)
        assert messages[index]["content"].strip() in answer


def starts(row: Tokens) -> int:
    return row.trained.count(b"\0\1")


def follows(row: Tokens, prompt: list[int]) -> bool:
    return row.trained[len(prompt) - 1 : len(prompt) + 1] == b"\0\1"


def prompt_ids(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, Any]]) -> list[int]:
    """Return what serving would start from, as transformers itself renders and tokenizes it."""
    template = (tokenizer.chat_template or "").replace("strftime_now('%d %b %Y')", "'26 Jul 2024'")
    text = tokenizer.apply_chat_template(
        messages, chat_template=template, add_generation_prompt=True, tokenize=False
    )
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_cutting_at_blanks_and_offsets_give_the_same_rows(name: str, chat: str):
    tokenizer = build(TEMPLATES[name])
    fast = render(Renderer(tokenizer, config()), *CHATS[chat])
    tokenizer.backend_tokenizer.normalizer = None
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.ByteLevel(add_prefix_space=False), _NEUTRAL]
    )
    assert render(Renderer(tokenizer, config()), *CHATS[chat]) == fast


_NEUTRAL = pre_tokenizers.Split("\0never\0", "isolated")  # makes the tokenizer one of no known kind


@pytest.mark.parametrize("splits", [True, False])
def test_random_chats_have_the_rows_of_the_rule_written_out(splits: bool):
    """The rule by transformers alone: a turn shares the text if its prompt's ids begin it."""
    tokenizer, chance = build(CHATML, splits=splits), random.Random(1)
    chats = [random_chat(chance) for _ in range(300)]
    rendered = Renderer(tokenizer, config()).render_batch(
        [{"messages": chat} for chat in chats], Form("messages", {})
    )
    for chat, rows in zip(chats, rendered, strict=True):
        assert not isinstance(rows, DataError)
        assert [(row.ids.tolist(), list(row.trained)) for row in rows] == by_rule(tokenizer, chat)


_PARTS = [
    *("what", " is", "two ", "naïve", "四", "😀", "e\u0301", "it's", "12", "."),
    *(" ", "  ", "\n", "\n\n", "\t", "\xa0", "\r\n", "\x1c"),
]


def random_chat(chance: random.Random) -> list[dict[str, Any]]:
    def text() -> str:
        return "".join(chance.choices(_PARTS, k=chance.randint(1, 8))) + chance.choice(
            ["so", "\nso\n"]
        )

    turns = [(user(text()), assistant(text())) for _ in range(chance.randint(1, 3))]
    return [message for turn in turns for message in turn]


def by_rule(
    tokenizer: PreTrainedTokenizerFast, chat: list[dict[str, Any]]
) -> list[tuple[list[int], list[int]]]:
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    whole = tokenizer.apply_chat_template(chat, return_dict=False)
    learned, rows = [0] * len(whole), []
    shared_at = None
    for index in range(1, len(chat), 2):
        prompt = prompt_ids(tokenizer, chat[:index])
        if whole[: len(prompt)] == prompt:
            stop = whole.index(end, len(prompt)) + 1
            learned[len(prompt) : stop] = [1] * (stop - len(prompt))
            shared_at = len(rows) if shared_at is None else shared_at
        else:
            answer = tokenizer(f"{chat[index]['content']}<|im_end|>")["input_ids"]
            rows.append((prompt + answer, [0] * len(prompt) + [1] * len(answer)))
    if shared_at is not None:
        rows.insert(shared_at, (whole, learned))
    return rows


_BLANKS = {
    "metaspace": (None, pre_tokenizers.Metaspace()),
    "first only": (None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False)),
    "as Llama 2": (
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        None,
    ),
    "byte level": (None, pre_tokenizers.ByteLevel(add_prefix_space=True)),
}


@pytest.mark.parametrize("kind", _BLANKS)
def test_an_answer_has_no_blank_that_the_tokenizer_puts_before_every_text(kind: str):
    backend = Tokenizer(models.BPE())
    backend.normalizer, backend.pre_tokenizer = _BLANKS[kind]
    trainer = trainers.BpeTrainer(vocab_size=99, show_progress=False, special_tokens=SPECIAL)
    backend.train_from_iterator(["user assistant two four = ?\n\n\n"] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", chat_template=CHATML
    )
    [chat] = render(Renderer(tokenizer, config()), user("two?"), assistant("\n\nfour"))
    raw = Renderer(tokenizer, config(format="prompt_completion", chat_template="none"))
    [pair] = raw.render({"prompt": "two=", "completion": "two"}, Form("prompt_completion", {}))
    for row, answer in ((chat, "\n\nfour<|im_end|>"), (pair, "two<|im_end|>")):
        ids = row.ids[row.trained.find(1) : row.trained.rfind(1) + 1].tolist()
        assert "".join(tokenizer.convert_ids_to_tokens(ids)).replace("Ċ", "\n") == answer


def test_an_answer_whose_reasoning_is_dropped_later_is_learned_in_its_own_context():
    messages = [
        *(user("two"), assistant("it is two", reasoning_content="so I add")),
        *(user("plus two"), assistant("four", reasoning_content="add it")),
    ]
    first = "<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\n"
    second = "<|im_start|>user\nplus two<|im_end|>\n<|im_start|>assistant\n"
    assert shown(renderer(THINKING), *messages) == [
        f"{first}«<think>\nso I add\n</think>\n\nit is two<|im_end|>»\n",
        f"{first}it is two<|im_end|>\n{second}«<think>\nadd it\n</think>\n\nfour<|im_end|>»\n",
    ]


def test_turns_that_a_rendering_leaves_as_they_were_share_it():
    steps = [
        assistant("", tool_calls=[CALL], reasoning_content="add it"),
        tool("4"),
        assistant("4"),
    ]
    messages = [user("2+2"), *steps, user("so"), assistant("so it is")]
    several = shown(renderer(THINKING), *messages, tools=TOOLS)
    assert [row.count("«") for row in several] == [2, 1]
    assert "«<think>\nadd it\n</think>\n\n<call>" in several[0]
    assert "add it" not in several[1]


def tool(content: str) -> dict[str, Any]:
    return {"role": "tool", "name": "add", "tool_call_id": "1", "content": content}


@pytest.mark.parametrize("name", ["thinking", "dated"])
@pytest.mark.parametrize("stored", ["objects", "text"])
def test_tools_and_calls_are_rendered_alike_as_objects_and_as_text(name: str, stored: str):
    arguments = CALL["function"]["arguments"]
    call: Any = {**CALL, "function": {"name": "add", "arguments": json.dumps(arguments)}}
    calls = [CALL] if stored == "objects" else [call]
    tools = TOOLS if stored == "objects" else json.dumps(TOOLS)
    messages = [user("2+2"), assistant(None, tool_calls=calls), tool("4"), assistant("4")]
    text = "".join(shown(renderer(TEMPLATES[name]), *messages, tools=tools))
    assert '{"a": 2, "b": "zwei ü"}' in text
    assert '{"type": "object"}' in text or '"type": "object"' in text
    assert text.count("«") == 2


def test_a_template_that_wants_arguments_as_text_gets_them_so():
    template = CHATML.replace(
        "message.content +",
        "(message.content or message.tool_calls[0].function.name + '(' +"
        " message.tool_calls[0].function.arguments + ')') +",
    )
    [text] = shown(renderer(template), user("2+2"), assistant("", tool_calls=[CALL]))
    assert '«add({"a": 2, "b": "zwei ü"})<|im_end|>»' in text


def test_a_template_that_leaves_a_call_out_is_refused():
    template = CHATML + "{# tool_calls #}"
    with pytest.raises(DataError, match="leaves out a call of 'add'"):
        render(renderer(template), user("2+2"), assistant("so", tool_calls=[CALL]))


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_masked_reasoning_is_read_but_not_learned(key: str):
    messages = [user("two"), assistant("it is two", **{key: "so I add"})]
    [text] = shown(renderer(THINKING, reasoning="mask"), *messages)
    assert text.endswith("assistant\n<think>\nso I add\n</think>«\n\nit is two<|im_end|>»\n")
    [kept] = render(renderer(THINKING), *messages)
    [masked] = render(renderer(THINKING, reasoning="mask"), *messages)
    assert kept.ids == masked.ids


@pytest.mark.parametrize("special", [True, False])
def test_inline_reasoning_is_masked_with_its_tags(special: bool):
    tags = ("<think>", "</think>")
    template = CHATML if special else CHATML.replace("message.content +", "message.content|trim +")
    tokenizer = build(template)
    if not special:
        plain = json.loads(tokenizer.backend_tokenizer.to_str())
        plain["added_tokens"] = [t for t in plain["added_tokens"] if t["content"] not in tags]
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(json.dumps(plain)),
            eos_token="<|im_end|>",
            chat_template=template,
        )
    masking = Renderer(tokenizer, config(reasoning="mask"))
    [text] = shown(masking, user("two"), assistant("<think>so I add</think>it is two"))
    assert text.endswith("assistant\n<think>so I add</think>«it is two<|im_end|>»\n")
    [text] = shown(masking, user("two"), assistant("it is two"))
    assert text.endswith("assistant\n«it is two<|im_end|>»\n")


def test_reasoning_that_the_prompt_opens_is_masked_to_its_end():
    messages = [user("two"), assistant("it is two", reasoning_content="so I add")]
    [text] = shown(renderer(OPENED, reasoning="mask"), *messages)
    assert text.endswith("<think>\nso I add\n</think>«\n\nit is two<|im_end|>»\n")


@pytest.mark.parametrize("reasoning", ["keep", "mask"])
def test_reasoning_that_the_template_leaves_out_is_never_lost_silently(reasoning: str):
    with pytest.raises(DataError, match="leaves out an answer's reasoning") as refused:
        render(
            renderer(CHATML, reasoning=reasoning),
            *(user("two"), assistant("it is two", reasoning_content="so I add")),
        )
    assert "data.chat_template=PATH" in refused.value.hint


def test_a_template_that_does_not_write_what_it_prompts_for_is_refused():
    template = CHATML.replace("assistant\\n'", "assistant\\n<think>'")
    with pytest.raises(DataError, match=r"does not write what it prompts for \(message 2\)"):
        renderer(template)


def test_a_template_that_only_takes_answers_with_reasoning_refuses_the_others():
    template = OPENED.replace("(loop.last or thought)", "thought")
    with_ = renderer(template)
    assert shown(with_, user("two"), assistant("it is two", reasoning_content="so"))
    with pytest.raises(DataError, match="does not write what it prompts for"):
        render(with_, user("two"), assistant("it is two"))
