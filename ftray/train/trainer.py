"""Ray Train's trainer, with the places that a killed controller held given back by the driver."""

from typing import Any

import ray
from ray._private.state import state
from ray.core.generated import gcs_pb2
from ray.exceptions import RayActorError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.util.placement_group import PlacementGroup, remove_placement_group

# Two actors that we have no use for (Ray 2.60). One cleans up after a killed controller: it asks
# the dashboard whether that lives, where there is none it cleans up nothing, and each group waits
# 12 seconds for it to stop. The other splits the datasets that a trainer is given: ours has none,
# and starting it takes 2 s of a CPU at the moment when the workers start.
_UNUSED = (PlacementGroupCleanerCallback, DatasetsCallback)


class Trainer(TorchTrainer):
    """Ray's trainer without the actors that ours has no use for."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]  # sees the old class
        return [one for one in callbacks if not isinstance(one, _UNUSED)]


def give_back_places(failure: RayActorError | None = None) -> None:
    """Free what the workers of dead controllers were placed on; else Ray keeps it with the job.

    That of a failure is one even where Ray has not noted its death yet.
    """
    job, failed = ray.get_runtime_context().get_job_id(), failure.actor_id if failure else None
    accessor = state._connect_and_get_accessor()  # the public table does not name the creator
    for entry in accessor.get_placement_group_table():
        table = gcs_pb2.PlacementGroupTableData.FromString(entry)  # type: ignore[attr-defined]
        creator = table.creator_actor_id.hex()
        is_of_an_actor = creator != ray.ActorID.nil().hex()  # what a driver places has a dead one
        is_dead = table.creator_actor_dead and table.creator_job_id.hex() == job
        if (is_of_an_actor and is_dead) or creator == failed:
            place = ray.PlacementGroupID(table.placement_group_id)
            remove_placement_group(PlacementGroup(place))
