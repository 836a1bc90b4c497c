"""The API over the real engine and a tiny model: what comes over HTTP is what PEFT gives alone."""

import json
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from ftray import registry
from ftray.config.run import ModelConfig
from ftray.model.export import load_with_peft
from ftray.registry import AdapterRecord, BaseModel
from ftray.serve.engine.engine import EmbeddedEngine
from ftray.serve.engine.limits import EngineLimits

BASE = "org/tiny-base"
NAMES = ("red", "green", "blue")
LIMITS = EngineLimits(rows=4, kv_bytes=64 << 20, adapter_bytes=64 << 20, threads=1)
PROMPTS = ("one", "zwei zwei", "drei", "four and five")
TOKENS = 16
_NO_BYTE = 255  # is in no text, and marks special tokens for llguidance


@dataclass
class Real:
    """A server over the real engine, and greedy answers that PEFT gives alone, as bytes."""

    server: Any
    expected: dict[tuple[str, str], list[int]]


@pytest.fixture(scope="module")
def real(
    serve: Callable[..., Any],
    tiny_folder: Path,
    tools_template: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Real:
    root = str(tmp_path_factory.mktemp("root"))
    expected = dict(_alone(AutoModelForCausalLM.from_pretrained(tiny_folder), BASE, tiny_folder))
    for seed, name in enumerate(NAMES):
        folder = tmp_path_factory.mktemp(name)
        _random_adapter(tiny_folder, folder, seed)
        _publish(root, folder, name)
        base = AutoModelForCausalLM.from_pretrained(tiny_folder)
        expected |= _alone(load_with_peft(base, folder), name, tiny_folder)
    folder = tmp_path_factory.mktemp("caller")  # with a tokenizer whose template has tools
    _random_adapter(tiny_folder, folder, len(NAMES))
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.chat_template = tools_template
    tokenizer.save_pretrained(folder)
    _publish(root, folder, "caller")
    model = ModelConfig(name=str(tiny_folder), dtype="float32")
    engine = EmbeddedEngine(tiny_folder, model, LIMITS, torch.device("cpu"))
    return Real(serve(root, engine=engine), expected)


def _publish(root: str, folder: Path, name: str) -> None:
    record = AdapterRecord(
        name=name,
        kind="adapter",
        base=BaseModel(name=BASE, revision=None, fingerprint="f" * 64),
        method="lora",
        rank=8,
        tokenizer_digest="",
        template_digest="",
    )
    registry.publish(root, folder, record)


def _random_adapter(base: Path, folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT asks transformers by a name that is deprecated
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for name, weights in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the base's config cannot be looked up
        model.save_pretrained(folder)


def _alone(model: Any, name: str, folder: Path) -> dict[tuple[str, str], list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = {}
    for prompt in PROMPTS:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
        )
        with torch.no_grad():
            made = model.generate(
                input_ids=torch.tensor([ids]), max_new_tokens=TOKENS, do_sample=False
            )
        new = made[0, len(ids) :].tolist()  # beyond a special token one may stop, or go on
        kept = takewhile(lambda id: id not in tokenizer.all_special_ids, new)
        answer = b"".join(_bytes(tokenizer, id) for id in kept)
        found[name, prompt] = [byte for byte in answer if byte != _NO_BYTE]
    return found


def _bytes(tokenizer: Any, id: int) -> bytes:
    """A token of the tiny tokenizer is one byte, written as one of 256 printable letters."""
    [letter] = tokenizer.convert_ids_to_tokens([id])
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    number = ord(letter)
    return bytes([number if number < 256 else others[number - 256]])


def answered(real: Real, name: str, prompt: str, *, stream: bool) -> list[int]:
    """Return an answer's bytes, token by token, as its logprobs tell them."""
    answer = real.server.client.chat.completions.create(
        model=name,
        messages=[{"role": "user", "content": prompt}],
        temperature=0,
        max_tokens=TOKENS,
        logprobs=True,
        stream=stream,
    )
    parts = answer if stream else [answer]
    tokens = [t for p in parts if p.choices[0].logprobs for t in p.choices[0].logprobs.content]
    kept = takewhile(lambda token: not token.token.startswith("<|"), tokens)
    return [byte for token in kept for byte in token.bytes if byte != _NO_BYTE]


def test_mixed_concurrent_requests_are_answered_as_each_alone(real):
    cases = [(name, prompt) for prompt in PROMPTS for name in (BASE, *NAMES)]
    for prompt in PROMPTS:  # otherwise a mistaken adapter would not show
        rows = [tuple(real.expected[name, prompt]) for name in (BASE, *NAMES)]
        assert len(set(rows)) == len(rows)
    with ThreadPoolExecutor(8) as threads:
        streams = [number % 2 == 0 for number in range(len(cases))]
        found = list(threads.map(lambda c, s: answered(real, *c, stream=s), cases, streams))
    assert found == [real.expected[case] for case in cases]


def test_a_seed_gives_the_same_answer_again_and_in_a_stream(real):
    asked = {
        "model": "red",
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": 12,
        "seed": 7,
        "n": 2,
    }
    create = real.server.client.chat.completions.create
    first, again = create(**asked), create(**asked)
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices]
    assert texts[0] != texts[1]
    streamed = ["", ""]
    for chunk in create(**asked, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts
    assert create(**{**asked, "seed": 8}).choices[0].message.content != texts[0]


SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "kind": {"enum": ["a", "b"]}},
    "required": ["ok", "kind"],
    "additionalProperties": False,
}


