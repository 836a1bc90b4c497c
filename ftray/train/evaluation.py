"""Evaluation during training: loss over the eval set, samples, the best step and early stopping."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from transformers import PreTrainedTokenizerBase

from ftray.config.run import RunConfig
from ftray.data.batching.batches import Batches
from ftray.data.rendering.chat import Renderer
from ftray.train.intake import Evals
from ftray.train.parallel import Place
from ftray.train.step import eval_loss, micro_batch, share
from ftray.train.trainee import Trainee


@dataclass
class Standing:
    """How a run stands in its evaluations: decides the best checkpoint and early stopping."""

    best_eval_loss: float = math.inf
    evals_without_gain: int = 0

    @classmethod
    def of(cls, metrics: Mapping[str, float | None]) -> "Standing":
        """Restore the standing that a checkpoint's metrics hold."""
        best = metrics.get("best_eval_loss")  # absent where no evaluation came before it
        return cls(math.inf if best is None else best, int(metrics.get("evals_without_gain") or 0))

    def take(self, loss: float) -> bool:
        """Count one evaluation; returns whether it is the best so far."""
        is_best = loss < self.best_eval_loss
        self.best_eval_loss = min(loss, self.best_eval_loss)
        self.evals_without_gain = 0 if is_best else self.evals_without_gain + 1
        return is_best

    def is_stalled(self, patience: int | None) -> bool:
        """Whether `patience` evaluations in a row brought no gain."""
        return patience is not None and self.evals_without_gain >= patience

    def numbers(self) -> dict[str, float | None]:
        """What a checkpoint keeps; empty before the first evaluation."""
        if math.isinf(self.best_eval_loss):
            return {}
        gained = {"evals_without_gain": float(self.evals_without_gain)}
        return {"best_eval_loss": self.best_eval_loss, **gained}


@dataclass(frozen=True)
class Found:
    """One evaluation: mean loss over label tokens in nats, and sample answers as text."""

    loss: float
    samples: str

    def line(self) -> dict[str, float | str]:
        """The metrics line of this evaluation."""
        numbers = {"eval_loss": self.loss, "perplexity": math.exp(min(self.loss, 700.0))}
        return {**numbers, "samples": self.samples} if self.samples else dict(numbers)


class Evaluation:
    """The eval set of a run, spread over its workers."""

    def __init__(
        self,
        config: RunConfig,
        trainee: Trainee,
        evals: Evals,
        tokenizer: PreTrainedTokenizerBase,
        micro_batch_size: int,
    ) -> None:
        self._config = config
        self._trainee = trainee
        self._rows, self._packs = evals.rows, evals.packs
        self._tokenizer = tokenizer
        self._stops = Renderer(tokenizer, config.data).stop_ids
        self._micro = micro_batch_size

    def is_due(self, done: int, batches: Batches) -> bool:
        """Whether to evaluate after `done` steps: every n or each epoch, and at the end."""
        if done == batches.total_steps:
            return True
        every = self._config.eval.every_steps
        return done % every == 0 if every else batches.epoch_of(done) > batches.epoch_of(done - 1)

    def measure(self, place: Place) -> Found:
        """Measure the loss over the whole eval set; every worker gets the same."""
        positions = share(len(self._packs), place, self._micro)
        work = (micro_batch(self._rows, self._packs, some) for some in positions)
        loss = eval_loss(self._trainee, work, place)
        return Found(loss, self._samples(in_step=place.world_size > 1))

    def _samples(self, *, in_step: bool) -> str:
        """Answer the first prompts of the eval set greedily; all workers do the same in step."""
        prompts = list(islice(self._prompts(), self._config.eval.samples))
        if not prompts:
            return ""
        with self._trainee.precision():
            answers = self._trainee.model.generate(
                prompts, self._config.eval.sample_tokens, self._stops, in_step=in_step
            )
        return "\n".join(
            f"prompt: {self._text(prompt)}\nanswer: {self._text(answer)}"
            for prompt, answer in zip(prompts, answers, strict=True)
        )

    def _prompts(self) -> Iterator[list[int]]:
        """What comes before the first learned token; plain text has no prompt to answer."""
        for sample in (sample for pack in self._packs for sample in pack if sample.start == 0):
            prompt = self._rows.ids(sample.key)[: int(self._rows.trained(sample.key).argmax())]
            if len(prompt) > 1:
                yield prompt.tolist()

    def _text(self, ids: list[int]) -> str:
        """One line."""
        return " ".join(str(self._tokenizer.decode(ids, skip_special_tokens=True)).split())
