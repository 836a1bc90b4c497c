"""The answers of plain completions."""

import codecs
from dataclasses import dataclass, field

from ftray.serve.openai.answers import Head, Json, token_text
from ftray.serve.openai.call import Call
from ftray.serve.openai.flow import Part
from ftray.serve.protocol import Token

_KIND = "text_completion"
_LEAST = -9999.0


@dataclass
class _Logprobs:
    """Four lists of one length, as OpenAI has them here."""

    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[dict[str, float]] = field(default_factory=list)
    text_offset: list[int] = field(default_factory=list)

    def json(self) -> Json:
        """Return them as the API names them."""
        return {
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        }

    def extend(self, other: "_Logprobs") -> None:
        """Append what came next."""
        self.tokens += other.tokens
        self.token_logprobs += other.token_logprobs
        self.top_logprobs += other.top_logprobs
        self.text_offset += other.text_offset


class _Choice:
    def __init__(self) -> None:
        self.text: list[str] = []
        self.logprobs = _Logprobs()
        self.finish: str | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0  # characters of the tokens so far

    def read(self, tokens: tuple[Token, ...]) -> _Logprobs:
        """Return the logprobs of the next tokens."""
        found = _Logprobs()
        for token in tokens:
            if token.chosen is None:
                continue
            found.tokens.append(token_text(token.chosen))
            found.token_logprobs.append(max(token.chosen.logprob, _LEAST))
            found.top_logprobs.append({token_text(t): max(t.logprob, _LEAST) for t in token.top})
            found.text_offset.append(self._offset)
            self._offset += len(self._decoder.decode(token.chosen.text))
        self.logprobs.extend(found)
        return found


class CompletionAnswer:
    """One answer, of as many choices as prompts times n."""

    def __init__(self, call: Call, head: Head, *, tells_usage: bool) -> None:
        self._call = call
        self._head = head
        self._choices = [_Choice() for _ in call.plan.prompts for _ in range(call.plan.n)]
        self._has_logprobs = call.plan.logprobs is not None
        self._tells_usage = tells_usage

    def opening(self) -> list[Json]:
        """Return the chunks of prompts that are echoed."""
        chunks: list[Json] = []
        for index, choice in enumerate(self._choices):
            if self._call.plan.echoes:
                echo = self._call.plan.echoes[index // self._call.plan.n]
                choice.text.append(echo)
                chunks.append(self._chunk(index, echo, None, None))
        return chunks

    def take(self, part: Part) -> list[Json]:
        """Take the next part; return its chunk."""
        choice, piece = self._choices[part.choice], part.piece
        choice.text.append(piece.text)
        logprobs = choice.read(piece.tokens) if self._has_logprobs else None
        choice.finish = piece.finish
        if not piece.text and piece.finish is None and not (logprobs and logprobs.tokens):
            return []
        return [self._chunk(part.choice, piece.text, logprobs, piece.finish)]

    def usage_chunk(self) -> Json:
        """Return the chunk that tells the usage."""
        return {**self._head.json(_KIND, []), "usage": self._call.usage()}

    def body(self) -> Json:
        """Return the whole answer."""
        choices = [
            self._choice(
                index,
                "".join(choice.text),
                choice.logprobs if self._has_logprobs else None,
                choice.finish,
            )
            for index, choice in enumerate(self._choices)
        ]
        return {**self._head.json(_KIND, choices), "usage": self._call.usage()}

    def _chunk(self, index: int, text: str, logprobs: _Logprobs | None, finish: str | None) -> Json:
        chunk = self._head.json(_KIND, [self._choice(index, text, logprobs, finish)])
        return {**chunk, "usage": None} if self._tells_usage else chunk

    def _choice(
        self, index: int, text: str, logprobs: _Logprobs | None, finish: str | None
    ) -> Json:
        return {
            "index": index,
            "text": text,
            "logprobs": logprobs.json() if logprobs is not None else None,
            "finish_reason": finish,
        }
