"""The end of a search: its best trials measured on what none has seen, and published."""

import ray
from ray.exceptions import RayError, RayTaskError

from ftray import registry, storage
from ftray.errors import FtrayError, TrainError, first_line
from ftray.train.fit import own_template
from ftray.tune.award import Award, award
from ftray.tune.holdout import HeldOut, held_out
from ftray.tune.results import SearchResult, TrialResult
from ftray.tune.winners import Winner, Winners, ranked

LEAST_MEASURED = 3  # trials that the hold-out compares, though fewer are published


def crown(
    result: SearchResult,
    *,
    num_cpus: float,
    num_gpus: float,
    holdout: HeldOut | None = None,
) -> Winners:
    """Measure the best trials on the hold-out, and publish as many as the search says.

    It is done on a share of the cluster, since the driver may have no GPU, and needs the memory of
    two base models there. Ray is connected. Doing it again publishes nothing twice.
    """
    publish = result.search.publish
    holdout = holdout or held_out(result.config, result.search)
    most = max(publish.best, LEAST_MEASURED if holdout else 0)
    chosen = [trial for trial in ranked(result) if trial.state_folder][:most]
    if not chosen:
        why = ["no trial left a state that could be published"] if most else []
        return Winners([], holdout.words if holdout else "", notes=why)
    winners = _awarded(result, chosen, holdout, num_cpus, num_gpus)
    alias = None
    if publish.alias is not None and winners[0].ref is not None:
        alias = _promoted(
            storage.storage_root(result.config.storage), winners[0].ref, publish.alias
        )
    metric = "perplexity" if result.metric == "perplexity" else "eval_loss"
    return Winners(winners, holdout.words if holdout else "", metric, alias)


def _awarded(
    result: SearchResult,
    chosen: list[TrialResult],
    holdout: HeldOut | None,
    num_cpus: float,
    num_gpus: float,
) -> list[Winner]:
    wanted = Award(result, chosen, holdout, own_template(result.config))
    task = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=1)(award)
    try:
        winners: list[Winner] = ray.get(task.remote(wanted))
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, FtrayError) else error from None
    except RayError as error:
        raise TrainError(
            f"the task that measures and publishes the best trials was lost: {first_line(error)}",
            "run the same command again: all trials are done, only this is left",
        ) from error
    return winners


def _promoted(root: str, ref: str, alias: str) -> str:
    """Let the alias point there, unless it does: a rollback would then lead to the same version."""
    name, _, version = ref.partition("@")
    if registry.aliases(root, name).get(alias) != int(version):
        registry.promote(root, ref, alias)
    return f"{name}@{alias}"
