"""One `vllm serve` process: started, waited for, and ended with everything that it has started."""

import asyncio
import os
import secrets
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import Sequence
from pathlib import Path

from ftray.errors import ServeError
from ftray.serve.vllm import keeper
from ftray.serve.vllm.client import VllmClient
from ftray.serve.vllm.options import VllmOptions

_LOOK_SECONDS = 0.2
_LAST_LINES = 12
_FOREIGN = ("PYTHONPATH", "PYTHONHOME", "PYTHONWARNINGS", "VIRTUAL_ENV")  # of our environment
_SETTINGS = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",  # only who may open the socket can use it
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",  # the base model lies in a folder
    "TOKENIZERS_PARALLELISM": "false",
}


class VllmServer:
    """A server on a Unix socket in a folder that only this user may enter, and with a key.

    Not on a port: vLLM asks for its key below /v1 alone, and what loads adapters from any path or
    generates is reachable beside it (/adapters, /invocations) by all users of the machine.
    """

    def __init__(self, process: Process, client: VllmClient, log: Path, stop_seconds: float):
        self.client = client
        self._process, self._log, self._stop_seconds = process, log, stop_seconds

    async def wait_until_ready(self, seconds: float) -> None:
        """Raise ServeError with the end of the log when it ends, or is not ready by then."""
        end = time.monotonic() + seconds
        while not await self.client.is_healthy():
            if self._process.returncode is not None:
                what = f"vLLM ended with status {self._process.returncode} while it started"
                raise ServeError(f"{what}:\n{self._last_words()}", f"all of it is in {self._log}")
            if time.monotonic() > end:
                what = f"vLLM did not answer within {seconds:.0f} s"
                raise ServeError(f"{what}:\n{self._last_words()}", f"all of it is in {self._log}")
            await asyncio.sleep(_LOOK_SECONDS)
        await self.client.warm_up()

    async def wait(self) -> str:
        """Return what is known about its end, once it has ended."""
        status = await self._process.wait()
        return f"vLLM has ended with status {status}"

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL, for it and all that it has started."""
        await self.client.close()
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), self._stop_seconds + 5.0)
        except TimeoutError:  # the keeper itself hangs; the kernel kills the server with it
            self._process.kill()
            await self._process.wait()

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        said = [line for line in lines if line.strip()]
        errors = [line for line in said if "Error" in line]
        return "\n".join([*errors[-3:], *said[-_LAST_LINES:]])


async def start_server(
    python: Path, arguments: Sequence[str], work: Path, options: VllmOptions
) -> VllmServer:
    """Start it, with a socket, a key and a log of its own; it is not ready yet."""
    folder = Path(tempfile.mkdtemp(prefix="s-", dir=work))  # 0700; a socket's path has 107 bytes
    socket, log, key = folder / "vllm", folder / "vllm.log", secrets.token_urlsafe(32)
    environment = {name: text for name, text in os.environ.items() if name not in _FOREIGN}
    environment |= {**_SETTINGS, "VLLM_API_KEY": key}  # not an argument: those are seen by all
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--uds", str(socket)]
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *[sys.executable, "-I", keeper.__file__, str(options.stop_seconds)],
            *[*command, *arguments],
            stdin=PIPE,
            stdout=output,
            stderr=STDOUT,
            env=environment,
            cwd=folder,
            start_new_session=True,  # Ctrl-C reaches us, and we end it
        )
    return VllmServer(process, VllmClient(socket, key), log, options.stop_seconds)
