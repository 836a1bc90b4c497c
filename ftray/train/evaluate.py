"""How good a model is on data: mean loss, perplexity, and exact match of greedy answers."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from ftray.config.data import DataConfig
from ftray.data.batching.collation import collate
from ftray.data.batching.samples import samples_of
from ftray.data.reading.readers import Values
from ftray.data.rendering.chat import Prompt, Renderer, Tokens
from ftray.data.rendering.examples import Form
from ftray.data.tokens.memory import MemoryRows
from ftray.errors import DataError
from ftray.model.loss import LanguageModel

logger = logging.getLogger(__name__)

_LOSS_ROWS = 8
_ANSWER_ROWS = 16
_SPARE_TOKENS = 8  # enough to see that an answer goes on


@dataclass(frozen=True)
class Answer:
    """One held-out example: what was wanted, and what the model said."""

    prompt: str
    expected: str
    found: str

    @property
    def is_exact(self) -> bool:
        """Whether the answer is the expected text, apart from blanks around it."""
        return self.expected.strip() == self.found.strip()


@dataclass(frozen=True)
class EvalResult:
    """Mean loss over label tokens in nats; answers are empty for plain text."""

    examples: int
    label_tokens: int
    loss: float
    answers: tuple[Answer, ...]

    @property
    def perplexity(self) -> float:
        """e to the loss."""
        return math.exp(self.loss)

    @property
    def exact_match(self) -> float | None:
        """Share of exact answers, between 0 and 1; None without answers."""
        hits = [answer.is_exact for answer in self.answers]
        return sum(hits) / len(hits) if hits else None


def measure(
    model: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[tuple[Values, Form]],
    data: DataConfig,
) -> EvalResult:
    """Measure a model on rows: teacher-forced loss, and greedy answers to each row's prompt.

    An answer is cut soon after the expected one's length: what is longer cannot match.
    """
    if not rows:
        raise DataError("there are no rows to evaluate on")
    renderer = Renderer(tokenizer, data)
    tokens = [one for row, form in rows for one in renderer.render(row, form)]
    loss, label_tokens = _loss(model, tokens, data)
    asked = [(row, form) for row, form in rows if form.format != "text"]  # text has no prompt
    prompts = [renderer.render_prompt(row, form) for row, form in asked]
    answers = _answers(model, tokenizer, prompts, renderer.stop_ids)
    return EvalResult(len(rows), label_tokens, loss / label_tokens, answers)


@torch.no_grad()
def _loss(model: LanguageModel, tokens: Sequence[Tokens], data: DataConfig) -> tuple[float, int]:
    """Sum of losses, and label tokens."""
    rows = MemoryRows(tokens)
    samples, overflow = samples_of(rows.columns, rows, data)
    if not len(samples):
        raise DataError(f"no row has a token to learn within data.max_length={data.max_length}")
    if overflow.too_long or overflow.unlearned:
        logger.warning("the loss leaves out something: %s", overflow)
    model.eval()
    loss, label_tokens = 0.0, 0
    for start in range(0, len(samples), _LOSS_ROWS):
        numbers = range(start, min(start + _LOSS_ROWS, len(samples)))
        batch = collate(rows, [[samples[number]] for number in numbers])
        tensors = (batch.input_ids, batch.labels, batch.position_ids)
        loss += model(*(tensor.to(model.model.device) for tensor in tensors)).item()
        label_tokens += batch.label_tokens
    return loss, label_tokens


def _answers(
    model: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Prompt],
    stops: Sequence[int],
) -> tuple[Answer, ...]:
    """Answer in batches of prompts of about the same length, which pads least."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index].ids))
    answers: dict[int, Answer] = {}
    for start in range(0, len(order), _ANSWER_ROWS):
        chosen = order[start : start + _ANSWER_ROWS]
        expected = [tokenizer.encode(prompts[index].answer) for index in chosen]
        longest = max(len(ids) for ids in expected) + _SPARE_TOKENS
        found = model.generate([prompts[index].ids for index in chosen], longest, stops)
        for index, ids in zip(chosen, found, strict=True):
            prompt = prompts[index]
            asked, said = (str(tokenizer.decode(part)) for part in (prompt.ids, ids))
            answers[index] = Answer(asked, prompt.answer, said)
    return tuple(answers[index] for index in range(len(prompts)))
