"""Many trials trained together on one frozen base; one thread calls it, and there is no Ray."""

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from ftray.config.base import override
from ftray.config.run import RunConfig
from ftray.errors import OutOfMemoryError, TrainError, first_line
from ftray.model.activations import keep_activations
from ftray.model.adapter import freeze
from ftray.model.base import decoder_layers, load_base, resolve_dtype
from ftray.model.lanes import compile_between
from ftray.model.loss import check
from ftray.model.shape import read_shape
from ftray.train.metrics import Line, Value
from ftray.train.mfu import Speed
from ftray.train.nans import not_a_number
from ftray.train.trainee import (
    activations,
    attend_to_documents,
    is_compiled,
    leave_table_on_host,
)
from ftray.tune.packed.bank import Bank
from ftray.tune.packed.graphs import cuda_graphs
from ftray.tune.packed.intake import Intake, Tables, Tokens
from ftray.tune.packed.passes import Found, Passes, Work
from ftray.tune.packed.slot import Slot
from ftray.tune.packed.state import write_state
from ftray.tune.packed.trial import Capacity, Trial, TrialError, adapter_of, check_shares
from ftray.tune.packed.usage import Footprint, Usage

logger = logging.getLogger(__name__)

Outcome = Line | TrialError


class PackedTrainer:
    """One copy of the base model, and a slot for each trial that is attached.

    What a trial learns does not depend on who else is there, but for the rounding of sums. How it
    is computed is the host's: of a trial's config, `train.micro_batch_size`,
    `train.activation_checkpointing`, `train.compile`, `train.graphs` and `scaling` play no part;
    the base's say which activations are computed twice, whether what lies between products is
    compiled, and whether joint micro-batches are captured.
    """

    def __init__(
        self,
        base: RunConfig,
        folder: Path,
        tokens: Tokens | Tables,
        device: torch.device,
        capacity: Capacity,
    ) -> None:
        """Load the base; `base` is the search's config without a trial's values."""
        if not capacity.graphs:
            base = override(base, {"train.graphs": False})
        self._base = base
        shape = read_shape(folder)
        model = load_base(folder, base.model, device)
        check(model)
        freeze(model, adapter_of(base))
        leave_table_on_host(model, base)
        attend_to_documents(model, base, resolve_dtype(base.model, device))
        self._bank = Bank(model)
        compiled, why = is_compiled(base.train, device)
        logger.info("train.compile=%s: %s", str(compiled).lower(), why)
        if compiled:
            compile_between(model)
        keep_activations(decoder_layers(model), activations(base.train), compiled=False)
        self._tables = tokens if isinstance(tokens, Tables) else Tables.of(tokens)
        graphs, why = cuda_graphs(base, model, self._bank, shape, compiled=compiled)
        logger.info("train.graphs=%s: %s", "false" if graphs is None else base.train.graphs, why)
        self._passes = Passes(model, self._bank, capacity.tokens, graphs)
        self._speed = Speed.of(shape, device, base.data.max_length, frozen_base=True)
        self._slots: dict[str, Slot] = {}
        self._usage = Usage(base, shape, device, capacity)

    def attach(self, trial: Trial, state: str | None = None) -> int:
        """Give a trial a slot, fresh or as a saved state left it; returns the steps it has done.

        The state may be another trial's of the same shape. FtrayError where the trial cannot share
        this base, or there is no room.
        """
        check_shares(self._base, trial)
        if trial.id in self._slots:
            raise TrainError(f"trial {trial.id} is attached already")
        if not self._usage.has_room(trial):
            raise TrainError(f"trial {trial.id}: no room beside {len(self._slots)} trials")
        intake = Intake(self._tables, trial.config)
        try:
            with self._usage.attaching(trial):
                slot = Slot(trial, intake, self._bank, state)
        except torch.OutOfMemoryError:
            raise OutOfMemoryError(
                f"trial {trial.id}: no memory beside {len(self._slots)} trials"
            ) from None
        self._slots[trial.id] = slot
        return slot.done

    def detach(self, trial_id: str) -> None:
        """Free a trial's slot."""
        self._bank.remove(self._slots.pop(trial_id).adapter)
        self._usage.detached(trial_id)

    def step(self, trial_ids: Sequence[str]) -> dict[str, Outcome]:
        """Take one optimizer step of each trial, all in one batch.

        Returns each one's metrics line, or why it cannot go on; its weights are then those from
        before this step.
        """
        slots = [self._slots[trial_id] for trial_id in trial_ids]
        with self._usage.stepping():
            found = self._learned([slot for slot in slots if not slot.is_through])
        through = {slot.trial.id: _through(slot) for slot in slots if slot.trial.id not in found}
        return {**through, **found}

    def evaluate(self, trial_ids: Sequence[str]) -> dict[str, Outcome]:
        """Measure each trial on the eval set, all in one batch."""
        slots = [self._slots[trial_id] for trial_id in trial_ids]
        works = [
            Work(slot.adapter, packs, [0] * len(packs))
            for slot in slots
            for packs in [self._tables.eval_packs(slot.trial.config.data)]
        ]
        sums = self._passes.measure(self._tables.evals, works)
        return {
            slot.trial.id: _too_large(slot)
            if number in sums.too_large
            else _measured(slot, sums.of(number).loss)
            for number, slot in enumerate(slots)
        }

    def save(self, trial_id: str, folder: str) -> None:
        """Publish a trial's state in a folder, which may be a URI; a rewind goes back to it."""
        slot = self._slots[trial_id]
        write_state(folder, slot.state())
        slot.was_saved(folder)

    def total_steps(self, trial_id: str) -> int:
        """Return how many steps a trial has in all."""
        return self._slots[trial_id].intake.total_steps

    def parameters(self, trial_id: str) -> int:
        """Count what a trial trains."""
        return self._slots[trial_id].adapter.parameters

    def room(self, trial: Trial) -> bool:
        """Whether one more trial fits, in slots and in memory."""
        return self._usage.has_room(trial)

    def footprint(self) -> Footprint:
        """Return what memory holds."""
        return self._usage.footprint()

    def _learned(self, slots: Sequence[Slot]) -> dict[str, Outcome]:
        began = time.perf_counter()
        works = [slot.next_work() for slot in slots]
        waited = time.perf_counter() - began
        sums = self._passes.learn(self._tables.train, works)
        norms = self._bank.norms([work.adapter for work in works])
        outcomes = [
            _too_large(slot)
            if number in sums.too_large
            else _finished(slot, works[number], sums.of(number), norms[number])
            for number, slot in enumerate(slots)
        ]
        seconds = time.perf_counter() - began
        return {
            slot.trial.id: outcome
            if isinstance(outcome, TrialError)
            else {**outcome, **self._speeds(counts.tokens, sums.tokens, waited, seconds)}
            for slot, outcome, counts in zip(slots, outcomes, sums.counts, strict=True)
        }

    def _speeds(self, own: int, all_: int, waited: float, seconds: float) -> dict[str, Value]:
        """Tell the speed of a trial whose tokens were `own` of all in a joint step.

        `share_seconds` is what of the step's time the trial has to answer for.
        """
        return {
            "tokens_per_second": own / seconds,
            "mfu": self._speed.mfu(own / seconds),
            "data_wait_seconds": waited,
            "step_seconds": seconds,
            "share_seconds": seconds * own / max(1, all_),
            "time": time.time(),
        }


def _finished(slot: Slot, work: Work, found: Found, norm: float) -> Outcome:
    try:
        return slot.finish(work, found.counts, found.loss, norm)
    except TrainError as error:
        return TrialError(error.message, error.hint)
    except (torch.AcceleratorError, torch.OutOfMemoryError):
        raise
    except RuntimeError as error:  # torch's, of this trial's numbers: a rate of 1e39 has no float
        return TrialError(f"step {slot.done + 1}: {first_line(error)}", "lower train.learning_rate")


def _measured(slot: Slot, loss: float) -> Outcome:
    if not math.isfinite(loss):
        error = not_a_number("eval loss", loss, slot.done, slot.trial.config.train)
        return TrialError(error.message, error.hint)
    perplexity = math.exp(min(loss, 700.0))
    return {"step": slot.done, "eval_loss": loss, "perplexity": perplexity, "time": time.time()}


def _too_large(slot: Slot) -> TrialError:
    return TrialError(
        f"trial {slot.trial.id} ran out of memory with a single row",
        "lower data.max_length, or set train.activation_checkpointing=layer",
    )


def _through(slot: Slot) -> TrialError:
    return TrialError(f"trial {slot.trial.id} has taken all its {slot.done} steps")
