"""The training loop that every worker runs, from the newest checkpoint to the last step."""

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import ray.train
import torch
from ray.train.torch import get_device

from ftray import storage
from ftray.config.run import FullConfig
from ftray.model.base import load_tokenizer
from ftray.model.folder import fetch
from ftray.model.shape import read_shape
from ftray.runs import Run
from ftray.storage.patience import patient
from ftray.train import checkpoint
from ftray.train.evaluation import Evaluation, Standing
from ftray.train.gauges import Gauges
from ftray.train.intake import Intake
from ftray.train.memory import GIB
from ftray.train.metrics import Line, MetricsFile, Sink, open_trackers
from ftray.train.mfu import Speed
from ftray.train.nans import Nans, not_a_number
from ftray.train.notice import Notices
from ftray.train.optim import build_optimizer, learning_rate, set_learning_rate
from ftray.train.parallel import Place, total
from ftray.train.pulse import Limits, begin
from ftray.train.retries import Ended
from ftray.train.saver import Saver
from ftray.train.step import StepResult, micro_batch, share, train_step
from ftray.train.trainee import Trainee, build_trainee, random_state
from ftray.train.work import Work

logger = logging.getLogger(__name__)


def train(work: Work) -> Ended:
    """Train from the newest sound checkpoint, or from the start, to the last step.

    Workers that are told to end save after their step, and return before the last one.
    """
    begin("starting", Limits(work.config.scaling.step_timeout_seconds).other)
    with patient():
        training = _prepare(work)
        try:
            return _train(training)
        finally:
            training.saver.close()
            training.notices.close()
            for sink in training.sinks:
                sink.close()


def _train(training: "_Training") -> Ended:
    config, total_steps = training.work.config, training.intake.batches.total_steps
    last: Line = {"loss": None}
    saved = done = training.start
    while done < total_steps:
        begin(f"step {done + 1}", training.limits.step)  # to agree whether to end is a part of it
        if training.standing.is_stalled(config.eval.patience):
            logger.info("stopped early after step %d: the eval loss stopped falling", done)
            break
        if why := training.told():
            if done > saved:
                _save(training, done, last, is_best=False)
            _saved(training)
            return Ended(why, done)
        line = _one_step(training, done)
        training.log(line)
        last = line if "loss" in line else last
        done += 1
        if done == training.start + _PROBE:
            _compare_memory(training)

        # once in a while: evaluate, and remember the best
        is_best = _evaluated(training, done)

        # once in a while: save
        if is_best or done == total_steps or done % config.checkpoint.every_steps == 0:
            _save(training, done, last, is_best=is_best)
            saved = done
    _saved(training)
    return Ended("finished", done)


_PROBE = 3  # steps after which a GPU has held whatever it will


def _compare_memory(training: "_Training") -> None:
    """Say how far the planner's estimate is from what the first steps took."""
    estimated, device = training.work.memory, training.place.device
    if not training.place.is_first or device.type != "cuda" or estimated is None:
        return
    measured = torch.cuda.max_memory_allocated(device)
    numbers = f"{estimated / GIB:.1f} GiB estimated, {measured / GIB:.1f} measured"
    logger.info("GPU memory: %s (%+.0f %%)", numbers, 100 * (estimated / measured - 1))


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
    saver: Saver
    notices: Notices
    nans: Nans
    limits: Limits
    start: int

    def log(self, line: Line) -> None:
        for sink in self.sinks:
            sink.write(line)

    def told(self) -> Literal["asked", "preempted", ""]:
        """Why to save and end now: what any worker was told, all do, after the same step."""
        mine = [float(self.notices.is_asked), float(self.notices.is_preempted)]
        asked, preempted = total(mine, self.place.device)
        if preempted:
            return "preempted"
        return "asked" if asked else ""


def _prepare(work: Work) -> _Training:
    config = work.config
    torch.set_num_threads(work.threads)
    context = ray.train.get_context()
    place = Place(context.get_world_rank(), context.get_world_size(), get_device())
    if place.is_first:
        _log_to_file(work.run)
    folder = fetch(config.model, work.run.root)
    trainee = build_trainee(config, folder, place, work.run.root, graphs_pay=work.graphs)
    optimizer = build_optimizer(trainee.attached.trainable.values(), config.train)
    intake = Intake(config, work.run, work.feed, is_first=place.is_first)
    evaluation = _evaluation(work, intake, trainee, folder)
    record = checkpoint.newest(work.run, place, work.attempt)
    if record:
        checkpoint.load(work.run, record, trainee.attached.trainable, optimizer)
    start = record.step if record else 0
    intake.saved(start)
    sinks = _open_sinks(work, start, intake, place) if place.is_first else []
    frozen = not isinstance(config.adapter, FullConfig)
    shape = read_shape(folder)
    speed = Speed.of(shape, place.device, config.data.max_length, frozen_base=frozen)
    standing = Standing.of(record.metrics if record else {})
    saver = Saver(work.run, place, work.attempt, config.checkpoint.keep)
    return _Training(
        work=work,
        place=place,
        trainee=trainee,
        optimizer=optimizer,
        intake=intake,
        evaluation=evaluation,
        speed=speed,
        standing=standing,
        sinks=sinks,
        saver=saver,
        notices=Notices(work.run, is_first=place.is_first),
        nans=Nans(config.train),
        limits=Limits(config.scaling.step_timeout_seconds),
        start=start,
    )


