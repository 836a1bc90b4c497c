"""The cluster file: where a run goes, and what machines `ftray check` may count on there."""

import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ftray.config.base import Config, read_tree, validated

READ_CPUS = 1.0  # Ray Data hangs silently when training leaves it no CPU for its read tasks
MIN_OBJECT_STORE = 75 * 2**20  # Ray refuses less


class NodesConfig(Config):
    """Machines of one kind, as `ftray check` counts them; the preflight asks the cluster itself."""

    count: PositiveInt = 1
    cpus: PositiveInt
    memory_gib: PositiveFloat
    """Memory of one machine that its workers share."""
    gpus: Annotated[int, Field(ge=0)] = 0
    gpu_memory_gib: PositiveFloat | None = None
    """Memory of one GPU, as its maker states it."""

    @model_validator(mode="after")
    def _gpus_have_memory(self) -> Self:
        if self.gpus and self.gpu_memory_gib is None:
            raise ValueError(f"gpu_memory_gib is missing: {self.gpus} GPUs of how much memory?")
        return self


class ClusterConfig(Config):
    """One Ray cluster."""

    address: str = "local"
    """local: started for the command; auto: the one of this machine; host:port or ray://host:port."""
    num_cpus: PositiveInt | None = None
    """For address local: CPUs that Ray hands out; null: all."""
    num_gpus: Annotated[int, Field(ge=0)] | None = None
    """For address local: GPUs that Ray hands out; null: all."""
    object_store_memory: Annotated[int, Field(ge=MIN_OBJECT_STORE)] | None = None
    """For address local: bytes of shared memory for data blocks; null: Ray's 30% of memory."""
    jobs: str | None = None
    """The cluster's dashboard, as http://head.example:8265: what `ftray submit` and `jobs` ask."""
    token_file: str | None = None
    """Holds Ray's token; null: RAY_AUTH_TOKEN, or the file that RAY_AUTH_TOKEN_PATH names."""
    shared_files: bool = False
    """Its machines see this one's files under the same paths: nothing has to be uploaded."""
    upload_gib: PositiveFloat = 2.0
    """The most that `ftray submit` uploads of a run's local data: more is better copied once."""
    nodes: list[NodesConfig] = Field(default_factory=list)
    """What the machines have; none with address local: this machine."""

    @model_validator(mode="after")
    def _sizes_only_what_it_starts(self) -> Self:
        if not re.fullmatch(r"local|auto|(ray://)?[^\s/:]+:\d+", self.address):
            raise ValueError(
                "address: expected local, auto, host:port or ray://host:port, "
                f"found '{self.address}'"
            )
        sized = [self.num_cpus, self.num_gpus, self.object_store_memory]
        if self.address != "local" and any(size is not None for size in sized):
            raise ValueError(
                "num_cpus, num_gpus and object_store_memory are for address local: "
                f"the cluster at '{self.address}' has its own"
            )
        return self

    @model_validator(mode="after")
    def _jobs_go_where_it_is(self) -> Self:
        if self.jobs is None:
            return self
        if not re.fullmatch(r"https?://[^\s/:]+(:\d+)?/?", self.jobs):
            raise ValueError(f"jobs: expected http://host:port, found '{self.jobs}'")
        if self.address == "local":
            raise ValueError("address is missing: auto on the head node, else ray://host:port")
        return self


def load_cluster(path: Path) -> ClusterConfig:
    """Read a cluster file such as cluster/local.yaml; its token file counts from its folder."""
    tree = read_tree(path)
    file = tree.get("token_file")
    if isinstance(file, str):
        tree["token_file"] = str(path.resolve().parent / Path(file).expanduser())
    return validated(ClusterConfig, tree, source=str(path))
