"""Ranges to published shards, by Ray Data tasks on the cluster's CPUs.

A task publishes its shards itself and hands back their small records, so tokens never pass through
the object store or the driver. Tasks, not actors: an actor pool holds its CPUs, and on a small
cluster starves whatever else the plan needs.
"""

import pickle
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray import ObjectRef
from ray.data.exceptions import ExecutionTimeoutError

from ftray.data.reading.files import Range
from ftray.data.rendering.chat import Renderer
from ftray.data.rendering.examples import Form
from ftray.data.tokens.demand import Gate, OpenGate
from ftray.data.tokens.manifest import ShardRecord
from ftray.data.tokens.tokenization import SHARD_TOKENS, make_shards
from ftray.errors import ClusterError, FtrayError


@dataclass(frozen=True)
class Recipe:
    """How the ranges of a token set become shards: a form for each source, and where they go."""

    renderer: Renderer
    forms: tuple[Form, ...]
    folder: str
    gate: Gate = field(default_factory=OpenGate)
    shard_tokens: int = SHARD_TOKENS

    def make(self, part: Range) -> list[ShardRecord]:
        """Make the shards of one range, here and now."""
        form = self.forms[part.source]
        made = make_shards(
            part, self.renderer, form, self.folder, self.gate, shard_tokens=self.shard_tokens
        )
        return list(made)


Made = list[ShardRecord] | FtrayError  # what one range became


def make_here(parts: Sequence[Range], recipe: Recipe) -> Generator[Made, None, None]:
    """Make what is less than one task's work without one: to start it takes 7 s on 2 cores."""
    for part in parts:
        yield _outcome(part, recipe)


def make_on_cluster(
    parts: Sequence[Range],
    recipe: Recipe,
    tasks: int | None = None,
    timeout_seconds: int | None = None,
) -> Generator[Made, None, None]:
    """Yield what became of each range as its shards are published, in the order of the ranges.

    Errors are handed on in that order too, whichever task was first. At most `tasks` run at a time,
    else as many as there are CPUs.
    """
    work = [{"part": pickle.dumps(part)} for part in parts]
    timeout = timeout_seconds or _timeout(parts)
    made = ray.data.from_items(work, override_num_blocks=len(work)).map_batches(
        partial(_run_tasks, recipe=ray.put(recipe)),
        batch_format="pyarrow",
        num_cpus=1,
        compute=ray.data.TaskPoolStrategy(size=min(tasks, len(work)) if tasks else None),
    )
    made.context.execution_options.preserve_order = True
    made.context.enable_progress_bars = False
    made.context.print_on_execution_start = False
    made.context.execution_no_progress_timeout_s = timeout
    try:
        rows: Any = iter(made.iter_rows())
        with closing(rows):  # else its executor lives on after an error
            for row in rows:
                outcome: Made = pickle.loads(row["outcome"])
                yield outcome
    except ExecutionTimeoutError:
        raise ClusterError(
            f"no token shard was finished in {timeout} s",
            f"a task needs 1 CPU; the cluster has {ray.available_resources().get('CPU', 0):g} free",
        ) from None


def _run_tasks(batch: pa.Table, recipe: ObjectRef[Recipe]) -> pa.Table:
    """Make the shards of a block; errors for the user travel as data, whole and in order."""
    parts = [pickle.loads(part) for part in batch["part"].to_pylist()]
    outcomes = [_outcome(part, _fetched(recipe)) for part in parts]
    return pa.table({"outcome": [pickle.dumps(outcome) for outcome in outcomes]})


def _outcome(part: Range, recipe: Recipe) -> Made:
    try:
        return recipe.make(part)
    except FtrayError as error:
        return error


@lru_cache(maxsize=1)
def _fetched(recipe: ObjectRef[Recipe]) -> Recipe:
    """Build the renderer once per process, not per task: a large vocabulary takes a second."""
    return ray.get(recipe)


def _timeout(parts: Sequence[Range]) -> int:
    """Seconds after which a range counts as stuck: 5 minutes, and 20 kB/s for the largest."""
    return 300 + max(part.size for part in parts) // 20_000
