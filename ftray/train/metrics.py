"""Step metrics: one JSON line a step in `metrics.jsonl`, and the trackers that a run names."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Protocol

from ftray import runs, storage
from ftray.config.run import RunConfig
from ftray.errors import ConfigError
from ftray.runs import Run
from ftray.storage.patience import tried
from ftray.train.board import TensorBoard

Value = int | float | str | None
Line = Mapping[str, Value]

_PUT_SECONDS = 10.0


class Sink(Protocol):
    """Something that takes the metrics of a run's steps."""

    def write(self, line: Line) -> None:
        """Take the numbers of one step or one evaluation; `step` is among them."""

    def flush(self) -> None:
        """Make everything that was written durable; it comes from the thread that saves."""

    def close(self) -> None:
        """Flush, and let go."""


class MetricsFile:
    """`metrics.jsonl`: appended live on a local root, put whole on an object store.

    Floats are written with repr precision, so that two runs can be compared exactly; what is no
    number is null, as JSON knows no NaN. Opening it for step `start` drops the lines of later
    steps, which a restarted run computes again.
    """

    def __init__(self, run: Run, start: int) -> None:
        self._path = storage.join(run.folder, "metrics.jsonl")
        self._lines = [_encoded(line) for line in runs.read_metrics(run) if line["step"] <= start]
        self._put_at = 0.0
        self._putting = Lock()  # what was put last has all lines
        self._size = 0
        self._put()

    def write(self, line: Line) -> None:
        """Append one line; on an object store it is visible within ten seconds."""
        if not storage.is_uri(self._path):
            data = _encoded(line).encode()
            tried("cannot write", self._path, lambda: self._append(data))
            return
        self._lines.append(_encoded(line))
        if time.monotonic() - self._put_at > _PUT_SECONDS and not self._putting.locked():
            self._put()

    def flush(self) -> None:
        """Put what is not yet visible."""
        if storage.is_uri(self._path):
            self._put()

    def close(self) -> None:
        """Put what is not yet visible."""
        self.flush()

    def _append(self, data: bytes) -> None:
        with open(self._path, "r+b") as file:
            file.truncate(self._size)  # a try before this one may have left half a line
            file.seek(self._size)
            file.write(data)
        self._size += len(data)

    def _put(self) -> None:
        with self._putting:
            data = "".join(self._lines).encode()
            storage.write(self._path, data)
            self._size = len(data)
            self._put_at = time.monotonic()


def open_trackers(config: RunConfig, run: Run, start: int) -> Sequence[Sink]:
    """Open what `tracking` names; a package that is missing is a clear error."""
    return [_open_tracker(kind, config, run, start) for kind in config.tracking]


def _open_tracker(kind: str, config: RunConfig, run: Run, start: int) -> Sink:
    try:
        match kind:
            case "tensorboard":
                return TensorBoard(run, start)
            case "mlflow":
                return MLflow(config)
            case _:
                return WeightsAndBiases(config)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"tracking: {kind} needs the package {error.name}", f"pip install 'ftray[{kind}]'"
        ) from None


class MLflow:
    """An MLflow run of the same name, at the server that MLFLOW_TRACKING_URI names."""

    def __init__(self, config: RunConfig) -> None:
        import mlflow  # late: an optional tracker

        self._mlflow = mlflow
        mlflow.set_experiment("ftray")
        self._run = mlflow.start_run(run_name=config.name)
        mlflow.log_dict(config.model_dump(mode="json"), "run.yaml")

    def write(self, line: Line) -> None:
        """Log the numbers of one step."""
        self._mlflow.log_metrics(_numbers(line), step=int(line["step"] or 0))

    def flush(self) -> None:
        """Every call has reached the server."""

    def close(self) -> None:
        """End the MLflow run."""
        self._mlflow.end_run()


class WeightsAndBiases:
    """A Weights & Biases run with the run's name as id, so that a resumed run continues it."""

    def __init__(self, config: RunConfig) -> None:
        import wandb  # late: an optional tracker

        tree = config.model_dump(mode="json")
        self._run = wandb.init(
            project="ftray", name=config.name, id=config.name, resume="allow", config=tree
        )

    def write(self, line: Line) -> None:
        """Log the numbers of one step."""
        self._run.log(_numbers(line), step=int(line["step"] or 0))

    def flush(self) -> None:
        """Its own process uploads as it can."""

    def close(self) -> None:
        """Finish the upload."""
        self._run.finish()


def _encoded(line: Line) -> str:
    finite = {key: value if _is_json(value) else None for key, value in line.items()}
    return json.dumps(finite, allow_nan=False) + "\n"


def _is_json(value: Value) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _numbers(line: Line) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in line.items()
        if isinstance(value, int | float) and key not in ("step", "time")
    }