def _one_step(training: _Training, step: int) -> dict[str, int | float | None]:
    config, intake, place = training.work.config, training.intake, training.place
    began = time.perf_counter()
    begin(f"step {step + 1} (waiting for data)", training.limits.other)
    packs = intake.packs(step)
    positions = share(len(packs), place, training.work.micro_batch_size)
    micro = [micro_batch(intake.rows, packs, some) for some in positions]
    waited = time.perf_counter() - began

    begin(f"step {step + 1}", training.limits.step)
    random_state(config.train.seed, step, place.rank)
    rate = learning_rate(step, intake.batches.total_steps, config.train)
    set_learning_rate(training.optimizer, rate)
    result = train_step(training.trainee, micro, place, config.train, step)
    is_taken = _update(training, step, result)
    taken = time.perf_counter() - began
    training.limits.measured(taken - waited)
    return {
        "step": step + 1,
        "epoch": intake.batches.epoch_of(step),
        **({"loss": result.loss, "grad_norm": result.grad_norm} if is_taken else {"skipped": 1}),
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


def _update(training: _Training, step: int, result: StepResult) -> bool:
    """Update the weights, unless the loss is no number: a checkpoint never holds what is none.

    A rewind undoes the updates since the newest checkpoint, and goes on with the next batch: the
    same batches again would end the same way.
    """
    decision = training.nans.decide(step + 1, result.loss, result.grad_norm)
    if decision == "update":
        training.optimizer.step()
    training.optimizer.zero_grad()
    if decision != "update" and training.place.is_first:
        logger.info("step %d: loss %s: train.on_nan=%s", step + 1, result.loss, decision)
    if decision == "rewind":
        _rewind(training, step + 1, result.loss)
    return decision == "update"


def _rewind(training: _Training, step: int, loss: float) -> None:
    work = training.work
    _saved(training)
    record = checkpoint.newest(work.run, training.place, work.attempt)
    if record is None:
        raise not_a_number("loss", loss, step, work.config.train)
    trainable = training.trainee.attached.trainable
    checkpoint.load(work.run, record, trainable, training.optimizer)


def _evaluated(training: _Training, done: int) -> bool:
    """Evaluate if it is time to; returns whether it was the best so far."""
    evaluation = training.evaluation
    if evaluation is None or not evaluation.is_due(done, training.intake.batches):
        return False
    begin(f"the evaluation after step {done}", training.limits.other)
    found = evaluation.measure(training.place)
    if not math.isfinite(found.loss):
        raise not_a_number("eval loss", found.loss, done, training.work.config.train)
    is_best = training.standing.take(found.loss)
    training.log({"step": done, **found.line(), "time": time.time()})
    return is_best


def _save(training: _Training, done: int, line: Line, *, is_best: bool) -> None:
    """Begin to save the state after step `done`; the save before it is waited for."""
    begin(f"the checkpoint of step {done}", training.limits.other)
    training.nans.saved()
    metrics = {"loss": float(line["loss"] or 0.0), **training.standing.numbers()}
    micro = training.work.micro_batch_size
    progress = checkpoint.Progress(done, metrics, is_best, micro)

    def flush() -> None:
        for sink in training.sinks:
            sink.flush()  # a restart from this checkpoint finds the lines of all steps before it

    _saved(training)
    trainable = training.trainee.attached.trainable
    training.saver.save(trainable, training.optimizer, progress, flush)


def _saved(training: _Training) -> None:
    """Wait for the save that is under way, if one is, and tell who counts on it."""
    if (saved := training.saver.wait()) is None:
        return
    step, is_first = saved.progress.step, training.place.is_first
    if is_first:
        training.intake.saved(step)
    ray.train.report(
        {"step": step, **saved.progress.metrics},
        checkpoint=ray.train.Checkpoint(saved.folder) if is_first else None,
        checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
    )


def _evaluation(work: Work, intake: Intake, trainee: Trainee, folder: Path) -> Evaluation | None:
    if (evals := intake.evals()) is None:
        return None
    tokenizer = load_tokenizer(folder, trust_remote_code=work.config.model.trust_remote_code)
    return Evaluation(work.config, trainee, evals, tokenizer, work.micro_batch_size)


def _open_sinks(work: Work, start: int, intake: Intake, place: Place) -> list[Sink]:
    steps, restarts = intake.batches.total_steps, work.attempt - 1
    gauges = Gauges(work.run.name, steps, restarts, place.device)
    trackers = open_trackers(work.config, work.run, start)
    return [MetricsFile(work.run, start), gauges, *trackers]


def _log_to_file(run: Run) -> None:
    """The first worker's log goes to the run's folder, where the driver shows it live."""
    if storage.is_uri(run.folder):
        return
    handler = logging.FileHandler(storage.join(run.folder, "train.log"), encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(message)s"))
    room = logging.getLogger("ftray")
    room.setLevel(logging.INFO)
    room.addHandler(handler)
