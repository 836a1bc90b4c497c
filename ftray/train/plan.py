"""What a run will be before anything starts: batches, trained parameters, memory, verdict."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from ftray.config.base import override
from ftray.config.cluster import READ_CPUS, ClusterConfig, NodesConfig
from ftray.config.paths import is_path
from ftray.config.run import BUILTIN_MODEL, ActivationPolicy, LoraConfig, RunConfig
from ftray.errors import ConfigError, did_you_mean
from ftray.model.shape import ModelShape
from ftray.train.advice import advice
from ftray.train.choice import settle
from ftray.train.machine import Machine
from ftray.train.memory import (
    GIB,
    USABLE_OF_GPU,
    Memory,
    Worker,
    bytes_per_element,
    trainable,
    unknown_targets,
)
from ftray.train.traffic import Traffic, traffic


@dataclass(frozen=True)
class BatchPlan:
    """How a global batch is made: workers × micro × accumulation = size, in packs or rows."""

    size: int
    workers: int
    micro: int
    accumulation: int
    unit: Literal["packs", "rows"]
    max_tokens: int


@dataclass(frozen=True)
class Plan:
    """The answer of `ftray check`; what cannot be known here is None, and `verdict` says why."""

    config: dict[str, Any]
    batch: BatchPlan
    method: str
    strategy: Literal["ddp", "fsdp"]
    dtype: Literal["float32", "bfloat16"]
    activations: ActivationPolicy
    choice: str
    worker: Worker
    parameters: int | None
    trainable: int | None
    memory: Memory | None
    traffic: Traffic | None
    fits: bool | None
    verdict: str
    warnings: tuple[str, ...]


def make_plan(
    config: RunConfig, shape: ModelShape | None, cluster: ClusterConfig | None, machine: Machine
) -> Plan:
    """Plan a run for the cluster's nodes, or for this machine where the cluster names none."""
    worker = worker_of(config, cluster, machine)
    choice = settle(config, shape, worker)
    shortage = _shortage(config, worker, _nodes(cluster, machine))
    fits, verdict = _verdict(config, shape, worker, choice.memory)
    batch = _batch(config, choice.micro)
    return Plan(
        config=config.model_dump(mode="json"),
        batch=batch,
        method=config.adapter.method,
        strategy=config.strategy,
        dtype="bfloat16" if bytes_per_element(config, worker) == 2 else "float32",
        activations=choice.activations,
        choice=choice.reason,
        worker=worker,
        parameters=None if shape is None else shape.parameters,
        trainable=None if shape is None else trainable(config, shape),
        memory=choice.memory,
        traffic=None if shape is None else traffic(config, shape, worker, batch.accumulation),
        fits=False if shortage else fits,
        verdict=shortage or verdict,
        warnings=(*advice(config), *_about_targets(config, shape)),
    )


def worker_of(config: RunConfig, cluster: ClusterConfig | None, machine: Machine) -> Worker:
    """Say what one training worker runs on: a GPU or its share of one, or a share of a host."""
    nodes = _nodes(cluster, machine)
    gpus, count = config.scaling.gpus_per_worker, config.scaling.most_workers
    with_gpus = [node for node in nodes if node.gpus]
    if gpus == "auto":
        gpus = 1.0 if with_gpus else 0.0
    where = "the cluster file" if cluster is not None and cluster.nodes else "this machine"
    if not nodes:
        return Worker("gpu" if gpus else "cpu", count, None, "the cluster file names no nodes")
    if not gpus:
        return _on_cpu(count, nodes, cluster, where)
    sizes = [node.gpu_memory_gib for node in with_gpus if node.gpu_memory_gib is not None]
    if not sizes:
        return Worker("gpu", count, None, f"{where} has no GPU")
    usable = min(sizes) * min(1.0, gpus) * USABLE_OF_GPU
    source = f"{where}: a GPU of {min(sizes):.0f} GiB, of which {USABLE_OF_GPU:.0%} can be used"
    return Worker("gpu", count, int(usable * GIB), source)


_RAY_STORE = 0.3  # of a host's memory goes to Ray's object store unless the cluster file says less
_DRIVER = 1.0  # GiB for Ray itself, the driver and the data tasks


def _nodes(cluster: ClusterConfig | None, machine: Machine) -> list[NodesConfig]:
    if cluster is not None and (cluster.nodes or cluster.address != "local"):
        return cluster.nodes
    limit = None if cluster is None else cluster.num_gpus
    gpus = machine.gpus if limit is None else machine.gpus[:limit]
    return [
        NodesConfig(
            cpus=machine.cpus,
            memory_gib=machine.memory / GIB,
            gpus=len(gpus),
            gpu_memory_gib=min(gpus) / GIB if gpus else None,
        )
    ]


