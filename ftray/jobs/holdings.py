"""Which machines a cluster has, and what is used of them by whom: Ray's state API, over HTTP."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ray.dashboard.modules.job.common import JOB_ACTOR_NAME_TEMPLATE
from ray.job_submission import JobDetails, JobType

from ftray.jobs.border import Border, RefusedError
from ftray.jobs.client import Client

Tree = Mapping[str, Any]  # what the API answers
SERVING = "serving"  # what Ray Serve's replicas hold is held by it
_SUPERVISOR = JOB_ACTOR_NAME_TEMPLATE.format(job_id="")  # it holds what its command was given


@dataclass(frozen=True)
class Holding:
    """A part of a machine that somebody keeps for as long as they run."""

    node: str  # Ray's id of it
    by: str
    cpus: float
    gpus: float
    submission: str | None = None  # the id that its job was submitted by


@dataclass(frozen=True)
class _Owner:
    words: str
    submission: str | None = None


@dataclass(frozen=True)
class Capacity:
    """What Ray may hand out of one machine."""

    node: str  # Ray's id of it
    name: str  # its address
    cpus: float
    gpus: float
    memory: float  # bytes


def capacities(address: str) -> list[Capacity]:
    """Return the alive machines of a cluster."""
    with Border(address):
        found = _listed(Client(address), "nodes", "state", "ALIVE")
    return [_capacity(node) for node in found]


def holdings(address: str, *, besides: str = "") -> list[Holding]:
    """Return what actors and placement groups hold, but for those of Ray's job `besides`.

    Tasks are not in it: they come and go.
    """
    client = Client(address)
    with Border(address):
        actors = _listed(client, "actors", "state", "ALIVE")
        groups = _listed(client, "placement_groups", "state", "CREATED")
        known = client.list_jobs()
    owners = {job.job_id: _owner(job) for job in known if job.job_id}
    owners |= {f"{_SUPERVISOR}{job.submission_id}": _owner(job) for job in known}
    found = [*_of_actors(actors, owners), *_of_groups(groups, owners)]
    return [held for job, held in found if job != besides and (held.cpus or held.gpus)]


def _listed(client: Client, kind: str, key: str, value: str) -> list[Tree]:
    which = f"filter_keys={key}&filter_predicates=%3D&filter_values={value}"
    answer = client._do_request("GET", f"/api/v0/{kind}?detail=true&limit=10000&{which}")
    if answer.status_code != 200:
        raise RefusedError(answer.status_code, answer.text)
    found: list[Tree] = answer.json()["data"]["result"]["result"]
    return found


def _capacity(node: Tree) -> Capacity:
    total = node["resources_total"]
    return Capacity(
        node["node_id"],
        node["node_ip"],
        total.get("CPU", 0.0),
        total.get("GPU", 0.0),
        total.get("memory", 0.0),
    )


def _of_actors(actors: list[Tree], owners: Mapping[str, _Owner]) -> Iterator[tuple[str, Holding]]:
    for actor in actors:
        if not actor.get("placement_group_id"):  # else its group holds what it uses
            wants = actor.get("required_resources") or {}
            yield actor["job_id"], _holding(actor["node_id"], _whose(actor, owners), wants)


def _whose(actor: Tree, owners: Mapping[str, _Owner]) -> _Owner:
    """The job that an actor is of, or that it supervises."""
    if actor["class_name"].startswith("ServeReplica:"):
        return _Owner(SERVING)
    supervised = owners.get(actor.get("name") or "")
    return supervised or owners.get(actor["job_id"], _Owner(actor["class_name"]))


def _of_groups(groups: list[Tree], owners: Mapping[str, _Owner]) -> Iterator[tuple[str, Holding]]:
    for group in groups:
        job = group["creator_job_id"]
        for bundle in group.get("bundles") or []:
            by = owners.get(job, _Owner("a placement group"))
            yield job, _holding(bundle["node_id"], by, bundle["unit_resources"])


def _holding(node: str, by: _Owner, wants: Tree) -> Holding:
    cpus, gpus = wants.get("CPU", 0.0), wants.get("GPU", 0.0)
    return Holding(node, by.words, cpus, gpus, by.submission)


def _owner(job: JobDetails) -> _Owner:
    if job.type is not JobType.SUBMISSION:
        return _Owner(f"'{job.entrypoint}'" if job.entrypoint else "a driver")
    run = (job.metadata or {}).get("run")
    words = f"run {run} (job {job.submission_id})" if run else f"job {job.submission_id}"
    return _Owner(words, job.submission_id)
