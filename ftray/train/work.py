"""What the driver hands to the workers of a run: data alone, and nothing that imports torch."""

import pickle
import time
from dataclasses import dataclass

from ray.experimental import internal_kv

from ftray.config.run import RunConfig
from ftray.runs import Run

_LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Feed:
    """Where a run's tokens are; a stream's are still being made while it trains."""

    tokens: str
    eval_tokens: str | None
    streams: bool


@dataclass(frozen=True)
class Work:
    """What a run's workers are to do, and with what."""

    config: RunConfig
    run: Run
    feed: Feed
    micro_batch_size: int
    threads: int
    attempt: int
    memory: int | None = None  # estimated peak of a worker's allocator, in bytes
    graphs: bool = False  # whether they would pay, and fit


@dataclass(frozen=True)
class Handover:
    """A place in the cluster where workers wait for what they are to do, while that is planned."""

    key: str

    def give(self, work: Work) -> None:
        """Let the workers begin."""
        internal_kv._internal_kv_put(self._key, pickle.dumps(work))

    def take(self) -> Work:
        """Wait for the work."""
        while (given := internal_kv._internal_kv_get(self._key)) is None:
            time.sleep(_LOOK_SECONDS)
        work: Work = pickle.loads(given)
        return work

    def clear(self) -> None:
        """Forget what was given; a Ray that has been shut down has forgotten it."""
        if internal_kv._internal_kv_initialized():
            internal_kv._internal_kv_del(self._key)

    @property
    def _key(self) -> bytes:
        return f"ftray/{self.key}".encode()
