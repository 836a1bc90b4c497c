"""The HTTP application: all that `ftray serve` answers, and the fine-tuning API."""

from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from ftray.accounts.audit import Act, Actor, list_acts, note
from ftray.accounts.database import Database
from ftray.serve.openai.access import Principal
from ftray.serve.openai.answers import Json
from ftray.serve.openai.app import Api, Lifespan, create_api
from ftray.serve.openai.errors import json_response
from ftray.serve.openai.service import Service
from ftray.service.file_routes import add_file_routes
from ftray.service.files import Files
from ftray.service.identity import actor, actor_of, blocking
from ftray.service.job_routes import JobRoutes, add_job_routes
from ftray.service.jobs import Jobs
from ftray.service.pages import no_cursor, read_query
from ftray.service.requests import JobRequest
from ftray.service.schema import ERRORS, PAGE, parameters
from ftray.service.shares import forget_size


@dataclass(frozen=True)
class Tuning:
    """What the fine-tuning routes work with; `wake` tells the controller of something to do."""

    files: Files
    jobs: Jobs
    wake: Callable[[], None]


def create_service_api(service: Service, tuning: Tuning, lifespan: Lifespan | None = None) -> Api:
    """Build the application over a service and its jobs."""
    api = create_api(service, lifespan)
    api.bodies = (*api.bodies, JobRequest)
    add_file_routes(api, service, tuning.files)
    add_job_routes(api, JobRoutes(service, tuning.jobs, tuning.wake))
    _add_audit_log(api, service, tuning.files)

    async def on_delete(principal: Principal, version: str) -> None:
        await blocking(_note_deleted, tuning.files.database, actor(principal), version)

    service.on_delete = on_delete
    return api


def _note_deleted(database: Database, who: Actor, version: str) -> None:
    with database.writing() as session:
        note(session, who, "model.delete", version)
        forget_size(session, version.partition("@")[0])


def _add_audit_log(api: Api, service: Service, files: Files) -> None:
    async def audit_log(request: Request) -> Response:
        """Return a page of what was changed in the key's project; for admins."""
        admin = await actor_of(service, request, "admin")
        query = read_query(request, limit=20, most=100)
        before = None
        if query.after is not None:
            number = query.after.removeprefix("audit-")
            if not (number.isascii() and number.isdecimal() and len(number) < 19):
                raise no_cursor(query.after)
            before = int(number)
        limit = query.limit + 1
        acts = await blocking(list_acts, files.database, admin.project, before, limit)
        data = [_shown(act) for act in acts[: query.limit]]
        return json_response({"object": "list", "data": data, "has_more": len(acts) == limit})

    path = "/v1/organization/audit_logs"
    extra = parameters(*PAGE)
    api.add_api_route(path, audit_log, methods=["GET"], openapi_extra=extra, responses=ERRORS)


def _shown(act: Act) -> Json:
    return {
        "id": f"audit-{act.number}",
        "object": "organization.audit_log",
        "effective_at": int(act.at),
        "type": act.action,
        "project": act.project,
        "actor": {"type": "api_key", "api_key": {"id": act.key}},
        "resource": act.object,
    }
