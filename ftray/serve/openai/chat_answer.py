"""The answers of chat completions."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ftray.serve.openai.answers import Head, Json, token_text
from ftray.serve.openai.call import Call
from ftray.serve.openai.flow import Part
from ftray.serve.openai.tools import Call as ToolCall
from ftray.serve.openai.tools import CallReader, Found
from ftray.serve.protocol import Token, TokenLogprob

_CHUNK = "chat.completion.chunk"


@dataclass
class _Choice:
    reader: CallReader | None
    text: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[Json] = field(default_factory=list)
    finish: str | None = None


class ChatAnswer:
    """One answer, of one or several choices."""

    def __init__(
        self, call: Call, head: Head, readers: Sequence[CallReader | None], *, tells_usage: bool
    ) -> None:
        self._call = call
        self._head = head
        self._choices = [_Choice(reader) for reader in readers]
        self._has_logprobs = call.plan.logprobs is not None
        self._tells_usage = tells_usage

    def opening(self) -> list[Json]:
        """Return the chunks that say who speaks."""
        delta: Json = {"role": "assistant", "content": "", "refusal": None}
        return [self._chunk(index, delta) for index in range(len(self._choices))]

    def take(self, part: Part) -> list[Json]:
        """Take the next part; return its chunks."""
        choice, piece = self._choices[part.choice], part.piece
        found = _read(choice.reader, piece.text, is_last=piece.finish is not None)
        logprobs = self._logprobs(piece.tokens)
        choice.logprobs += logprobs or []
        deltas = self._deltas(choice, found)
        if logprobs and not deltas:
            deltas.append({"content": ""})
        chunks = [self._chunk(part.choice, delta) for delta in deltas]
        if logprobs:
            chunks[0] = self._chunk(part.choice, deltas[0], logprobs)
        if piece.finish is not None:
            is_call = piece.finish == "stop" and choice.calls
            choice.finish = "tool_calls" if is_call else piece.finish
            chunks.append(self._chunk(part.choice, {}, finish=choice.finish))
        return chunks

    def usage_chunk(self) -> Json:
        """Return the chunk that tells the usage."""
        return {**self._head.json(_CHUNK, []), "usage": self._call.usage()}

    def body(self) -> Json:
        """Return the whole answer."""
        choices = [self._whole(index, choice) for index, choice in enumerate(self._choices)]
        return {**self._head.json("chat.completion", choices), "usage": self._call.usage()}

    def _deltas(self, choice: _Choice, found: Found) -> list[Json]:
        deltas: list[Json] = []
        if found.text:
            choice.text.append(found.text)
            deltas.append({"content": found.text})
        for call in found.calls:
            deltas.append({"tool_calls": [{"index": len(choice.calls), **_call(call)}]})
            choice.calls.append(call)
        return deltas

    def _chunk(
        self,
        index: int,
        delta: Json,
        logprobs: list[Json] | None = None,
        finish: str | None = None,
    ) -> Json:
        content = {"content": logprobs, "refusal": None} if logprobs else None
        choice: Json = {
            "index": index,
            "delta": delta,
            "logprobs": content,
            "finish_reason": finish,
        }
        chunk = self._head.json(_CHUNK, [choice])
        return {**chunk, "usage": None} if self._tells_usage else chunk

    def _whole(self, index: int, choice: _Choice) -> Json:
        text = "".join(choice.text)
        message: Json = {
            "role": "assistant",
            "content": text if text.strip() or not choice.calls else None,
            "refusal": None,
        }
        if choice.calls:
            message["tool_calls"] = [_call(call) for call in choice.calls]
        logprobs = {"content": choice.logprobs, "refusal": None} if self._has_logprobs else None
        return {
            "index": index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": choice.finish,
        }

    def _logprobs(self, tokens: Sequence[Token]) -> list[Json] | None:
        if not self._has_logprobs:
            return None
        return [
            {**_logprob(token.chosen), "top_logprobs": [_logprob(other) for other in token.top]}
            for token in tokens
            if token.chosen is not None
        ]


def _read(reader: CallReader | None, text: str, *, is_last: bool) -> Found:
    if reader is None:
        return Found(text)
    found = reader.read(text)
    if not is_last:
        return found
    rest = reader.finish()
    return Found(found.text + rest.text, found.calls + rest.calls)


def _call(call: ToolCall) -> Json:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _logprob(token: TokenLogprob) -> Json:
    return {
        "token": token_text(token),
        "bytes": list(token.text),
        "logprob": max(token.logprob, _LEAST),
    }


_LEAST = -9999.0  # OpenAI's number for a token that is impossible: JSON has no infinity
