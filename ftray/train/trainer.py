"""Ray Train's trainer, with the places that a killed controller held given back by the driver."""

from typing import Any

import ray
from ray._private.state import state
from ray.core.generated import gcs_pb2
from ray.exceptions import RayActorError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.util.placement_group import PlacementGroup, remove_placement_group


class Trainer(TorchTrainer):
    """Ray's trainer without the actor that cleans up after a killed controller.

    That actor asks the dashboard whether the controller lives. Where there is none it cleans up
    nothing, and each group waits 12 seconds for it to stop (Ray 2.60).
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]  # sees the old class
        return [one for one in callbacks if not isinstance(one, PlacementGroupCleanerCallback)]


def give_back_places(failure: RayActorError) -> None:
    """Free what the workers of a dead controller were placed on; else Ray keeps it with the job."""
    accessor = state._connect_and_get_accessor()  # the public table does not name the creator
    for entry in accessor.get_placement_group_table():
        table = gcs_pb2.PlacementGroupTableData.FromString(entry)  # type: ignore[attr-defined]
        if table.creator_actor_id.hex() == failure.actor_id:
            place = ray.PlacementGroupID(table.placement_group_id)
            remove_placement_group(PlacementGroup(place))
