"""/v1/files: upload, list, look at, read and delete."""

import asyncio
from collections.abc import AsyncIterator, Iterator

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from ftray.serve.openai.errors import INVALID, ApiError, json_response
from ftray.serve.openai.identity import refuse_when_draining
from ftray.serve.openai.service import Service
from ftray.service import blobs
from ftray.service.files import RESULTS, Files
from ftray.service.identity import actor_of, blocking
from ftray.service.pages import read_query
from ftray.service.schema import ERRORS, FORM, PAGE, parameters
from ftray.service.shown import as_list, shown_file
from ftray.service.uploads import PURPOSE, received

_MOST = 10_000


def add_file_routes(api: FastAPI, service: Service, files: Files) -> None:
    """Mount the routes."""

    async def create_file(request: Request) -> Response:
        actor = await actor_of(service, request, "train")
        refuse_when_draining(service)
        await blocking(files.check_room, actor.project)
        async with received(request, files.config.max_bytes) as upload:
            return json_response(shown_file(await blocking(files.add, actor, upload)))

    async def list_files(request: Request) -> Response:
        actor = await actor_of(service, request, "train")
        query = read_query(request, limit=_MOST, most=_MOST)
        purpose = request.query_params.get("purpose")
        if purpose not in (None, PURPOSE, RESULTS):
            raise ApiError(INVALID, f"purpose is {PURPOSE} or {RESULTS}", "purpose")
        page = await blocking(files.page, actor.project, query, purpose)
        return json_response(as_list(page, shown_file))

    async def show_file(request: Request, id: str) -> Response:
        actor = await actor_of(service, request, "train")
        return json_response(shown_file(await blocking(files.find, actor.project, id)))

    async def read_file(request: Request, id: str) -> Response:
        actor = await actor_of(service, request, "train")
        row = await blocking(files.find, actor.project, id)
        parts = await _begun(blobs.chunks(files.root, row.blob))
        headers = {"content-length": str(row.bytes)}
        return StreamingResponse(parts, headers=headers, media_type="application/octet-stream")

    async def delete_file(request: Request, id: str) -> Response:
        actor = await actor_of(service, request, "train")
        await blocking(files.delete, actor, id)
        return json_response({"id": id, "object": "file", "deleted": True})

    one = "/v1/files/{id}"
    api.add_api_route(
        "/v1/files", create_file, methods=["POST"], openapi_extra=FORM, responses=ERRORS
    )
    page = parameters(*PAGE, "order", "purpose")
    api.add_api_route(
        "/v1/files", list_files, methods=["GET"], openapi_extra=page, responses=ERRORS
    )
    api.add_api_route(one, show_file, methods=["GET"], responses=ERRORS)
    api.add_api_route(f"{one}/content", read_file, methods=["GET"], responses=ERRORS)
    api.add_api_route(one, delete_file, methods=["DELETE"], responses=ERRORS)


async def _begun(parts: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Read the first part before anything is sent: what fails then still is an error."""
    first = await blocking(lambda: next(parts, b""))

    async def rest() -> AsyncIterator[bytes]:
        yield first
        while part := await asyncio.to_thread(lambda: next(parts, b"")):
            yield part

    return rest()
