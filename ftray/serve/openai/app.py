"""The application: routes, and every error in OpenAI's shape."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ftray import __version__
from ftray.serve.openai.catalog import delete_model, list_models, show_model
from ftray.serve.openai.chat import create_chat
from ftray.serve.openai.completions import create_completion
from ftray.serve.openai.edge import Edge
from ftray.serve.openai.errors import ApiError, http_error, json_response
from ftray.serve.openai.identity import authenticate
from ftray.serve.openai.requests import ChatRequest, CompletionRequest
from ftray.serve.openai.service import Service
from ftray.serve.openai.strict import Strict
from ftray.serve.openai.trace import trace_of

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_api(service: Service, lifespan: Lifespan | None = None) -> "Api":
    """Build the OpenAI-compatible application over a service; `lifespan` is open while it runs."""
    api = Api(
        lifespan=lifespan,
        title="ftray",
        version=__version__,
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    _add_completions(api, service)
    _add_models(api, service)
    _add_probes(api, service)
    _add_errors(api, service)
    api.add_middleware(Edge, service=service)
    return api


class Api(FastAPI):
    """Bodies are read by our own hand, after the key is known; the schema tells of them here."""

    bodies: tuple[type[Strict], ...] = (ChatRequest, CompletionRequest)

    def openapi(self) -> dict[str, Any]:
        """Return the schema of the API."""
        if self.openapi_schema is None:
            schema = super().openapi()
            modes = [(body, "validation") for body in self.bodies]
            _, definitions = models_json_schema(
                modes,  # type: ignore[arg-type]  # a list of pairs is invariant
                ref_template="#/components/schemas/{model}",
            )
            schema.setdefault("components", {})["schemas"] = definitions["$defs"]
        return self.openapi_schema or {}


def _add_completions(api: FastAPI, service: Service) -> None:
    async def chat_completions(request: Request) -> Response:
        return await create_chat(service, request)

    async def completions(request: Request) -> Response:
        return await create_completion(service, request)

    for path, handler, body in (
        ("/v1/chat/completions", chat_completions, "ChatRequest"),
        ("/v1/completions", completions, "CompletionRequest"),
    ):
        reference = {"$ref": f"#/components/schemas/{body}"}
        content = {"application/json": {"schema": reference}}
        extra = {"requestBody": {"required": True, "content": content}}
        api.add_api_route(path, handler, methods=["POST"], openapi_extra=extra, responses=_ERRORS)


def _add_models(api: FastAPI, service: Service) -> None:
    async def models(request: Request) -> Response:
        return await list_models(service, request)

    async def model(request: Request, id: str) -> Response:
        return await show_model(service, request, id)

    async def delete(request: Request, id: str) -> Response:
        return await delete_model(service, request, id)

    api.add_api_route("/v1/models", models, methods=["GET"], responses=_ERRORS)
    api.add_api_route("/v1/models/{id:path}", model, methods=["GET"], responses=_ERRORS)
    api.add_api_route("/v1/models/{id:path}", delete, methods=["DELETE"], responses=_ERRORS)


def _add_probes(api: FastAPI, service: Service) -> None:
    async def healthz() -> Response:
        return json_response({"status": "ok"})

    async def readyz() -> Response:
        info = await service.engines.info()
        if service.is_draining or info is None:
            state = "draining" if service.is_draining else "starting"
            return json_response({"status": state}, 503, {"retry-after": "5"})
        engine = {
            "kind": info.kind,
            "model": info.model,
            "max_length": info.max_length,
            "dtype": info.dtype,
            "is_deterministic": info.is_deterministic,
            "notes": list(info.notes),
        }
        return json_response({"status": "ready", "version": __version__, "engine": engine})

    async def metrics(request: Request) -> Response:
        await authenticate(service, request, None)
        text = service.metrics.text(await service.engines.stats())
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    for path, handler in (("/healthz", healthz), ("/readyz", readyz), ("/metrics", metrics)):
        api.add_api_route(path, handler, methods=["GET"], responses=_ERRORS)


def _add_errors(api: FastAPI, service: Service) -> None:
    @api.exception_handler(ApiError)
    async def on_refusal(request: Request, error: ApiError) -> Response:
        trace_of(request).error = error.kind.code
        if error.kind.status in (429, 503):
            service.metrics.refusals.labels(error.kind.code).inc()
        return error.response()

    @api.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> Response:
        message = f"{error.detail}: {request.method} {request.url.path[:200]}"
        return http_error(error.status_code, message, error.headers).response()


_ERRORS: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "An error: {'error': {'message', 'type', 'param', 'code'}}.",
        "content": {"application/json": {"schema": {"type": "object", "required": ["error"]}}},
    }
}
