"""One `ftray train` at a time, watched from outside, for scaling.py."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import yaml
from scaling_kinds import on_gpus

from ftray.config.run import RunConfig

WARM = 3  # steps that are not counted: kernels are chosen, memory is taken
Figures = dict[str, Any]
Lines = list[dict[str, Any]]


class FailedError(Exception):
    """A run ended before it was to."""


@dataclass
class Command:
    """`ftray train` on one config, from its start until it has ended.

    With `gpu` it sees that one alone, so that several can train side by side.
    """

    config: RunConfig
    folder: Path
    gpu: int | None = None
    peak: float = 0.0  # memory of the largest worker, in bytes
    _process: "subprocess.Popen[bytes] | None" = field(default=None, init=False)

    def __enter__(self) -> "Command":
        file = self.folder / f"{self.config.name}.yaml"
        file.write_text(yaml.safe_dump(self.config.model_dump(mode="json")))
        self._log = self.folder / f"{self.config.name}.log"
        with self._log.open("ab") as log:
            command = [sys.executable, "-m", "ftray", "train", str(file)]
            own = {} if self.gpu is None else {"CUDA_VISIBLE_DEVICES": str(self.gpu)}
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **own}
            )
        return self

    def __exit__(self, *_: object) -> None:
        """Two interrupts end a command at once, and Ray below it."""
        process = self.process
        for _ in range(2):
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                time.sleep(1)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            for one in [*psutil.Process(process.pid).children(recursive=True), process]:
                with suppress(psutil.NoSuchProcess):
                    one.kill()
            process.wait()

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        """The command, which has been started."""
        assert self._process is not None
        return self._process

    def until_step(self, step: int, seconds: float) -> Lines:
        """Wait until so many steps are done; returns their lines."""
        self._until(lambda: len(self.lines()) >= step, seconds)
        return self.lines()

    def until_end(self, seconds: float) -> None:
        """Wait until the command has ended by itself."""
        self._until(lambda: self.process.poll() is not None, seconds)

    def lines(self) -> Lines:
        """The steps that are written."""
        file = Path(str(self.config.storage), "runs", self.config.name, "metrics.jsonl")
        if not file.exists():
            return []
        whole = [text for text in file.read_text().split("\n")[:-1] if text]
        return [line for line in map(json.loads, whole) if "step_seconds" in line]

    def workers(self) -> list[psutil.Process]:
        """The training processes."""
        return _below(self.process.pid, "RayTrainWorker")

    def interrupt(self) -> None:
        """Ask it to save and pause."""
        self.process.send_signal(signal.SIGINT)

    def _until(self, is_so: Callable[[], bool], seconds: float) -> None:
        end = time.monotonic() + seconds
        while not is_so():
            if self.process.poll() is not None and not is_so():
                raise FailedError(f"{self.config.name} ended: {_tail(self._log)}")
            if time.monotonic() > end:
                raise FailedError(f"{self.config.name}: over {seconds:.0f} s: {_tail(self._log)}")
            self.peak = max(self.peak, self._memory())
            time.sleep(0.25)

    def _memory(self) -> float:
        if on_gpu := _gpu_memory():
            return max(on_gpu) if self.gpu is None else on_gpu[self.gpu]
        sizes = [0.0]
        for worker in self.workers():
            with suppress(psutil.NoSuchProcess):
                sizes.append(worker.memory_info().rss)
        return max(sizes)


def measured(config: RunConfig, folder: Path, seconds: float, gpu: int | None = None) -> Figures:
    """Train all steps, and say how fast; what comes after the last one is not waited for."""
    began = time.monotonic()
    with Command(config, folder, gpu) as command:
        lines = command.until_step(config.train.max_steps or 0, seconds)
        started = lines[0]["time"] - lines[0]["step_seconds"] - (time.time() - time.monotonic())
    timed = lines[WARM:]
    workers = config.scaling.most_workers
    return {
        "workers": workers,
        "step_seconds": median(line["step_seconds"] for line in timed),
        "slowest_step_seconds": max(line["step_seconds"] for line in timed),
        "tokens_per_second": median(line["tokens_per_second"] for line in timed),
        "per_worker": median(line["tokens_per_second"] for line in timed) / workers,
        "tokens": timed[0]["tokens"],
        "mfu": timed[0]["mfu"] and median(line["mfu"] for line in timed),
        "data_wait_seconds": median(line["data_wait_seconds"] for line in timed),
        "peak_gib": command.peak / 2**30,
        "first_step_after_seconds": started - began,
        "losses": [line["loss"] for line in lines],
    }


def survived(config: RunConfig, fewer: RunConfig, folder: Path, seconds: float) -> Figures:
    """Kill a worker, pause the run, and go on with fewer workers; returns its losses.

    Both configs are of one run, which saves often enough to have something to go on from.
    """
    every = config.checkpoint.every_steps
    with Command(config, folder) as command:
        command.until_step(every + 1, seconds)
        killed_at = len(command.lines())
        command.workers()[-1].kill()
        command.until_step(killed_at + 3, seconds)  # without the killed one, one more at most
        command.interrupt()
        command.until_end(seconds)
        paused_at = len(command.lines())
    if paused_at == config.train.max_steps:
        raise FailedError(f"{config.name} ended before it was paused")
    with Command(fewer, folder) as command:
        lines = command.until_step(config.train.max_steps or 0, seconds)
    status = json.loads(Path(str(config.storage), "runs", config.name, "status.json").read_text())
    return {
        "workers": config.scaling.most_workers,
        "then": fewer.scaling.most_workers,
        "killed_after_step": killed_at,
        "paused_after_step": paused_at,
        "attempts": status["attempts"],
        "losses": [line["loss"] for line in lines],
    }


def _below(pid: int, word: str) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if word in "".join(process.cmdline()):
                found.append(process)
    return found


def _gpu_memory() -> list[float]:
    """Bytes in use on each GPU, as its driver counts them; nothing when training is on CPUs."""
    if not on_gpus():
        return []
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True, check=True)
    return [float(number) * 2**20 for number in re.findall(r"\d+", done.stdout)]


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]
