"""What a vLLM server streams, read as pieces."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any

from ftray.serve.engine.text import AnswerText
from ftray.serve.protocol import Finish, Generation, Piece, RefusedError, Token, TokenLogprob
from ftray.serve.vllm.base import VllmBase
from ftray.serve.vllm.client import Chunk
from ftray.serve.vllm.wishes import drawn_choices

_TOKEN_PREFIX = "token_id:"


@dataclass
class _Choice:
    text: AnswerText
    finish: Finish | None = None
    shown: str = ""
    tokens: list[Token] = field(default_factory=list)


class AnswerReader:
    """One generation's choices. The text is made here from the tokens, as the embedded engine does:
    vLLM's own holds back as many characters as the longest stop string has, whatever they are."""

    def __init__(self, generation: Generation, base: VllmBase, ends: Collection[int]) -> None:
        self._wish, self._base, self._ends = generation, base, ends
        self._drawn = drawn_choices(generation)
        self._choices = [
            _Choice(AnswerText(base.tokenizer, generation.stop)) for _ in range(self._drawn)
        ]

    @property
    def is_done(self) -> bool:
        """Whether all choices have ended."""
        return all(choice.finish for choice in self._choices)

    def read(self, chunk: Chunk) -> list[Piece]:
        """Return what a chunk adds."""
        pieces = []
        for news in chunk["choices"]:
            index = news["index"]
            if self._choices[index].finish is None:
                pieces += self._pieces(index, news)
        return pieces

    def _pieces(self, index: int, news: Chunk) -> list[Piece]:
        choice = self._choices[index]
        choice.shown, choice.tokens = "", []
        ids: Sequence[int] = news.get("token_ids") or ()
        for id, described in zip_longest(ids, self._described(news)):
            self._take(choice, id, described)
            if choice.finish is not None:
                break
        else:
            self._end(choice, news.get("finish_reason"))
        if not choice.tokens and choice.finish is None:
            return []
        piece = Piece(self._wish.id, index, choice.shown, tuple(choice.tokens), choice.finish)
        if self._drawn == self._wish.n:
            return [piece]
        return [replace(piece, index=each) for each in range(self._wish.n)]  # greedy: all the same

    def _take(self, choice: _Choice, id: int, described: Token | None) -> None:
        if id in self._ends:
            self._end(choice, "stop")
            return
        choice.tokens.append(described or Token(id))
        choice.shown += choice.text.add(id)
        if choice.text.is_stopped:
            choice.finish = "stop"

    def _end(self, choice: _Choice, reason: str | None) -> None:
        if reason is None:
            return
        if reason not in ("stop", "length"):
            raise RefusedError(f"vLLM gave it up: {reason}", "try again", code="lost")
        choice.shown += choice.text.end()
        choice.finish = "stop" if reason == "stop" or choice.text.is_stopped else "length"

    def _described(self, news: Chunk) -> list[Token]:
        """Log-probabilities by token, where they were asked for."""
        told: dict[str, Any] | None = news.get("logprobs")
        if self._wish.logprobs is None or told is None:
            return []
        rows = zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True)
        return [self._token(name, value, top or {}) for name, value, top in rows]

    def _token(self, name: str, value: float, top: dict[str, float]) -> Token:
        chosen = self._logprob(name, value)
        best = sorted(top.items(), key=lambda pair: -pair[1])[: self._wish.logprobs]
        return Token(chosen.id, chosen, tuple(self._logprob(*pair) for pair in best))

    def _logprob(self, name: str, value: float) -> TokenLogprob:
        id = int(name.removeprefix(_TOKEN_PREFIX))
        return TokenLogprob(id, self._base.vocabulary.text(id), value)
