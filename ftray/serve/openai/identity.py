"""Who asks, and which model for: keys and scopes, and ids that a key may see."""

from starlette.requests import Request

from ftray.errors import RegistryError, ServeError, StorageError
from ftray.serve.openai.access import DEFAULT_PROJECT, Principal
from ftray.serve.openai.errors import (
    DRAINING,
    NO_KEY,
    NO_MODEL,
    NOT_ALLOWED,
    UNAVAILABLE,
    ApiError,
    Kind,
)
from ftray.serve.openai.service import Resolved, Service
from ftray.serve.openai.trace import trace_of

_NOT_SERVABLE = Kind(400, "invalid_request_error", "model_not_servable")


async def authenticate(service: Service, request: Request, scope: str | None) -> Principal:
    """Return whose request it is; raises ApiError. `scope` None: any key will do."""
    kind, _, secret = request.headers.get("authorization", "").partition(" ")
    sent = secret.strip() if kind.lower() == "bearer" else ""
    principal = await service.access.authenticate(sent or None)
    if principal is None:
        what = "wrong, revoked or expired API key" if sent else "no API key was sent"
        message = f"{what}: send 'Authorization: Bearer <key>'"
        raise ApiError(NO_KEY, message, headers={"www-authenticate": "Bearer"})
    trace = trace_of(request)
    trace.key, trace.project = principal.key, principal.project
    if scope is not None and not principal.scopes & {scope, "admin"}:
        raise ApiError(NOT_ALLOWED, f"this API key has no '{scope}' scope")
    return principal


def refuse_when_draining(service: Service) -> None:
    """Raise ApiError when the server is about to go away."""
    if service.is_draining:
        raise ApiError(DRAINING, "the server is shutting down", retry_after=5)


async def find_model(service: Service, principal: Principal, id: str, sticky: str) -> Resolved:
    """Return the version that an id means for this key; raises ApiError."""
    try:
        resolved = await service.models.resolve(id, sticky)
    except (RegistryError, ServeError, StorageError) as error:
        raise model_error(error, id) from None
    record = resolved.record
    is_seen = (
        may_see(principal, record.name, record.project) if record else may_see(principal, "base")
    )
    if not is_seen:
        raise no_model(id)
    return resolved


def may_see(principal: Principal, name: str, project: str | None = None) -> bool:
    """Say whether a key may know of an adapter, by its name and the project that owns it.

    `base` is the base model. Who needs no key is of the default project.
    """
    is_own = project is None or project == (principal.project or DEFAULT_PROJECT)
    return is_own and (principal.models is None or name in principal.models)


def no_model(id: str) -> ApiError:
    """Return the answer for a model that is not there, or not for this key."""
    return ApiError(NO_MODEL, f"the model '{id[:256]}' does not exist", "model")


def model_error(error: RegistryError | ServeError | StorageError, id: str) -> ApiError:
    """Translate what looking up a model has raised; paths of the storage stay untold."""
    match error:
        case RegistryError():
            return no_model(id)
        case ServeError():
            return ApiError(_NOT_SERVABLE, error.message, "model")
    return ApiError(UNAVAILABLE, "the models' storage cannot be read", retry_after=5)


def sticky_key(principal: Principal, user: str, request: str) -> str:
    """Return what a split alias decides by: the user, else the key, else chance."""
    return f"{principal.key}/{user}" if user or principal.key else request
