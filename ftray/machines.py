"""The machines of a cluster, and what other jobs leave of them."""

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import ray

from ftray import jobs
from ftray.errors import ClusterError
from ftray.jobs import SERVING, Capacity, Holding

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Node:
    """One alive machine of the cluster: what of it is free for this run."""

    id: str
    name: str  # its address
    cpus: float
    gpus: float
    memory: float  # bytes, whoever uses them
    held: tuple[Holding, ...] = ()  # by other jobs


def nodes() -> list[Node]:
    """Return the machines of the cluster that this process is connected to."""
    found = [
        Capacity(
            node["NodeID"],
            node["NodeManagerAddress"],
            node["Resources"].get("CPU", 0.0),
            node["Resources"].get("GPU", 0.0),
            node["Resources"].get("memory", 0.0),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    return _free(found, _held_by_others())


def nodes_at(address: str) -> list[Node]:
    """Return the machines of the cluster whose dashboard is at that address."""
    return _free(jobs.capacities(address), jobs.holdings(address))


def emptied(machines: Iterable[Node]) -> list[Node]:
    """Return the machines as they will be when nobody uses them."""
    return [_without(node, node.held) for node in machines]


def freed(machines: Iterable[Node]) -> list[Node]:
    """Return the machines as they will be when all other jobs have ended; serving goes on."""
    return [_without(n, [one for one in n.held if one.by != SERVING]) for n in machines]


def _without(node: Node, holdings: Collection[Holding]) -> Node:
    return replace(
        node,
        cpus=node.cpus + sum(held.cpus for held in holdings),
        gpus=node.gpus + sum(held.gpus for held in holdings),
        held=tuple(held for held in node.held if held not in holdings),
    )


def stock(free: float, used: Sequence[tuple[str, float]]) -> str:
    """Say how many there are: `8`, or `2 free of 8, 6 used by run a (job b)`."""
    by: dict[str, float] = {}
    for who, amount in used:
        if amount:
            by[who] = by.get(who, 0.0) + amount
    if not by:
        return f"{free:g}"
    most = sorted(by.items(), key=lambda item: -item[1])
    named = [who if len(by) == 1 else f"{who} ({amount:g})" for who, amount in most[:_NAMED]]
    rest = [f"{len(by) - _NAMED} others"] if len(by) > _NAMED else []
    everything = sum(by.values())
    who = ", ".join([*named, *rest])
    return f"{free:g} free of {free + everything:g}, {everything:g} used by {who}"


_NAMED = 4


def _held_by_others() -> list[Holding]:
    address = jobs.here()
    if address is None:
        return []  # a Ray of this process alone
    mine = ray.get_runtime_context().get_job_id()
    try:
        return jobs.holdings(address, besides=mine)
    except ClusterError as error:
        logger.warning("it is not known who else uses the cluster: %s", error.message)
        return []


def _free(found: Iterable[Capacity], held: Iterable[Holding]) -> list[Node]:
    by_node: dict[str, list[Holding]] = {}
    for holding in held:
        by_node.setdefault(holding.node, []).append(holding)
    machines = []
    for one in found:
        here = tuple(by_node.get(one.node, ()))
        cpus = max(0.0, one.cpus - sum(holding.cpus for holding in here))
        gpus = max(0.0, one.gpus - sum(holding.gpus for holding in here))
        machines.append(Node(one.node, one.name, cpus, gpus, one.memory, here))
    return machines
