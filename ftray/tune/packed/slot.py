"""A trial on a host: its weights, its optimizer, its batches, and how far it is."""

from typing import cast

import torch
from torch import Tensor

from ftray.errors import FtrayError
from ftray.train.metrics import Value
from ftray.train.nans import Nans, not_a_number
from ftray.train.optim import build_optimizer, learning_rate, set_learning_rate
from ftray.train.step import Counts, row_seed
from ftray.tune.packed.bank import Bank
from ftray.tune.packed.intake import Intake
from ftray.tune.packed.passes import Work
from ftray.tune.packed.stack import Adapter
from ftray.tune.packed.state import MOMENTS, State, check_fits, read_state
from ftray.tune.packed.trial import Trial, adapter_of


class Slot:
    """What a host holds for one trial; `done` counts optimizer steps.

    Its optimizer is a lone run's own, over one row of a stack: one tensor, whatever the number of
    layers. `saved` is the folder that a rewind goes back to.
    """

    def __init__(self, trial: Trial, intake: Intake, bank: Bank, saved: str | None) -> None:
        """Take a slot of the bank, fresh or as the saved state left it."""
        self.trial, self.intake, self.saved, self.done = trial, intake, saved, 0
        self._train = trial.config.train
        self._nans = Nans(self._train)
        self.adapter: Adapter = bank.add(adapter_of(trial.config), self._train.seed)
        self._optimizer = build_optimizer([self.adapter.weights], self._train)
        try:
            self._set_moments(0, {})  # now, so that memory runs out here and not in a step
            if saved is not None:
                self.done = self._restore(saved)
        except (FtrayError, torch.OutOfMemoryError):
            bank.remove(self.adapter)
            raise

    @property
    def is_through(self) -> bool:
        """Whether all steps are taken."""
        return self.done >= self.intake.total_steps

    def next_work(self) -> Work:
        """Return the next global batch."""
        packs = self.intake.packs(self.done)
        seeds = [row_seed(self._train.seed, self.done, place) for place in range(len(packs))]
        return Work(self.adapter, packs, seeds)

    def finish(self, work: Work, counts: Counts, loss: float, norm: float) -> dict[str, Value]:
        """Update the weights, unless the loss is no number, and return the step's metrics.

        Raises TrainError where the trial has to stop, which leaves the weights as they were.
        """
        decision = self._nans.decide(self.done + 1, loss, norm)
        rate = learning_rate(self.done, self.intake.total_steps, self._train)
        if decision == "update":
            self._update(rate, norm)
        if decision == "rewind":
            if self.saved is None:
                raise not_a_number("loss", loss, self.done + 1, self._train)
            self._restore(self.saved)
        self.done += 1
        is_taken = decision == "update"
        return {
            "step": self.done,
            "epoch": self.intake.epoch_of(self.done - 1),
            **({"loss": loss, "grad_norm": norm} if is_taken else {"skipped": 1}),
            "learning_rate": rate,
            "tokens": counts.tokens,
            "label_tokens": counts.label_tokens,
            "samples": counts.samples,
            **self.intake.tokens_by_source(work.packs),
        }

    def state(self) -> State:
        """Return what a later host needs to go on from here."""
        held = self._optimizer.state[self.adapter.weights]
        return State(
            trial=self.trial.id,
            config=self.trial.config,
            step=self.done,
            updates=int(held["step"]),
            adapter=self.adapter.named(self.adapter.weights.detach()[0].cpu()),
            moments={kind: self.adapter.named(held[kind][0].cpu()) for kind in MOMENTS},
        )

    def was_saved(self, folder: str) -> None:
        """Take note of where the newest state is."""
        self.saved = folder
        self._nans.saved()

    def _update(self, rate: float, norm: float) -> None:
        limit, gradient = self._train.max_grad_norm, cast(Tensor, self.adapter.weights.grad)
        if limit is not None and norm + 1e-6 > limit:  # as torch's clip_grad_norm_
            gradient.mul_(limit / (norm + 1e-6))
        set_learning_rate(self._optimizer, rate)
        self._optimizer.step()

    def _restore(self, folder: str) -> int:
        """Set weights and moments to a saved state's; returns its step."""
        state = read_state(folder)
        check_fits(self.adapter.named(self.adapter.weights.detach()[0]), state, folder)
        with torch.no_grad():
            self.adapter.weights[0].copy_(self.adapter.flat(state.adapter))
        moments = {kind: self.adapter.flat(tensors) for kind, tensors in state.moments.items()}
        self._set_moments(state.updates, moments)
        return state.step

    def _set_moments(self, updates: int, moments: dict[str, Tensor]) -> None:
        weights, tree = self.adapter.weights, self._optimizer.state_dict()
        kept = {
            kind: moments[kind][None].to(weights.device)
            if kind in moments
            else torch.zeros_like(weights)
            for kind in MOMENTS
        }
        step = torch.tensor(float(updates))
        self._optimizer.load_state_dict({**tree, "state": {0: {"step": step, **kept}}})
