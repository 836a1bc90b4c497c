"""Shadows: a copy of a request goes to another version too, and its answer to nobody."""

import asyncio
from dataclasses import replace

from ftray.errors import FtrayError
from ftray.serve.openai.errors import ApiError
from ftray.serve.openai.flow import Flow
from ftray.serve.openai.limits import answer_room
from ftray.serve.openai.plan import MakePlan
from ftray.serve.openai.service import Service

_OWNER = "shadow"  # one share of the engine for all copies, so that they never crowd out users


def cast_shadow(service: Service, version: str, make_plan: MakePlan, id: str) -> None:
    """Send a copy, without waiting for anything; dropped when too many are running."""
    if len(service.shadows) >= service.settings.max_shadows:
        service.metrics.shadows.labels(version, "dropped").inc()
        return
    task = asyncio.create_task(_run(service, version, make_plan, id))
    service.shadows.add(task)
    task.add_done_callback(service.shadows.discard)


async def _run(service: Service, version: str, make_plan: MakePlan, id: str) -> None:
    outcome = "failed"
    try:
        outcome = await _answered(service, version, make_plan, id)
    except (ApiError, FtrayError):
        pass  # counted below; the user's answer has nothing to do with it
    finally:
        service.metrics.shadows.labels(version, outcome).inc()


async def _answered(service: Service, version: str, make_plan: MakePlan, id: str) -> str:
    resolved = await service.models.resolve(version, "")
    info = await service.engines.info()
    if info is None:
        return "dropped"
    plan = replace(await make_plan(resolved, info), n=1)
    rooms = [answer_room(len(ids), plan.max_tokens, info.max_length) for ids in plan.prompts]
    seconds = service.settings.deadline_seconds
    flow = Flow(service.engines, plan.generations(f"{id}-shadow", resolved, rooms, _OWNER, seconds))
    try:
        await flow.open(resolved.source)
        while not flow.is_done:
            await flow.next(seconds)
    finally:
        flow.close()
    return "answered"
