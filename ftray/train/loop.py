"""The training loop that every worker runs, from the newest checkpoint to the last step."""

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path

import ray.train
import torch
from ray.train.torch import get_device

from ftray import runs, storage
from ftray.config.run import FullConfig, RunConfig
from ftray.errors import TrainError
from ftray.model.base import fetch, load_tokenizer
from ftray.model.shape import read_shape
from ftray.runs import Run
from ftray.train import checkpoint
from ftray.train.evaluation import Evaluation, Standing
from ftray.train.feed import Feed, Intake
from ftray.train.metrics import Line, MetricsFile, Sink, open_trackers
from ftray.train.mfu import Speed
from ftray.train.optim import build_optimizer, learning_rate, set_learning_rate
from ftray.train.parallel import Place
from ftray.train.step import micro_batch, share, train_step
from ftray.train.trainee import Trainee, build_trainee, random_state

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """What the driver hands to every worker, once, as data."""

    config: RunConfig
    run: Run
    feed: Feed
    micro_batch_size: int
    threads: int
    attempt: int


def train(work: Work) -> None:
    """Train from the newest sound checkpoint, or from the start, to the last step."""
    training = _prepare(work)
    try:
        _train(training)
    finally:
        for sink in training.sinks:
            sink.close()


def _train(training: "_Training") -> None:
    config, total_steps = training.work.config, training.intake.batches.total_steps
    for step in range(training.start, total_steps):
        if training.standing.is_stalled(config.eval.patience):
            logger.info("stopped early after step %d: the eval loss stopped falling", step)
            break
        line = _one_step(training, step)
        training.log(line)
        done = step + 1

        # once in a while: evaluate, and remember the best
        is_best = False
        if training.evaluation and training.evaluation.is_due(done, training.intake.batches):
            found = training.evaluation.measure(training.place)
            _check_finite("eval loss", found.loss, done, config)
            is_best = training.standing.take(found.loss)
            training.log({"step": done, **found.line(), "time": time.time()})

        # once in a while: save
        if is_best or done == total_steps or done % config.checkpoint.every_steps == 0:
            _save(training, done, line, is_best=is_best)


@dataclass(frozen=True)
class _Training:
    """All that the loop holds; only `standing` changes, beside the model and the optimizer."""

    work: Work
    place: Place
    trainee: Trainee
    optimizer: torch.optim.Optimizer
    intake: Intake
    evaluation: Evaluation | None
    speed: Speed
    standing: Standing
    sinks: list[Sink]
    start: int

    def log(self, line: Line) -> None:
        for sink in self.sinks:
            sink.write(line)


def _prepare(work: Work) -> _Training:
    config = work.config
    torch.set_num_threads(work.threads)
    context = ray.train.get_context()
    place = Place(context.get_world_rank(), context.get_world_size(), get_device())
    if place.is_first:
        _log_to_file(work.run)
    folder = fetch(config.model, work.run.root)
    trainee = build_trainee(config, folder, place, work.run.root)
    optimizer = build_optimizer(trainee.attached.trainable.values(), config.train)
    intake = Intake(config, work.run, work.feed, is_first=place.is_first)
    evaluation = _evaluation(work, intake, trainee, folder)
    record = checkpoint.newest(work.run, place)
    if record:
        checkpoint.load(work.run, record, trainee.attached.trainable, optimizer)
    start = record.step if record else 0
    intake.saved(start)
    sinks = _open_sinks(work, start) if place.is_first else []
    frozen = not isinstance(config.adapter, FullConfig)
    shape = read_shape(folder)
    speed = Speed.of(shape, place.device, config.data.max_length, frozen_base=frozen)
    standing = Standing.of(record.metrics if record else {})
    return _Training(
        work, place, trainee, optimizer, intake, evaluation, speed, standing, sinks, start
    )


def _one_step(training: _Training, step: int) -> dict[str, int | float | None]:
    config, intake, place = training.work.config, training.intake, training.place
    began = time.perf_counter()
    packs = intake.batches.packs(step)
    positions = share(len(packs), place, training.work.micro_batch_size)
    micro = [micro_batch(intake.rows, packs, some) for some in positions]
    waited = time.perf_counter() - began

    random_state(config.train.seed, step, place.rank)
    rate = learning_rate(step, intake.batches.total_steps, config.train)
    set_learning_rate(training.optimizer, rate)
    result = train_step(training.trainee, micro, place, config.train, step)
    # before the weights are touched: a checkpoint never holds what is no number
    _check_finite("loss", result.loss, step + 1, config)
    _check_finite("gradient's norm", result.grad_norm, step + 1, config)
    training.optimizer.step()
    training.optimizer.zero_grad()
    taken = time.perf_counter() - began
    return {
        "step": step + 1,
        "epoch": intake.batches.epoch_of(step),
        "loss": result.loss,
        "grad_norm": result.grad_norm,
        "learning_rate": rate,
        "tokens": result.counts.tokens,
        "label_tokens": result.counts.label_tokens,
        "samples": result.counts.samples,
        **intake.tokens_by_source(packs),
        "tokens_per_second": result.counts.tokens / taken,
        "mfu": training.speed.mfu(result.counts.tokens / taken / place.world_size),
        "data_wait_seconds": waited,
        "step_seconds": taken,
        "time": time.time(),
    }


def _check_finite(what: str, value: float, step: int, config: RunConfig) -> None:
    if not math.isfinite(value):
        raise TrainError(
            f"the {what} became {value} at step {step}",
            f"lower train.learning_rate ({config.train.learning_rate}), or look at the data",
        )


def _save(training: _Training, done: int, line: Line, *, is_best: bool) -> None:
    work, place = training.work, training.place
    metrics = {"loss": float(line["loss"] or 0.0), **training.standing.numbers()}
    progress = checkpoint.Progress(done, metrics, is_best, work.micro_batch_size)
    trainable = training.trainee.attached.trainable
    for sink in training.sinks:
        sink.flush()  # a restart from this checkpoint finds the lines of all steps before it
    folder = checkpoint.save(work.run, trainable, training.optimizer, progress, place, work.attempt)
    if place.is_first:
        runs.prune(work.run, work.config.checkpoint.keep)
        training.intake.saved(done)
    ray.train.report(
        {"step": done, **metrics},
        checkpoint=ray.train.Checkpoint(folder) if place.is_first else None,
        checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
    )


def _evaluation(work: Work, intake: Intake, trainee: Trainee, folder: Path) -> Evaluation | None:
    if (evals := intake.evals()) is None:
        return None
    tokenizer = load_tokenizer(folder, trust_remote_code=work.config.model.trust_remote_code)
    return Evaluation(work.config, trainee, evals, tokenizer, work.micro_batch_size)


def _open_sinks(work: Work, start: int) -> list[Sink]:
    return [MetricsFile(work.run, start), *open_trackers(work.config, work.run, start)]


def _log_to_file(run: Run) -> None:
    """The first worker's log goes to the run's folder, where the driver shows it live."""
    if storage.is_uri(run.folder):
        return
    handler = logging.FileHandler(storage.join(run.folder, "train.log"), encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(message)s"))
    room = logging.getLogger("ftray")
    room.setLevel(logging.INFO)
    room.addHandler(handler)
