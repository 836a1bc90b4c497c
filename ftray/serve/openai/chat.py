"""POST /v1/chat/completions."""

from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from ftray.errors import DataError
from ftray.serve.openai.answers import head_of
from ftray.serve.openai.call import Asked, Call, begin_call
from ftray.serve.openai.chat_answer import ChatAnswer
from ftray.serve.openai.errors import INVALID, UNSUPPORTED, ApiError
from ftray.serve.openai.events import EventStream, whole
from ftray.serve.openai.grammars import format_grammar, style_of, tool_grammar
from ftray.serve.openai.identity import authenticate, refuse_when_draining
from ftray.serve.openai.limits import check_bias, too_long
from ftray.serve.openai.plan import Plan
from ftray.serve.openai.prompts import Wording, in_thread_if_long
from ftray.serve.openai.reading import read_body
from ftray.serve.openai.requests import ChatRequest
from ftray.serve.openai.service import Resolved, Service
from ftray.serve.openai.tools import CallReader, CallStyle
from ftray.serve.protocol import EngineInfo


async def create_chat(service: Service, request: Request) -> Response:
    """Answer a chat, streamed or whole. Raises ApiError."""
    refuse_when_draining(service)
    principal = await authenticate(service, request, "serve")
    body = await read_body(request, ChatRequest, service.settings.max_body_bytes)
    asked = Asked(request, principal, body.model, body.user or body.safety_identifier)
    call = await begin_call(service, asked, partial(_plan, service, body))
    tells_usage = body.has_usage_chunk
    answer = ChatAnswer(
        call, head_of(call, "chatcmpl", body.model), _readers(body, call), tells_usage=tells_usage
    )
    if body.stream:
        return EventStream(call, answer, tells_usage=tells_usage)
    return await whole(request, call, answer)


async def _plan(service: Service, body: ChatRequest, resolved: Resolved, info: EngineInfo) -> Plan:
    """Put a request into the words of the model that it goes to."""
    wording = await service.prompts.wording(resolved.tokenizer_digest, resolved.tokenizer)
    check_bias(body.logit_bias, wording.size)
    style = style_of(wording.template) if body.has_tools else None
    prompt = await _prompt(wording, body, info.max_length)
    grammar = await _grammar(body, style)
    return Plan(
        prompts=[tuple(prompt)],
        sampling=body.sampling(),
        n=body.n,
        max_tokens=body.answer_tokens,
        stop=tuple(body.stop),
        stop_ids=wording.stop_ids(resolved.ends),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        grammar=grammar,
        calls=style,
    )


async def _prompt(wording: Wording, body: ChatRequest, max_length: int) -> list[int]:
    size = sum(len(message.content or "") for message in body.messages)
    tools = [tool.model_dump(exclude_none=True) for tool in body.tools] if body.has_tools else None

    def encode() -> list[int]:
        text = wording.render([message.rendered() for message in body.messages], tools)
        least = wording.least_tokens(text)
        if least > max_length:
            raise too_long(max_length, least, None)
        return wording.encode(text)

    try:
        prompt = await in_thread_if_long(size, encode)
    except DataError as error:
        raise _unrendered(error) from None
    if not prompt:
        raise ApiError(INVALID, "messages: the template makes an empty prompt of them", "messages")
    return prompt


def _unrendered(error: DataError) -> ApiError:
    kind = UNSUPPORTED if "knows no" in error.message else INVALID
    hint = f" ({error.hint})" if error.hint.startswith("use ") else ""
    return ApiError(kind, f"messages: {error.message}{hint}", "messages")


async def _grammar(body: ChatRequest, style: CallStyle | None) -> str | None:
    if style is not None:
        return await tool_grammar(body, style)
    return await format_grammar(body.response_format)


def _readers(body: ChatRequest, call: Call) -> list[CallReader | None]:
    if call.plan.calls is None:
        return [None] * body.n
    names = [tool.function.name for tool in body.tools]
    several = body.parallel_tool_calls
    return [CallReader(call.plan.calls, names, several=several) for _ in range(body.n)]
