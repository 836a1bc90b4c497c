"""Ranges to published shards, by Ray Data tasks on the cluster's CPUs.

A task publishes its shard itself and hands back a small record, so tokens never pass through the
object store or the driver. Tasks, not actors: an actor pool holds its CPUs, and on a small cluster
starves whatever else the plan needs.
"""

import pickle
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial

import pyarrow as pa
import ray
import ray.data
from ray import ObjectRef
from ray.data.exceptions import ExecutionTimeoutError

from ftray.data.chat import Renderer
from ftray.data.files import Range
from ftray.data.manifest import ShardRecord
from ftray.data.tokenization import make_shard
from ftray.errors import ClusterError, FtrayError


def make_on_cluster(
    parts: Sequence[Range], renderer: Renderer, folder: str
) -> Iterator[ShardRecord]:
    """Yield the record of each range as its shard is published, in the order of the ranges.

    So the first error in that order is raised, whichever task was first; the rest is abandoned.
    """
    work = [{"part": pickle.dumps(part)} for part in parts]
    run_tasks = partial(_run_tasks, renderer=ray.put(renderer), folder=folder)
    made = ray.data.from_items(work, override_num_blocks=len(work)).map_batches(
        run_tasks, batch_format="pyarrow", num_cpus=1
    )
    made.context.execution_options.preserve_order = True
    made.context.enable_progress_bars = False
    made.context.print_on_execution_start = False
    made.context.execution_no_progress_timeout_s = timeout = _timeout(parts)
    try:
        for row in made.iter_rows():
            outcome: ShardRecord | FtrayError = pickle.loads(row["outcome"])
            if isinstance(outcome, FtrayError):
                raise outcome
            yield outcome
    except ExecutionTimeoutError:
        raise ClusterError(
            f"no token shard was finished in {timeout} s",
            f"a task needs 1 CPU; the cluster has {ray.available_resources().get('CPU', 0):g} free",
        ) from None


def _run_tasks(batch: pa.Table, renderer: ObjectRef[Renderer], folder: str) -> pa.Table:
    """Make the shards of a block; errors for the user travel as data, whole and in order."""
    outcomes = []
    for part in batch["part"].to_pylist():
        try:
            outcome: ShardRecord | FtrayError = make_shard(
                pickle.loads(part), _fetched(renderer), folder
            )
        except FtrayError as error:
            outcome = error
        outcomes.append(pickle.dumps(outcome))
    return pa.table({"outcome": outcomes})


@lru_cache(maxsize=1)
def _fetched(renderer: ObjectRef[Renderer]) -> Renderer:
    """Build the renderer once per process, not per task: a large vocabulary takes a second."""
    return ray.get(renderer)


def _timeout(parts: Sequence[Range]) -> int:
    """Seconds after which a shard counts as stuck: 5 minutes, and 100 kB/s for the largest."""
    return 300 + max(part.size for part in parts) // 100_000
