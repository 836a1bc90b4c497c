"""What a run does when its loss is no number: `train.on_nan`, and how often before it gives up."""

import math
from typing import Literal

from ftray.config.run import TrainConfig
from ftray.errors import TrainError

_MOST_SKIPS = 10  # in a row: then it is not the batches
_MOST_REWINDS = 3  # to the same checkpoint

Decision = Literal["update", "skip", "rewind"]


class Nans:
    """Decides step by step; every worker sees the same numbers, and so decides the same."""

    def __init__(self, train: TrainConfig) -> None:
        self._train = train
        self._skipped = 0
        self._rewound = 0

    def saved(self) -> None:
        """Take note of a new checkpoint: the run got on, and a rewind would lead there."""
        self._rewound = 0

    def decide(self, step: int, loss: float, grad_norm: float) -> Decision:
        """Say what becomes of a step's update; raises TrainError where the run has to stop."""
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self._skipped = 0
            return "update"
        what = "loss" if not math.isfinite(loss) else "gradient's norm"
        value = loss if what == "loss" else grad_norm
        match self._train.on_nan:
            case "skip" if self._skipped < _MOST_SKIPS:
                self._skipped += 1
                return "skip"
            case "rewind" if self._rewound < _MOST_REWINDS:
                self._rewound += 1
                return "rewind"
        raise not_a_number(what, value, step, self._train)


def not_a_number(what: str, value: float, step: int, train: TrainConfig) -> TrainError:
    """Return the error that ends a run at a step."""
    tried = "" if train.on_nan == "stop" else f"; train.on_nan={train.on_nan} did not help"
    return TrainError(
        f"the {what} became {value} at step {step}{tried}",
        f"lower train.learning_rate ({train.learning_rate}), or look at the data",
    )
