"""The Ray Serve application: HTTP in front, engines behind. `deploy/serve.yaml` names `build`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from ftray import storage
from ftray.accounts.access import KeyAccess
from ftray.accounts.database import open_database
from ftray.accounts.url import database_url
from ftray.config.serve import ServeConfig
from ftray.model.folder import fetch, fingerprint, tokenizer_digest
from ftray.serve.fleet import Fleet
from ftray.serve.openai.app import create_api
from ftray.serve.openai.edge import keep_access_log
from ftray.serve.openai.models import Base, RegistryModels
from ftray.serve.openai.service import Service, Settings
from ftray.serve.replica import EngineReplica
from ftray.serve.spans import open_spans

APPLICATION = "ftray"
_QUIET = LoggingConfig(enable_access_log=False, log_level="WARNING")  # the edge has its own log
_CARRIERS = 1  # Serve counts one call more than requests: it carries the answers of all of them
# Iterations, some 0.1 ms of them, for which OpenMP's threads look out for more work before they
# sleep: a step is hundreds of products, and waking a thread takes as long as one. Elsewhere the
# command line has them sleep at once.
_SPIN = {"GOMP_SPINCOUNT": "20000"}
_INGRESS_REQUESTS = 2000  # at once; engines refuse much earlier, and say so in JSON


def build(args: ServeConfig) -> Application:
    """Build the application; Serve calls it with `args` of its config file."""
    return application(args, Api)


def application(args: ServeConfig, api: Any, *behind: Application) -> Application:
    """Build the application of an ingress, which is given the engines and what else it needs."""
    open_spans(args.otlp).close()  # raises here rather than in every replica
    engine, replicas = args.engine, args.replicas
    engines = serve.deployment(EngineReplica).options(  # type: ignore[attr-defined]  # as a decorator's
        name="Engine",
        ray_actor_options={
            "num_cpus": engine.num_cpus,
            "num_gpus": _gpus(engine.num_gpus),
            "runtime_env": {"env_vars": _SPIN},
        },
        autoscaling_config={
            "min_replicas": replicas.min,
            "max_replicas": replicas.max,
            "target_ongoing_requests": replicas.target_requests + _CARRIERS,
            "upscale_delay_s": replicas.upscale_seconds,
            "downscale_delay_s": replicas.downscale_seconds,
        },
        max_ongoing_requests=engine.rows + engine.waiting + 16,
        graceful_shutdown_timeout_s=replicas.drain_seconds,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=2,
        health_check_timeout_s=30,
        logging_config=_QUIET,
    )
    ingress = serve.deployment(api).options(  # type: ignore[attr-defined]  # the same
        name="Api",
        ray_actor_options={"num_cpus": 0.1},
        max_ongoing_requests=_INGRESS_REQUESTS,
        graceful_shutdown_timeout_s=replicas.drain_seconds,
        graceful_shutdown_wait_loop_s=0.5,
        logging_config=_QUIET,
    )
    built: Application = ingress.bind(args, engines.bind(args), *behind)
    return built


class Front:
    """The HTTP side: keys, limits, model ids, prompts, streams."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, config: ServeConfig, engines: DeploymentHandle[EngineReplica]
    ) -> None:
        base, root = await asyncio.to_thread(_base, config)
        database = await asyncio.to_thread(open_database, database_url(root, config.database))
        is_open = config.access == "open_until_first_key"
        keep_access_log(config.access_log)
        self._access = KeyAccess(database, open_until_first_key=is_open)
        self.root, self.database = root, database
        self.service = Service(
            engines=Fleet(engines),
            models=RegistryModels(root, base),
            access=self._access,
            spans=open_spans(config.otlp),
            settings=Settings(deadline_seconds=config.deadline_seconds, sends_ids=False),
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Serve asks for the application once this is made."""
        return create_api(self.service, self.lifespan)

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Count while the server runs; at its end everything is written."""
        self._access.start()
        yield
        self.service.is_draining = True
        await asyncio.to_thread(self._access.close)
        await asyncio.to_thread(self.service.spans.close)
        self.database.close()


@serve.ingress()
class Api(Front):
    """What `ftray serve` runs."""


def _base(config: ServeConfig) -> tuple[Base, str]:
    root = storage.storage_root(config.storage)
    folder = fetch(config.model, root)
    base = Base(
        config.model.name,
        fingerprint(folder),
        folder,
        tokenizer_digest(folder),
        is_nf4=config.engine.base_precision == "nf4",
    )
    return base, root


def _gpus(wanted: float | str) -> float:
    if isinstance(wanted, str):
        return 1.0 if ray.cluster_resources().get("GPU") else 0.0
    return wanted