def test_a_schema_holds_a_model_that_knows_no_json(real):
    answer = real.server.client.chat.completions.create(
        model="blue",
        messages=[{"role": "user", "content": "x"}],
        response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}},
        temperature=0,
    )
    assert answer.choices[0].finish_reason == "stop"
    assert set(json.loads(answer.choices[0].message.content)) == {"ok", "kind"}


@pytest.mark.parametrize("form", ["response_format", "tool"])
def test_a_model_that_loves_blanks_ends_its_json(real, form):
    tool = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
    schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
    asked = {
        "response_format": {"response_format": schema},
        "tool": {"tools": [tool], "tool_choice": "required", "parallel_tool_calls": False},
    }[form]
    answer = real.server.client.chat.completions.create(
        model="caller",
        messages=[{"role": "user", "content": "x"}],
        logit_bias=_love_of_blanks(real),
        max_tokens=150,
        **asked,
    )
    [choice] = answer.choices
    assert choice.finish_reason == {"response_format": "stop", "tool": "tool_calls"}[form]
    calls = choice.message.tool_calls
    text = calls[0].function.arguments if calls else choice.message.content
    assert set(json.loads(text)) == {"ok", "kind"}
    assert calls or '": ' in text  # it had its blanks


def _love_of_blanks(real: Real) -> dict[str, float]:
    tokenizer = AutoTokenizer.from_pretrained(real.server.engine._folder)
    ids = [id for blank in " \n\t\r" for id in tokenizer.encode(blank, add_special_tokens=False)]
    return {str(id): 100 for id in ids}


def test_stop_strings_and_context_are_the_engines_own(real, send):
    [chosen] = real.server.client.chat.completions.create(
        model=BASE, messages=[{"role": "user", "content": "one"}], temperature=0, max_tokens=TOKENS
    ).choices
    stop = chosen.message.content[4:6]
    cut = real.server.client.chat.completions.create(
        model=BASE,
        messages=[{"role": "user", "content": "one"}],
        temperature=0,
        max_tokens=TOKENS,
        stop=[stop],
    )
    assert cut.choices[0].message.content == chosen.message.content.partition(stop)[0]
    assert cut.choices[0].finish_reason == "stop"
    body = {"model": BASE, "prompt": "x" * 600}
    reply = send(real.server, "POST", "/v1/completions", body)
    assert (reply.status, reply.error["code"]) == (400, "context_length_exceeded")


def test_readiness_tells_what_runs(real, send):
    engine = send(real.server, "GET", "/readyz").json["engine"]
    assert (engine["kind"], engine["max_length"], engine["dtype"]) == ("embedded", 512, "float32")
    assert "ftray_engine_kv_budget" in send(real.server, "GET", "/metrics").body.decode()
