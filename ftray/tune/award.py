"""What a task does for the best trials of a search: measures each, and publishes some."""

import gc
import logging
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from ftray import storage
from ftray.config.base import override
from ftray.config.run import RunConfig
from ftray.config.search import is_packed
from ftray.errors import StorageError
from ftray.model.adapter import Attached, load_adapter_state
from ftray.model.base import resolve_dtype
from ftray.model.folder import fetch
from ftray.model.loss import LanguageModel
from ftray.records import read_record
from ftray.registry import FoundBy
from ftray.runs import CheckpointRecord
from ftray.train import checkpoint
from ftray.train.parallel import Place
from ftray.train.step import eval_loss, micro_batch, share
from ftray.train.trainee import Trainee, load_for_training
from ftray.tune.holdout import HeldOut, held_out
from ftray.tune.packed.state import read_state
from ftray.tune.results import SearchResult, TrialResult
from ftray.tune.winners import Winner

logger = logging.getLogger(__name__)

_TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 16384}  # more bring no more speed


@dataclass(frozen=True)
class Award:
    """The best trials, the best first, and what they are measured on; `template` as in a run."""

    result: SearchResult
    trials: list[TrialResult]
    holdout: HeldOut | None
    template: str | None


@dataclass(frozen=True)
class _Weights:
    """A trial's saved weights on a base model."""

    config: RunConfig
    attached: Attached
    base: Path
    step: int


def award(wanted: Award) -> list[Winner]:
    """Measure each trial on the hold-out, and publish the first ones.

    They are published from the last to the best, so that the adapter's name alone means the best.
    """
    places = range(len(wanted.trials), 0, -1)
    return [_awarded(wanted, place) for place in places][::-1]


def _awarded(wanted: Award, place: int) -> Winner:
    trial, search = wanted.trials[place - 1], wanted.result.search
    gc.collect()  # a model holds itself in cycles, and the next one needs its memory
    weights = _load(wanted.result, trial)
    holdout = wanted.holdout
    if holdout is not None and weights.config.model != wanted.result.config.model:
        holdout = held_out(weights.config, search)  # in the tokens of the trial's own model
    loss = None if holdout is None else _measured(weights, holdout)
    ref = _published(wanted, place, weights, loss) if place <= search.publish.best else None
    if loss is not None:
        logger.info("trial %s on the hold-out: loss %.4f", trial.id, loss)
    shown = loss
    if loss is not None and wanted.result.metric == "perplexity":
        shown = math.exp(min(loss, 700.0))
    return Winner(trial.id, trial.metric or 0.0, weights.step, shown, ref)


def _load(result: SearchResult, trial: TrialResult) -> _Weights:
    """Load the base anew for each trial: ranks and layers differ, and there are few."""
    base = fetch(result.config.model, storage.storage_root(result.config.storage))
    if is_packed(result.search, result.config):
        state = read_state(trial.state_folder)
        attached = load_for_training(state.config, base, _device())
        load_adapter_state(attached.model, state.adapter)
        return _Weights(state.config, attached, base, state.step)
    config = override(result.config, trial.values)
    base = fetch(config.model, storage.storage_root(config.storage))
    record = _checkpoint(trial.state_folder)
    attached = load_for_training(config, base, _device())
    checkpoint.load_folder(trial.state_folder, attached.trainable)
    return _Weights(config, attached, base, record.step)


def _checkpoint(folder: str) -> CheckpointRecord:
    record = read_record(storage.join(folder, storage.RECORD), CheckpointRecord)
    problems = ["it has no record"] if record is None else storage.verify(folder, record.files)
    if record is None or problems:
        raise StorageError(f"checkpoint {folder}: {'; '.join(problems)}")
    return record


def _measured(weights: _Weights, holdout: HeldOut) -> float:
    """Mean loss over the hold-out's label tokens, in nats."""
    attached, device = weights.attached, weights.attached.model.device
    model = LanguageModel(attached.model, attached.routing)
    dtype = resolve_dtype(weights.config.model, device)
    trainee = Trainee(model, attached, sums_own_gradients=False, dtype=dtype)
    rows, place = holdout.rows(), Place(0, 1, device)
    packs = holdout.packs(rows)
    at_once = max(1, _TOKENS_AT_ONCE[device.type] // holdout.data.max_length)
    positions = share(len(packs), place, at_once)
    return eval_loss(trainee, (micro_batch(rows, packs, some) for some in positions), place)


def _published(wanted: Award, place: int, weights: _Weights, loss: float | None) -> str:
    from ftray.train.publish import Learned, publish_learned

    result, trial = wanted.result, wanted.trials[place - 1]
    metrics = {"step": float(weights.step), f"best_{result.metric}": trial.metric}
    if loss is not None:
        metrics["held_out_loss"] = loss
    learned = Learned(
        config=weights.config,
        attached=weights.attached,
        base=weights.base,
        template=wanted.template,
        metrics=metrics,
        search=_found_by(wanted, place),
    )
    name = result.search.publish.name or result.config.name
    return publish_learned(storage.storage_root(result.config.storage), name, learned).ref


def _found_by(wanted: Award, place: int) -> FoundBy:
    result, trial = wanted.result, wanted.trials[place - 1]
    return FoundBy(
        search=result.name,
        trial=trial.id,
        place=place,
        trials=len(result.trials),
        values=trial.values,
        metric=result.metric,
        value=trial.metric or 0.0,
        holdout=wanted.holdout.words if wanted.holdout else "",
    )


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
