"""Which cluster a command means, and the one of this machine that stays."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ftray.config.cluster import ClusterConfig
    from ftray.deployment.deployment import Down, Up

UP = "up"  # as in --cluster up


def named_cluster(name: str | None) -> "ClusterConfig":
    """Return the cluster that a file describes; `up` or None: what `ftray up` has started."""
    from ftray.config.cluster import load_cluster
    from ftray.deployment.standing import cluster_file

    return load_cluster(cluster_file() if name in (None, UP) else Path(str(name)))


def maybe_cluster(name: str | None) -> "ClusterConfig | None":
    """Return the cluster that is named; None: a Ray of this machine, for one command alone."""
    return None if name is None else named_cluster(name)


def up(
    file: str | None = None, overrides: Sequence[str] = (), *, cluster: str | None = None
) -> "Up":
    """Start a cluster and the service on this machine; they stay until `down`.

    `file` is Ray Serve's own config (deploy/serve.yaml), `cluster` a file that says how large.
    """
    from ftray.config.cluster import ClusterConfig
    from ftray.config.serve import load_served, serve_tree
    from ftray.deployment.deployment import up as start

    path = None if file is None else Path(file)
    served = load_served(path, list(overrides))
    sizes = maybe_cluster(cluster) or ClusterConfig()
    return start(served, serve_tree(path, served), sizes)


def down() -> "Down":
    """Stop what `up` has started, and nothing else."""
    from ftray.deployment.deployment import down as stop

    return stop()
