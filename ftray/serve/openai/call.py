"""One completion from its beginning to its end: model, limits, engine, and what it has used."""

import hashlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from starlette.requests import Request

from ftray.errors import ServeError
from ftray.serve.openai.access import Principal
from ftray.serve.openai.errors import GONE, UNAVAILABLE, ApiError
from ftray.serve.openai.flow import Flow, Part
from ftray.serve.openai.identity import find_model, model_error, sticky_key
from ftray.serve.openai.limits import Reserved, answer_room, reserve
from ftray.serve.openai.plan import MakePlan, Plan
from ftray.serve.openai.presence import while_there
from ftray.serve.openai.service import Resolved, Service
from ftray.serve.openai.shadow import cast_shadow
from ftray.serve.openai.trace import Trace, trace_of
from ftray.serve.protocol import EngineInfo


@dataclass(frozen=True)
class Asked:
    """A request as far as both kinds of completion have the same."""

    request: Request
    principal: Principal
    model: str
    user: str


async def begin_call(service: Service, asked: Asked, make_plan: MakePlan) -> "Call":
    """Find the model, make the prompt, count it against the key's limits, and start.

    It returns when the engine has taken the request, its adapter is loaded, and the first tokens
    or a while have come: what fails until then is answered with a status of its own.
    """
    trace = trace_of(asked.request)
    sticky = sticky_key(asked.principal, asked.user, trace.id)
    resolved = await find_model(service, asked.principal, asked.model, sticky)
    trace.model, trace.version = resolved.model, resolved.version
    info = await engine_info(service)
    try:
        plan = await make_plan(resolved, info)
    except ServeError as error:
        raise model_error(error, asked.model) from None
    rooms = [answer_room(len(ids), plan.max_tokens, info.max_length) for ids in plan.prompts]
    reserved = reserve(service, asked.principal, plan, rooms)
    call = Call(service, trace, resolved, plan, info, reserved)
    trace.on_end.append(call.close)
    seconds = service.settings.deadline_seconds
    generations = plan.generations(trace.id, resolved, rooms, asked.principal.key, seconds)
    traced = [replace(one, traceparent=trace.traceparent) for one in generations]
    await while_there(asked.request.receive, call.begin(Flow(service.engines, traced)))
    if resolved.shadow is not None:
        cast_shadow(service, resolved.shadow, make_plan, trace.id)
    return call


async def engine_info(service: Service) -> EngineInfo:
    """Return what the engine runs; raises ApiError while it is starting."""
    info = await service.engines.info()
    if info is None:
        raise ApiError(UNAVAILABLE, "the model is being loaded", retry_after=5)
    return info


class Call:
    """A running completion. The edge closes it in any case, when nothing more can be sent."""

    def __init__(
        self,
        service: Service,
        trace: Trace,
        resolved: Resolved,
        plan: Plan,
        info: EngineInfo,
        reserved: Reserved,
    ) -> None:
        self.plan = plan
        self.trace = trace
        self.created = int(service.clock())
        self.headers = {"x-ftray-version": resolved.version, **reserved.headers}
        self.fingerprint = _fingerprint(info, resolved)
        self._service = service
        self._resolved = resolved
        self._reserved = reserved
        self._flow: Flow | None = None
        self._first: list[Part] = []
        self._last_step = 0.0
        self._prompt_tokens = 0
        self._answer_tokens = 0

    async def begin(self, flow: Flow) -> None:
        """Hand the generations to the engine, and wait a while for their first tokens."""
        self._flow = flow
        await flow.open(self._resolved.source)
        self._prompt_tokens = sum(map(len, self.plan.prompts))
        self._first = await flow.next(self._service.settings.ping_seconds)

    async def parts(self) -> AsyncIterator[list[Part]]:
        """Yield what each step adds; an empty list when nothing came for a while."""
        parts, flow = self._first, self._flow
        while flow is not None:
            self._count(parts)
            yield parts
            if flow.is_done:
                return
            parts = await flow.next(self._service.settings.ping_seconds)

    def usage(self) -> dict[str, int]:
        """Return the tokens used so far, in OpenAI's shape."""
        prompt, answer = self._prompt_tokens, self._answer_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "total_tokens": prompt + answer,
        }

    def close(self) -> None:
        """Cancel what still runs, and enter what was used."""
        metrics, trace, resolved = self._service.metrics, self.trace, self._resolved
        if self._flow is not None:
            if not self._flow.is_done and trace.error in (None, GONE.code):
                metrics.cancels.labels(resolved.model).inc()
            self._flow.close()
        prompt, answer = self._prompt_tokens, self._answer_tokens
        metrics.prompt_tokens.labels(resolved.model, resolved.version).inc(prompt)
        metrics.answer_tokens.labels(resolved.model, resolved.version).inc(answer)
        trace.prompt_tokens, trace.answer_tokens = prompt, answer
        self._service.access.used(
            trace.key, resolved.version, self._reserved.tokens, prompt, answer
        )

    def _count(self, parts: list[Part]) -> None:
        tokens = sum(len(part.piece.tokens) for part in parts)
        if not tokens:
            return
        now = time.monotonic()
        metrics, model = self._service.metrics, self._resolved.model
        if self.trace.first_token_seconds is None:
            seconds = now - self.trace.started
            self.trace.first_token_seconds = round(seconds, 4)
            metrics.first_token.labels(model).observe(seconds)
        else:
            metrics.between_tokens.labels(model).observe(now - self._last_step)
        self._last_step = now
        self._answer_tokens += tokens


def _fingerprint(info: EngineInfo, resolved: Resolved) -> str:
    """Name the combination that answers depend on beside the request."""
    parts = [info.kind, info.model, info.dtype, resolved.digest]
    return "fp_" + hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
