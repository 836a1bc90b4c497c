"""A server of the tests' own process, on a free port of loopback."""

import asyncio
import socket
import threading
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from ftray.serve.openai.local import LocalEngines


def run(api: FastAPI, engines: LocalEngines) -> tuple[str, Callable[[], None]]:
    """Serve until stopped; returns the address, and what stops it."""
    listener = socket.socket(proto=socket.IPPROTO_TCP)  # else replies wait 40 ms for an ACK
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(api, log_level="warning", lifespan="off"))

    async def main() -> None:
        await engines.start()
        await server.serve(sockets=[listener])
        await engines.stop()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    while not server.started:
        thread.join(0.01)

    def stop() -> None:
        server.should_exit = True
        thread.join()
        listener.close()

    return f"http://127.0.0.1:{listener.getsockname()[1]}", stop
