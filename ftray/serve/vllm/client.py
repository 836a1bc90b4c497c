"""What is asked of a vLLM server over its Unix socket, and how its failures are told."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp

from ftray.serve.protocol import Refusal, RefusedError

Body = Mapping[str, Any]
Chunk = dict[str, Any]  # JSON, as vLLM has it

SERVED_NAME = "base"
"""What the base model is called; an adapter is called by its digest."""
_OK = 200
_QUICK = aiohttp.ClientTimeout(total=10.0)
_URL = "http://vllm"  # the name is not looked up


class VllmClient:
    """One server's API. A broken connection or a dead engine is RefusedError("lost")."""

    def __init__(self, socket: Path, key: str) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(socket), limit=0),
            headers={"Authorization": f"Bearer {key}"},
            timeout=aiohttp.ClientTimeout(total=None),
        )

    async def is_healthy(self) -> bool:
        """Whether it answers, and its engine lives."""
        try:
            async with self._session.get(f"{_URL}/health", timeout=_QUICK) as response:
                return response.status == _OK
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    async def max_length(self) -> int:
        """Tokens of prompt and answer together."""
        try:
            async with self._session.get(f"{_URL}/v1/models", timeout=_QUICK) as response:
                models = await response.json()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise lost(error) from None
        return int(models["data"][0]["max_model_len"])

    async def warm_up(self) -> None:
        """Have one token computed: the first one takes seconds."""
        body = {"model": SERVED_NAME, "prompt": [0], "max_tokens": 1, "stream": True}
        async for _ in self.complete(body):
            pass

    async def load(self, digest: str, folder: Path) -> None:
        """Read an adapter; raises RefusedError("bad_adapter") with vLLM's reason."""
        await self._post("load", {"lora_name": digest, "lora_path": str(folder)})

    async def unload(self, digest: str) -> None:
        """Forget a name; its weights stay in memory until others take their place."""
        await self._post("unload", {"lora_name": digest})

    async def complete(self, body: Body) -> AsyncGenerator[Chunk, None]:
        """Yield what the server streams; to close the iterator ends the generation."""
        try:
            async with self._session.post(f"{_URL}/v1/completions", json=body) as response:
                if response.status != _OK:
                    code: Refusal = "bad_grammar" if "structured_outputs" in body else "internal"
                    said = _reason(await response.text())
                    raise await self._refusal(f"vLLM refused it: {said}", code)
                async for chunk in _events(response.content):
                    if error := chunk.get("error"):
                        said = error.get("message") or error
                        raise await self._refusal(f"vLLM failed: {said}", "internal")
                    yield chunk
        except (aiohttp.ClientError, OSError) as error:
            raise lost(error) from None

    async def close(self) -> None:
        """Break all connections."""
        await self._session.close()

    async def _post(self, verb: str, body: Body) -> None:
        try:
            url = f"{_URL}/v1/{verb}_lora_adapter"
            async with self._session.post(url, json=body) as response:
                text = await response.text()
        except (aiohttp.ClientError, OSError) as error:
            raise lost(error) from None
        if response.status != _OK:
            what = f"vLLM cannot {verb} it: {_reason(text)}"
            raise await self._refusal(what, "bad_adapter")

    async def _refusal(self, what: str, code: Refusal) -> RefusedError:
        """A server whose engine has died refuses all, for a second before it ends itself."""
        return RefusedError(what, code=code) if await self.is_healthy() else lost("its engine died")


def lost(why: BaseException | str) -> RefusedError:
    """Say that the server has gone while something was asked of it."""
    what = f"the vLLM server has gone ({why if isinstance(why, str) else type(why).__name__})"
    return RefusedError(what, "it is being restarted: try again", code="lost")


async def _events(stream: aiohttp.StreamReader) -> AsyncIterator[Chunk]:
    """Read server-sent events; a line may be long: the first one repeats the prompt's tokens."""
    rest = b""
    async for data in stream.iter_any():
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            text = line.removeprefix(b"data: ").strip()
            if line.startswith(b"data: ") and text != b"[DONE]":
                yield json.loads(text)


def _reason(text: str) -> str:
    try:
        return str(json.loads(text)["error"]["message"])[:500]
    except (ValueError, KeyError, TypeError):
        return text[:500]
