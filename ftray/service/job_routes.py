"""/v1/fine_tuning/jobs: create, list, look at, cancel, pause, resume; events and checkpoints."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from ftray.accounts.audit import Actor
from ftray.errors import RegistryError, ServeError, StorageError
from ftray.serve.openai.answers import Json
from ftray.serve.openai.errors import INVALID, ApiError, json_response
from ftray.serve.openai.identity import (
    authenticate,
    may_see,
    model_error,
    no_model,
    refuse_when_draining,
)
from ftray.serve.openai.reading import read_body
from ftray.serve.openai.service import Service
from ftray.service.identity import actor_of, blocking
from ftray.service.jobs import Jobs, Parent
from ftray.service.pages import read_query
from ftray.service.requests import METADATA_KEY, JobRequest
from ftray.service.schema import ERRORS, PAGE, body, parameters
from ftray.service.shown import as_list, shown_checkpoint, shown_event, shown_job
from ftray.service.tables import JobRow

_JOBS = "/v1/fine_tuning/jobs"
_MAX_BODY_BYTES = 2**20
_MOST = 1000


def add_job_routes(api: FastAPI, routes: "JobRoutes") -> None:
    """Mount the routes."""

    def add(method: str, path: str, handler: Callable[..., Any], extra: Json | None = None) -> None:
        api.add_api_route(path, handler, methods=[method], openapi_extra=extra, responses=ERRORS)

    one = f"{_JOBS}/{{id}}"
    add("POST", _JOBS, routes.create, body("JobRequest"))
    add("GET", _JOBS, routes.list, parameters(*PAGE, "metadata"))
    add("GET", one, routes.show)
    add("GET", f"{one}/events", routes.events, parameters(*PAGE))
    add("GET", f"{one}/checkpoints", routes.checkpoints, parameters(*PAGE))
    add("POST", f"{one}/cancel", routes.cancel)
    add("POST", f"{one}/pause", routes.pause)
    add("POST", f"{one}/resume", routes.resume)


@dataclass(frozen=True)
class JobRoutes:
    """The handlers; `wake` tells the controller that there is something to do."""

    service: Service
    jobs: Jobs
    wake: Callable[[], None]

    async def create(self, request: Request) -> Response:
        """Queue a job."""
        actor = await actor_of(self.service, request, "train")
        refuse_when_draining(self.service)
        asked = await read_body(request, JobRequest, _MAX_BODY_BYTES)
        parent = await _parent(self.service, request, asked.model, self.jobs.base.name)
        key = _idempotency_key(request)
        row = await blocking(self.jobs.create, actor, asked, parent, key)
        self.wake()
        return json_response(shown_job(row))

    async def list(self, request: Request) -> Response:
        """Return a page of jobs."""
        actor = await actor_of(self.service, request, "train")
        query = read_query(request, limit=20, most=_MOST)
        page = await blocking(self.jobs.page, actor.project, query, _details(request))
        return json_response(as_list(page, shown_job))

    async def show(self, request: Request, id: str) -> Response:
        """Return one job."""
        actor = await actor_of(self.service, request, "train")
        return json_response(shown_job(await blocking(self.jobs.find, actor.project, id)))

    async def events(self, request: Request, id: str) -> Response:
        """Return a page of its events."""
        actor = await actor_of(self.service, request, "train")
        query = read_query(request, limit=20, most=_MOST)
        page = await blocking(self.jobs.events, actor.project, id, query)
        return json_response(as_list(page, shown_event))

    async def checkpoints(self, request: Request, id: str) -> Response:
        """Return a page of its checkpoints."""
        actor = await actor_of(self.service, request, "train")
        query = read_query(request, limit=10, most=_MOST)
        page = await blocking(self.jobs.checkpoints, actor.project, id, query)
        return json_response(as_list(page, shown_checkpoint))

    async def cancel(self, request: Request, id: str) -> Response:
        """End it."""
        return await self._change(request, id, self.jobs.cancel)

    async def pause(self, request: Request, id: str) -> Response:
        """Let it rest."""
        return await self._change(request, id, self.jobs.pause)

    async def resume(self, request: Request, id: str) -> Response:
        """Go on with it."""
        return await self._change(request, id, self.jobs.resume)

    async def _change(
        self, request: Request, id: str, act: Callable[[Actor, str], JobRow]
    ) -> Response:
        actor = await actor_of(self.service, request, "train")
        row = await blocking(act, actor, id)
        self.wake()
        return json_response(shown_job(row))


async def _parent(service: Service, request: Request, id: str, base: str) -> Parent:
    """Return what a job starts from; raises ApiError for what this server does not serve."""
    principal = await authenticate(service, request, "train")
    if id == base and may_see(principal, "base"):
        return Parent(None)
    try:
        card = await service.models.card(id)
    except (RegistryError, ServeError, StorageError) as error:
        raise model_error(error, id) from None
    if not may_see(principal, card.name, card.project):
        raise no_model(id)
    return Parent(card.version)


def _idempotency_key(request: Request) -> str | None:
    given = request.headers.get("idempotency-key")
    if given is not None and not re.fullmatch(r"[!-~]{1,255}", given):
        message = "Idempotency-Key has 1 to 255 printable ASCII characters"
        raise ApiError(INVALID, message, "Idempotency-Key")
    return given


def _details(request: Request) -> dict[str, str] | None:
    """Read `metadata[key]=value` of the query; None: `metadata=null`."""
    if request.query_params.get("metadata") == "null":
        return None
    found = {}
    for name, value in request.query_params.items():
        if name.startswith("metadata["):
            match = re.fullmatch(rf"metadata\[({METADATA_KEY})\]", name)
            if match is None or "\0" in value or len(value) > 512:
                raise ApiError(
                    INVALID, "metadata: no key and value that a job can have", "metadata"
                )
            found[match[1]] = value
    return found
