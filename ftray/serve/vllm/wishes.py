"""A generation in vLLM's words: the body of its /v1/completions, and the grammar's."""

import json
from collections.abc import Collection
from typing import Any

from ftray.serve.protocol import Generation, RefusedError
from ftray.serve.vllm.client import SERVED_NAME, Body


def completion_body(
    generation: Generation, ends: Collection[int], base_name: str = SERVED_NAME
) -> Body:
    """Say everything: what is left out would be taken from the model's generation config.

    Several greedy choices are the same, and vLLM refuses to draw them: one is asked for.
    """
    wish, sampling = generation, generation.sampling
    body: dict[str, Any] = {
        "model": wish.adapter or base_name,
        "prompt": list(wish.prompt),
        "stream": True,
        "return_token_ids": True,
        "max_tokens": wish.max_tokens,
        "n": drawn_choices(wish),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": 1.0,
        "seed": sampling.seed,
        "stop": list(wish.stop),
        "stop_token_ids": sorted(ends),
        "ignore_eos": wish.ignore_eos,
    }
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    if wish.logprobs is not None:
        body |= {"logprobs": wish.logprobs, "return_tokens_as_token_ids": True}
    if wish.grammar is not None:
        body["structured_outputs"] = _structured(wish.grammar)
    return body


def drawn_choices(generation: Generation) -> int:
    """How many choices vLLM is asked for."""
    return generation.n if generation.sampling.temperature > 0 else 1


def _structured(grammar: str) -> dict[str, Any]:
    """Take a grammar out of llguidance's JSON, unless it is Lark as such.

    vLLM compiles it with llguidance again. It has a field for a schema and one for a Lark
    grammar, none for several that name one another, and guesses whether a grammar is GBNF.
    """
    parts = [{"lark_grammar": grammar}]
    if grammar.lstrip().startswith("{"):
        parts = json.loads(grammar)["grammars"]
    match parts:
        case [{"json_schema": schema}]:
            return {"json": json.dumps(schema)}
        case [{"lark_grammar": str(lark)}] if "::=" not in lark:
            return {"grammar": lark}
    raise RefusedError("vLLM takes one JSON schema or one Lark grammar", code="bad_grammar")
