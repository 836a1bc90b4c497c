"""The Ray Serve application of the whole service: `deploy/serve.yaml` names `build`."""

import asyncio
import logging
import os
import secrets
import threading
from functools import partial

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from ftray import jobs, storage
from ftray.accounts.database import open_database
from ftray.accounts.url import database_url
from ftray.config.serve import ServeConfig
from ftray.errors import ClusterError, FtrayError
from ftray.serve.app import Front, application
from ftray.serve.replica import EngineReplica
from ftray.service.api import Tuning, create_service_api
from ftray.service.controller import Controller, Ground
from ftray.service.files import Files
from ftray.service.jobs import Jobs
from ftray.service.order import command
from ftray.service.ray_launcher import RayLauncher

logger = logging.getLogger(__name__)

_ROUND_SECONDS = 1.0
_LOG = LoggingConfig(log_level="INFO")


def build(args: ServeConfig) -> Application:
    """Build the application; Serve calls it with `args` of its config file."""
    controller = serve.deployment(ControllerReplica).options(  # type: ignore[attr-defined]  # as a decorator's
        name="Controller",
        num_replicas=1,
        ray_actor_options={"num_cpus": 0.1},
        health_check_period_s=2,
        health_check_timeout_s=30,
        logging_config=_LOG,
    )
    return application(args, ServiceApi, controller.bind(args))


class ControllerReplica:
    """A controller in a process of its own; Serve starts it anew when it dies.

    While Serve replaces one by another, both may live: the lease lets one of them work.
    """

    def __init__(self, config: ServeConfig) -> None:
        root = storage.storage_root(config.storage)
        address = jobs.here()
        if address is None:
            raise ClusterError(
                "fine-tuning jobs need Ray's dashboard, and this cluster has none",
                "ftray up; or: ray start --head --include-dashboard=true",
            )
        database = open_database(database_url(root, config.database))
        files = Files(database, root, config.files)
        name = f"{os.uname().nodename[:30]} {os.getpid()} {secrets.token_hex(4)}"
        of_driver = partial(command, ray.get_runtime_context().gcs_address)
        ground = Ground(database, files, RayLauncher(address), config.jobs, of_driver)
        self._controller = Controller(ground, name)
        self._woken, self._is_over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="ftray-controller", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Look now: there is something to do."""
        self._woken.set()

    def check_health(self) -> None:
        """Serve asks; a controller that a bug has ended is replaced."""
        if not self._thread.is_alive():
            raise RuntimeError("the controller's thread has ended")

    def __del__(self) -> None:
        """Serve is about to stop it: another one need not wait for the lease to run out."""
        self._is_over.set()
        self._woken.set()
        self._thread.join(5)

    def _run(self) -> None:
        is_away = False
        while not self._is_over.is_set():
            try:
                self._controller.round()
                is_away = False
            except FtrayError as error:
                if not is_away:
                    logger.warning("the controller waits: %s", error)
                is_away = True
            self._woken.wait(_ROUND_SECONDS)
            self._woken.clear()
        self._controller.close()


@serve.ingress()
class ServiceApi(Front):
    """The HTTP side of serving and of fine-tuning."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        config: ServeConfig,
        engines: DeploymentHandle[EngineReplica],
        controller: DeploymentHandle[ControllerReplica],
    ) -> None:
        await super().__init__(config, engines)
        has_gpus = bool(ray.cluster_resources().get("GPU"))
        files = Files(self.database, self.root, config.files)
        gpus = 1.0 if has_gpus else 0.0
        work = Jobs(self.database, self.root, config.model, config.jobs, gpus)
        loop = asyncio.get_running_loop()

        def wake() -> None:
            loop.call_soon_threadsafe(controller.wake.remote)

        self._tuning = Tuning(files, work, wake)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Serve asks for the application once this is made."""
        return create_service_api(self.service, self._tuning, self.lifespan)
