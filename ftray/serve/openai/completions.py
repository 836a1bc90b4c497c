"""POST /v1/completions."""

from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from ftray.serve.openai.answers import head_of
from ftray.serve.openai.call import Asked, begin_call
from ftray.serve.openai.completion_answer import CompletionAnswer
from ftray.serve.openai.errors import INVALID, ApiError
from ftray.serve.openai.events import EventStream, whole
from ftray.serve.openai.identity import authenticate, refuse_when_draining
from ftray.serve.openai.limits import check_bias, too_long
from ftray.serve.openai.plan import Plan
from ftray.serve.openai.prompts import Wording, in_thread_if_long
from ftray.serve.openai.reading import read_body
from ftray.serve.openai.requests import CompletionRequest
from ftray.serve.openai.service import Resolved, Service
from ftray.serve.protocol import EngineInfo


async def create_completion(service: Service, request: Request) -> Response:
    """Continue texts, streamed or whole. Raises ApiError."""
    refuse_when_draining(service)
    principal = await authenticate(service, request, "serve")
    body = await read_body(request, CompletionRequest, service.settings.max_body_bytes)
    asked = Asked(request, principal, body.model, body.user)
    call = await begin_call(service, asked, partial(_plan, service, body))
    tells_usage = body.has_usage_chunk
    answer = CompletionAnswer(call, head_of(call, "cmpl", body.model), tells_usage=tells_usage)
    if body.stream:
        return EventStream(call, answer, tells_usage=tells_usage)
    return await whole(request, call, answer)


async def _plan(
    service: Service, body: CompletionRequest, resolved: Resolved, info: EngineInfo
) -> Plan:
    """Put a request into the tokens of the model that it goes to."""
    wording = await service.prompts.wording(resolved.tokenizer_digest, resolved.tokenizer)
    check_bias(body.logit_bias, wording.size)
    prompts = [await _ids(wording, prompt, info.max_length) for prompt in body.prompt]
    return Plan(
        prompts=prompts,
        sampling=body.sampling(),
        n=body.n,
        max_tokens=body.answer_tokens,
        stop=tuple(body.stop),
        stop_ids=wording.stop_ids(resolved.ends),
        logprobs=body.logprobs,
        echoes=tuple(_echo(wording, prompt) for prompt in body.prompt) if body.echo else (),
    )


async def _ids(wording: Wording, prompt: str | list[int], max_length: int) -> tuple[int, ...]:
    if isinstance(prompt, list):
        if max(prompt) >= wording.size:
            message = f"prompt: token {max(prompt)} is not in the vocabulary of {wording.size}"
            raise ApiError(INVALID, message, "prompt")
        return tuple(prompt)
    least = wording.least_tokens(prompt)
    if least > max_length:
        raise too_long(max_length, least, None)
    ids = await in_thread_if_long(len(prompt), lambda: wording.encode_raw(prompt))
    if not ids:
        raise ApiError(INVALID, "prompt: there is nothing to continue", "prompt")
    return tuple(ids)


def _echo(wording: Wording, prompt: str | list[int]) -> str:
    return prompt if isinstance(prompt, str) else wording.decode(prompt)
