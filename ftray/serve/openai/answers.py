"""What both kinds of completion answer with: a body at once, or chunks of a stream."""

import uuid
from dataclasses import dataclass
from typing import Protocol

from ftray.serve.openai.call import Call
from ftray.serve.openai.flow import Part
from ftray.serve.protocol import TokenLogprob

Json = dict[str, object]


class Answer(Protocol):
    """Turns the parts of a call into JSON."""

    def opening(self) -> list[Json]:
        """Return the chunks that come before any token."""
        ...

    def take(self, part: Part) -> list[Json]:
        """Take the next part; return its chunks, which only a stream sends."""
        ...

    def usage_chunk(self) -> Json:
        """Return the chunk without choices that ends a stream on request."""
        ...

    def body(self) -> Json:
        """Return the answer as a whole, after its last part."""
        ...


@dataclass(frozen=True)
class Head:
    """What every chunk and body begins with."""

    id: str
    created: int
    model: str
    fingerprint: str

    def json(self, kind: str, choices: list[Json]) -> Json:
        """Return an object of this kind with its choices."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }


def head_of(call: Call, prefix: str, model: str) -> Head:
    """Return the head of a call's answer; `model` is the id that was asked for."""
    return Head(f"{prefix}-{uuid.uuid4().hex}", call.created, model, call.fingerprint)


def token_text(token: TokenLogprob) -> str:
    """Return a token as text; a part of a character shows as a replacement mark."""
    return token.text.decode("utf-8", "replace")
