"""Ray Train's trainer without what ours has no use for, and the places of dead controllers."""

import gc
from typing import Any

import ray
from ray._common.constants import RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR as _WARN_OF_WAITING
from ray._private.state import state
from ray._raylet import RAY_NODE_ID_KEY  # type: ignore[attr-defined]  # compiled, without types
from ray.core.generated import gcs_pb2
from ray.exceptions import RayActorError
from ray.train._internal.base_worker_group import BaseWorkerGroup
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.placement_group import PlacementGroup, remove_placement_group

from ftray.train.retries import Ended
from ftray.train.work import Handover

# Three actors that we have no use for (Ray 2.60). One cleans up after a killed controller: it asks
# the dashboard whether that lives, where there is none it cleans up nothing, and each group waits
# 12 seconds for it to stop. One splits the datasets that a trainer is given: ours has none, and
# starting it takes 2 s of a CPU at the moment when the workers start. The third, which scaling
# policies ask, asks the autoscaler for what the placement group asks it for anyway, and the workers
# wait 3 s for it to start.
_UNUSED = (PlacementGroupCleanerCallback, DatasetsCallback)


class Trainer(DataParallelTrainer):
    """Ray's trainer without the actors that ours has no use for, and one that can be called off."""

    _controller: Any = None
    _is_called_off = False

    def call_off(self) -> None:
        """Kill the controller, whose workers die with it, as soon as there is one; `fit` raises."""
        self._is_called_off = True
        if (controller := self._controller) is not None:
            ray.kill(controller)

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [one for one in callbacks if not isinstance(one, _UNUSED)]

    def _initialize_and_run_controller(  # type: ignore[override]  # Ray names its arguments here
        self,
        *,
        train_fn_ref: Any,
        scaling_policy: Any,
        failure_policy: Any,
        train_run_context: Any,
        callbacks: Any,
        validation_config: Any,
    ) -> Any:
        # As Ray's own (2.60), which keeps the controller to itself.
        here = {RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()}
        environment = {"env_vars": {_WARN_OF_WAITING: "0", **get_env_vars_to_propagate()}}
        kind: Any = ray.remote(num_cpus=0, label_selector=here, runtime_env=environment)
        self._controller = kind(TrainController).remote(
            train_fn_ref=train_fn_ref,
            scaling_policy=_AsPlaced(scaling_policy.scaling_config),
            failure_policy=failure_policy,
            train_run_context=train_run_context,
            callbacks=callbacks,
            validation_config=validation_config,
        )
        if self._is_called_off:  # it was asked for before there was one
            self.call_off()
        try:
            ray.get(self._controller.run.remote())
            return ray.get(self._controller.get_result.remote())
        finally:
            self._controller = None  # its process ends when nobody holds it


class _AsPlaced(FixedScalingPolicy):
    """As many workers as were asked for, and nobody else is told."""

    def after_controller_start(self, train_run_context: Any) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass


class ProcessGroup(BackendConfig):
    """Joins the workers to torch's process group before they train: NCCL's on GPUs, else gloo's.

    As Ray's own does (2.60), with which the driver and the controller have to import torch as well,
    for two seconds of a CPU at each start.
    """

    @property
    def backend_cls(self) -> type[Backend]:
        """The class that the controller makes one of."""
        return _Joined


class _Joined(Backend):
    share_cuda_visible_devices = True  # as Ray's own has it: peers reach each other's memory

    def on_start(self, worker_group: BaseWorkerGroup, backend_config: BackendConfig) -> None:
        name = "nccl" if worker_group.get_resources_per_worker().get("GPU") else "gloo"
        address, port = worker_group.execute_single(0, get_address_and_port)
        host = f"[{address}]" if ":" in address else address
        size = len(worker_group)
        joining: list[Any] = [
            worker_group.execute_single_async(rank, _join, name, rank, size, f"tcp://{host}:{port}")
            for rank in range(size)
        ]
        ray.get(joining)

    def on_shutdown(self, worker_group: BaseWorkerGroup, backend_config: BackendConfig) -> None:
        leaving: list[Any] = worker_group.execute_async(_leave, len(worker_group))
        ray.wait(leaving, num_returns=len(leaving), timeout=_LEAVE_SECONDS)


_LEAVE_SECONDS = 30.0


def _join(name: str, rank: int, size: int, url: str) -> None:
    gc.disable()  # while modules are imported: a tenth of that time, and none of it is garbage
    from ftray.train.worker import join

    join(name, rank, size, url)


def _leave(size: int) -> None:
    from ftray.train.worker import leave

    leave(size)


def in_worker(config: dict[str, Handover]) -> Ended:
    """What a worker does; here, since it imports this file anyway, and the group's takes longer."""
    from ftray.train.worker import train_given

    return train_given(config["handover"])


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
