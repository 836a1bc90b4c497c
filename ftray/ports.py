"""Ports that nobody listens on."""

import socket

from ftray.errors import ServeError


def free_port(host: str, port: int, how: str) -> int:
    """Return the port, of 0 a free one, or say who may have it; `how` chooses another."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServeError(
                f"cannot listen on {host}:{port}: {error.strerror}",
                f"stop what listens there, or choose another: {how}",
            ) from None
        found: int = probe.getsockname()[1]
        return found


def some_port(host: str, wanted: int) -> int:
    """Return the port if it is free, else another one."""
    try:
        return free_port(host, wanted, "")
    except ServeError:
        return free_port(host, 0, "")
