"""Whether a cluster has what a run needs, asked before anything is sent."""

from ftray.cluster import allot, check_fit
from ftray.config.run import ScalingConfig
from ftray.errors import ClusterError
from ftray.machines import emptied, nodes_at


def check_room(scaling: ScalingConfig, address: str, *, is_patient: bool) -> None:
    """Raise ClusterError, in words, if there is not enough, or with patience never will be."""
    machines = nodes_at(address)
    whole = emptied(machines)
    check_fit(allot(scaling, whole), None, whole)
    if is_patient:
        return
    try:
        check_fit(allot(scaling, machines), None, machines)
    except ClusterError as error:
        raise type(error)(error.message, f"{error.hint}, or submit with --wait") from None
