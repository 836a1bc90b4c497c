"""Who acts, as the service's tables name it; and how their work is done, which blocks."""

import asyncio
import logging
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

from starlette.requests import Request

from ftray.accounts.audit import Actor
from ftray.accounts.grant import DEFAULT_PROJECT
from ftray.errors import StorageError
from ftray.serve.openai.access import Principal
from ftray.serve.openai.errors import UNAVAILABLE, ApiError
from ftray.serve.openai.identity import authenticate
from ftray.serve.openai.service import Service

logger = logging.getLogger(__name__)

Given = TypeVarTuple("Given")
T = TypeVar("T")


async def actor_of(service: Service, request: Request, scope: str) -> Actor:
    """Return who acts; raises ApiError. Who needs no key works in the default project."""
    return actor(await authenticate(service, request, scope))


def actor(principal: Principal) -> Actor:
    """Return who acts."""
    return Actor(principal.project or DEFAULT_PROJECT, principal.key)


async def blocking(work: Callable[[*Given], T], *given: *Given) -> T:
    """Run what blocks in a thread; a database or storage that is away is a 503, and no address."""
    try:
        return await asyncio.to_thread(work, *given)
    except StorageError as error:
        logger.warning("%s", error.message)
        message = "the service's storage cannot be reached"
        raise ApiError(UNAVAILABLE, message, retry_after=5) from error
