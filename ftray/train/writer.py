"""DCP's own writer, with the patience of storage: one worker's retries are its own affair."""

from collections.abc import Callable
from pathlib import Path

from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from ftray.storage.patience import tried


class Writer(FileSystemWriter):
    """Writes a worker's part of a state into a local folder.

    A whole save cannot be tried again by one worker: DCP's steps are collectives. What a worker
    writes within such a step can, and it has the same names each time.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._folder = str(folder)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Make the folder."""
        prepare = super().prepare_local_plan
        return tried("cannot write", self._folder, lambda: prepare(plan))

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write the tensors, synced to the disk."""
        write = super().write_data
        return tried("cannot write", self._folder, lambda: _write(lambda: write(plan, planner)))

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write what says where each tensor is, on the first worker."""
        finish = super().finish
        tried("cannot write", self._folder, lambda: finish(metadata, results))


Written = Future[list[WriteResult]]


def _write(write: Callable[[], Written]) -> Written:
    """Raise what a disk said; torch's zip writer counts its bytes then, and complains of those."""
    try:
        return write()
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
