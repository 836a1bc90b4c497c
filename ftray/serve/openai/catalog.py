"""GET and DELETE /v1/models."""

from starlette.requests import Request
from starlette.responses import Response

from ftray.errors import RegistryError, ServeError, StorageError
from ftray.serve.openai.answers import Json
from ftray.serve.openai.errors import INVALID, ApiError, json_response
from ftray.serve.openai.identity import authenticate, may_see, model_error, no_model
from ftray.serve.openai.service import ModelCard, Service


async def list_models(service: Service, request: Request) -> Response:
    """Return the models that a key may see, on one page."""
    principal = await authenticate(service, request, None)
    try:
        cards = await service.models.cards()
    except StorageError as error:
        raise model_error(error, "") from None
    seen = [_json(card) for card in cards if may_see(principal, card.name, card.project)]
    return json_response({"object": "list", "data": seen})


async def show_model(service: Service, request: Request, id: str) -> Response:
    """Return one model."""
    principal = await authenticate(service, request, None)
    try:
        card = await service.models.card(id)
    except (RegistryError, ServeError, StorageError) as error:
        raise model_error(error, id) from None
    if not may_see(principal, card.name, card.project):
        raise no_model(id)
    return json_response(_json(card))


async def delete_model(service: Service, request: Request, id: str) -> Response:
    """Delete one version; one that an alias needs is kept, and the answer says why."""
    principal = await authenticate(service, request, "train")
    try:
        card = await service.models.card(id)
    except (RegistryError, ServeError, StorageError) as error:
        raise model_error(error, id) from None
    if not may_see(principal, card.name, card.project):
        raise no_model(id)
    try:
        await service.models.delete(id)
    except RegistryError as error:  # 400, since clients try a 409 again
        raise ApiError(INVALID, error.message, "model") from None
    except StorageError as error:
        raise model_error(error, id) from None
    if service.on_delete is not None:
        await service.on_delete(principal, card.version or id)
    return json_response({"id": id, "object": "model", "deleted": True})


def _json(card: ModelCard) -> Json:
    extra: Json = {"base": card.base, "version": card.version} if card.base else {}
    owner = {"id": card.id, "object": "model", "created": card.created, "owned_by": card.owned_by}
    return {**owner, **extra}
