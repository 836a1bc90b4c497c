"""A trial as Ray Tune sees it: a light process without torch that asks a host for its reports."""

import json
import time
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayActorError

from ftray import storage
from ftray.config.space import Space, drawn
from ftray.errors import TrainError, first_line
from ftray.tune.rungs import Failed, Joined, Report, Rules

_POINTER = "state.json"
_RETRY_SECONDS = 0.5


class HostedTrial(tune.Trainable):
    """Attaches to a host, asks for its next report, and leaves when it is stopped or reused."""

    _host: Any = None

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """As good as nothing, which Ray Tune cannot place: the hosts hold what trials need."""
        return tune.PlacementGroupFactory([{"CPU": 0.001}])  # of the one that is left for reads

    def setup(  # type: ignore[override]  # tune.with_parameters gives the rest
        self,
        config: dict[str, Any],
        hosts: list[Any],
        space: Space,
        rules: Rules,
        newest: dict[str, str],
    ) -> None:
        """Remember whom to ask; the slot is taken at the first step.

        `newest` are the states of each trial that the ledger knew when the driver began.
        """
        self._hosts, self._space, self._rules, self._newest = hosts, space, rules, newest
        self._begin(config)

    def step(self) -> dict[str, Any]:
        """Return the trial's next report; a host that is lost on the way is done without."""
        while True:
            try:
                if self._host is None:
                    self._host = self._attached()
                told = ray.get(self._host.report.remote(self._trial))
                break
            except RayActorError as lost:
                self._note_loss(lost)
        if isinstance(told, Failed):
            raise TrainError(told.message, told.hint)
        self._state = told.state
        self._tokens += told.tokens
        self._seconds += told.seconds
        return self._result(told)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Point at what the host has saved with the last report."""
        pointer = {"state": self._state, "tokens": self._tokens, "seconds": self._seconds}
        Path(checkpoint_dir, _POINTER).write_text(json.dumps(pointer), encoding="utf-8")

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Go on from a saved state, which may be another trial's.

        It may be deleted: a driver that was killed had noted later ones, and Ray Tune had not.
        """
        self._leave()
        pointer = json.loads(Path(checkpoint, _POINTER).read_text(encoding="utf-8"))
        self._state = pointer["state"]
        if not storage.exists(storage.join(self._state, storage.RECORD)):
            trial_id = PurePosixPath(self._state).parent.name
            self._state = self._newest.get(trial_id, self._state)
        self._tokens, self._seconds = pointer["tokens"], pointer["seconds"]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Become another trial, or the same with other values."""
        self._leave()
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        """Free the slot."""
        self._leave()

    def _begin(self, config: dict[str, Any]) -> None:
        self._trial = str(self.trial_id)
        self._values = drawn(self._space, config)
        self._state = ""
        self._host = None
        self._losses = self._parameters = self._tokens = 0
        self._seconds = 0.0

    def _attached(self) -> Any:
        """Find a host with a free slot, or wait until one is free, and take it."""
        while True:
            for host in self._hosts:
                answer = ray.get(host.attach.remote(self._trial, self._values, self._state or None))
                if isinstance(answer, Joined):
                    self._parameters = answer.parameters
                    return host
                if isinstance(answer, Failed):
                    raise TrainError(answer.message, answer.hint)
            time.sleep(_RETRY_SECONDS)

    def _leave(self) -> None:
        if self._host is None:
            return
        with suppress(RayActorError):  # its slots are gone with it
            ray.get(self._host.leave.remote(self._trial))
        self._host = None

    def _result(self, report: Report) -> dict[str, Any]:
        """What searchers, schedulers and the ledger are told; FtrayError without the metric."""
        if self._rules.metric not in report.metrics:
            raise TrainError(f"there is no {self._rules.metric} at step {report.steps}")
        return {
            **report.metrics,
            "step": report.steps,
            "total_steps": report.total_steps,
            "tokens": self._tokens,
            "seconds": self._seconds,
            "new_tokens": report.tokens,
            "new_seconds": report.seconds,
            "trained_parameters": self._parameters,
            "state": report.state,
            "host_losses": self._losses,
            "done": report.is_last,
        }

    def _note_loss(self, lost: RayActorError) -> None:
        self._host = None
        self._losses += 1
        if self._losses > self._rules.max_losses:
            raise TrainError(
                f"the trial's host was lost {self._losses} times, last: {first_line(lost)}",
                "lower hosts.slots: a host that runs out of memory is killed",
            ) from None
        for host in self._hosts:
            _wait_until_back(host)


def _wait_until_back(host: Any) -> None:
    """Wait for a host that Ray starts again."""
    with suppress(RayActorError):  # it does not come back: another one may
        ray.get(host.ready.options(max_task_retries=-1).remote())