def _on_cpu(
    count: int, nodes: list[NodesConfig], cluster: ClusterConfig | None, where: str
) -> Worker:
    host = min(node.memory_gib for node in nodes)
    fixed = None if cluster is None else cluster.object_store_memory
    store = host * _RAY_STORE if fixed is None else fixed / GIB
    neighbours = math.ceil(count / sum(node.count for node in nodes))
    usable = max(0.0, host - store - _DRIVER) / neighbours
    source = (
        f"{where}: {host:.1f} GiB, less {store:.1f} for Ray's object store and {_DRIVER:.0f} for "
        f"the driver, for {neighbours} worker{'s' if neighbours > 1 else ''}"
    )
    return Worker("cpu", count, int(usable * GIB), source)


def _batch(config: RunConfig, micro: int) -> BatchPlan:
    size, workers = config.train.global_batch_size, config.scaling.most_workers
    return BatchPlan(
        size=size,
        workers=workers,
        micro=micro,
        accumulation=-(-size // (workers * micro)),
        unit="packs" if config.data.packing else "rows",
        max_tokens=size * config.data.max_length,
    )


def _shortage(config: RunConfig, worker: Worker, nodes: list[NodesConfig]) -> str:
    scaling = config.scaling
    count, cpus, gpus = scaling.least_workers, scaling.cpus_per_worker, scaling.gpus_per_worker
    match config.adapter:
        case LoraConfig(base_precision="fp8") if worker.device == "cpu":
            return "adapter.base_precision=fp8 needs GPUs that multiply 8-bit floats (Hopper)"
    if config.train.graphs is True and worker.device == "cpu":
        return "train.graphs=true needs GPUs"
    wanted = 0.0 if worker.device == "cpu" else count * (1.0 if gpus == "auto" else gpus)
    found = sum(node.count * node.gpus for node in nodes)
    if nodes and wanted > found:
        return f"{wanted:g} GPUs are needed and there are {found}"
    wanted = 0.0 if cpus == "auto" else count * cpus + READ_CPUS
    found = sum(node.count * node.cpus for node in nodes)
    if nodes and wanted > found:
        return f"{wanted:g} CPUs are needed, {READ_CPUS:g} for reading data, and there are {found}"
    return ""


def _about_targets(config: RunConfig, shape: ModelShape | None) -> list[str]:
    if shape is None:
        return []
    known = [layer.rpartition(".")[2] for layer in shape.linear]
    return [
        f"adapter.target: no linear layer is called '{name}'; {did_you_mean(name, known)}"
        for name in unknown_targets(config, shape)
    ]


def _verdict(
    config: RunConfig, shape: ModelShape | None, worker: Worker, memory: Memory | None
) -> tuple[bool | None, str]:
    if shape is None or memory is None:
        hint = did_you_mean(config.model.name, [BUILTIN_MODEL], otherwise="")
        return None, (
            f"the shape of '{config.model.name}' is not known on this machine, so parameters and "
            "memory are not estimated; they will be once the model is "
            + ("in that folder" if is_path(config.model.name) else "in the local cache")
            + (f"; {hint}" if hint else "")
        )
    if worker.memory is None:
        return None, f"{memory.peak / GIB:.1f} GiB are needed; what there is: {worker.source}"
    numbers = f"{memory.peak / GIB:.1f} of {worker.memory / GIB:.1f} GiB"
    if memory.peak <= worker.memory:
        return True, f"fits: {numbers}"
    remedies = _remedies(config, shape, worker)
    return False, f"does not fit: {numbers}; " + (
        f"would fit: {' | '.join(remedies)}" if remedies else "no single setting is enough"
    )


def _remedies(config: RunConfig, shape: ModelShape, worker: Worker) -> list[str]:
    """Settings each of which alone would make the run fit, the cheapest first."""
    changes: list[dict[str, Any]] = [
        {"train.micro_batch_size": "auto"},
        {"train.activation_checkpointing": "auto"},
        {"train.activation_checkpointing": "layer"},
        {"train.activation_checkpointing": "layer", "train.micro_batch_size": 1},
        {"train.activation_checkpointing": "offload", "train.micro_batch_size": 1},
        {"scaling.strategy": "fsdp"},
        {"train.optimizer": "adamw_8bit"},
        {"data.max_length": config.data.max_length // 2},
        {"adapter": {"method": "lora"}},
    ]
    if isinstance(config.adapter, LoraConfig):
        changes[-1] = {"adapter.method": "qlora"}
    return [
        " ".join(f"{key}={_as_yaml(value)}" for key, value in change.items())
        for change in changes
        if _would_fit(config, change, shape, worker)
    ]


def _as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()


def _would_fit(
    config: RunConfig, change: dict[str, Any], shape: ModelShape, worker: Worker
) -> bool:
    try:
        changed = override(config, change)
    except ConfigError:
        return False  # a length below the least, for example
    memory = settle(changed, shape, worker).memory
    return worker.memory is not None and memory is not None and memory.peak <= worker.memory
