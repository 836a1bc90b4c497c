"""What a request may take: of the model's context, and of its key's limits."""

from dataclasses import dataclass

from ftray.serve.openai.access import Admission, Allowance, Principal
from ftray.serve.openai.errors import INVALID, RATE_LIMIT, TOO_LONG, ApiError
from ftray.serve.openai.plan import Plan
from ftray.serve.openai.service import Service


def answer_room(prompt: int, max_tokens: int | None, max_length: int) -> int:
    """Return how many tokens an answer may have; raises ApiError when they don't fit."""
    left = max_length - prompt
    wanted = 1 if max_tokens is None else max_tokens
    if wanted > left:
        raise too_long(max_length, prompt, max_tokens)
    return left if max_tokens is None else max_tokens


def too_long(max_length: int, prompt: int, max_tokens: int | None) -> ApiError:
    """Return the error of what does not fit the context, in the words that clients look for."""
    answer = "" if max_tokens is None else f" and {max_tokens} for the answer"
    return ApiError(
        TOO_LONG,
        f"This model's maximum context length is {max_length} tokens. However, you requested"
        f" {prompt} in the prompt{answer}.",
        "max_tokens" if max_tokens is not None and prompt < max_length else None,
    )


def reserve(service: Service, principal: Principal, plan: Plan, rooms: list[int]) -> "Reserved":
    """Count a request against its key's limits; raises ApiError when it has to wait."""
    estimate = service.settings.reserved_answer
    answers = [room if plan.max_tokens else min(room, estimate) for room in rooms]
    tokens = sum(map(len, plan.prompts)) + plan.n * sum(answers)
    admission = service.access.admit(principal.key, tokens)
    headers = _headers(admission)
    if not admission.refusal:
        return Reserved(tokens, headers)
    if admission.wait is None:
        headers["x-should-retry"] = "false"  # OpenAI's client would try in vain
    raise ApiError(RATE_LIMIT, admission.refusal, retry_after=admission.wait, headers=headers)


@dataclass(frozen=True)
class Reserved:
    """Tokens that a request was admitted with, and headers that tell what is left."""

    tokens: int
    headers: dict[str, str]


def _headers(admission: Admission) -> dict[str, str]:
    limits = {"requests": admission.requests, "tokens": admission.tokens}
    known = {name: limit for name, limit in limits.items() if limit is not None}
    return {key: text for name, limit in known.items() for key, text in _lines(name, limit).items()}


def _lines(name: str, limit: Allowance) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{name}": str(limit.limit),
        f"x-ratelimit-remaining-{name}": str(limit.remaining),
        f"x-ratelimit-reset-{name}": f"{limit.reset:.3f}s",
    }


def check_bias(bias: dict[str, float], vocabulary: int) -> None:
    """Raise ApiError for a bias on a token that there is not."""
    foreign = [key for key in bias if int(key) >= vocabulary]
    if foreign:
        message = f"logit_bias: token {foreign[0]} is not in the vocabulary of {vocabulary}"
        raise ApiError(INVALID, message, f"logit_bias.{foreign[0]}")
