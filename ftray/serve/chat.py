"""A conversation with a served model, over HTTP."""

import http.client
import json
import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from ftray.errors import ServeError

_SECONDS = 600


class Talk:
    """Remembers what was said; each answer comes as it is written."""

    def __init__(
        self,
        model: str,
        url: str,
        *,
        system: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
    ) -> None:
        self.model = model
        self._url = url
        self._messages = [{"role": "system", "content": system}] if system else []
        options = {"max_tokens": max_tokens, "temperature": temperature}
        self._options = {name: value for name, value in options.items() if value is not None}

    def say(self, text: str) -> Iterator[str]:
        """Yield the answer's parts; raises ServeError with what the server says is wrong."""
        asked = {"role": "user", "content": text}
        messages = [*self._messages, asked]
        body = {"model": self.model, "messages": messages, "stream": True, **self._options}
        answer = ""
        for chunk in self._chunks(body):
            for choice in chunk["choices"]:
                part = choice["delta"].get("content") or ""
                answer += part
                yield part
        self._messages = [*messages, {"role": "assistant", "content": answer}]

    def _chunks(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        connection = self._connection()
        key = os.environ.get("FTRAY_API_KEY") or os.environ.get("OPENAI_API_KEY")
        headers = {"content-type": "application/json"}
        if key:
            headers["authorization"] = f"Bearer {key}"
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            response = connection.getresponse()
            if response.status != 200:
                raise _refusal(response.status, response.read())
            for line in response:
                if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                    chunk: dict[str, Any] = json.loads(line.removeprefix(b"data: "))
                    if "error" in chunk:
                        raise ServeError(chunk["error"]["message"])
                    yield chunk
        except (OSError, http.client.HTTPException) as error:
            hint = "start it with: ftray serve; or say where it is: --url http://HOST:PORT"
            raise ServeError(f"no server answers at {self._url}: {error}", hint) from None
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        parts = urlsplit(self._url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ServeError(f"--url: expected http://HOST:PORT, found '{self._url}'")
        secure = parts.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        return kind(parts.hostname, parts.port, timeout=_SECONDS)


def _refusal(status: int, body: bytes) -> ServeError:
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = body[:200].decode(errors="replace")
    hint = "set FTRAY_API_KEY (ftray keys create NAME)" if status == 401 else ""
    return ServeError(f"{message} ({status})", hint)
