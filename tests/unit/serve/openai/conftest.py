"""A real server on a free port, over an engine that answers with what the user has said."""

import http.client
import json
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import openai
import pytest
from loopback import run
from transformers import AutoTokenizer

from ftray import registry
from ftray.registry import AdapterRecord, BaseModel
from ftray.serve.openai.app import create_api
from ftray.serve.openai.local import LocalEngines
from ftray.serve.openai.models import Base, RegistryModels
from ftray.serve.openai.service import Service, Settings

BASE = "org/tiny-base"
TOOLS_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    'Call as <tool_call>{"name": …, "arguments": …}</tool_call><|im_end|>\n{% endif %}'
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass
class Server:
    """A server that runs in a thread, with what it runs on."""

    url: str
    service: Service
    engine: Any
    root: str
    client: openai.OpenAI = field(init=False)

    def __post_init__(self) -> None:
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="any", max_retries=0)

    @property
    def metrics(self) -> str:
        return self.service.metrics.text(None).decode()


@pytest.fixture(scope="session")
def tools_template() -> str:
    return TOOLS_TEMPLATE


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> str:
    """A storage root: `tickets` in three versions, `caller` with a template for tools."""
    made = str(tmp_path_factory.mktemp("root"))
    for weights in (b"one", b"two", b"three"):
        publish(made, "tickets", weights, tmp_path_factory.mktemp("adapter"))
    registry.promote(made, "tickets@2", "champion")
    folder = tmp_path_factory.mktemp("adapter")
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.chat_template = TOOLS_TEMPLATE
    tokenizer.save_pretrained(folder)
    publish(made, "caller", b"calls", folder, tokenizer_digest="t" * 64)
    return made


def publish(
    root: str, name: str, weights: bytes, folder: Path, *, tokenizer_digest: str = "b" * 64
) -> AdapterRecord:
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return registry.publish(root, folder, draft(name, tokenizer_digest=tokenizer_digest))


def draft(name: str, *, kind: Any = "adapter", fingerprint: str = "f" * 64, **digests: str) -> Any:
    return AdapterRecord(
        name=name,
        kind=kind,
        base=BaseModel(name=BASE, revision=None, fingerprint=fingerprint),
        method="lora",
        rank=8,
        template_digest="",
        **digests,
    )


@pytest.fixture
def published(server: "Server", tmp_path: Path) -> Callable[..., AdapterRecord]:
    """Publish one more adapter while the server runs."""

    def make(
        name: str,
        *,
        kind: str = "adapter",
        method: str = "lora",
        fingerprint: str = "f" * 64,
        files: dict[str, bytes] | None = None,
    ) -> AdapterRecord:
        folder = tmp_path / uuid.uuid4().hex
        folder.mkdir()
        plain = {"adapter_config.json": b"{}", "adapter_model.safetensors": folder.name.encode()}
        for file, data in (files or plain).items():
            (folder / file).write_bytes(data)
        made = draft(name, kind=kind, fingerprint=fingerprint, tokenizer_digest="b" * 64)
        return registry.publish(server.root, folder, replace(made, method=method))

    return make


@pytest.fixture(scope="session")
def serve(tiny_folder: Path, echo_engine: Callable[..., Any]) -> Iterator[Callable[..., Server]]:
    """Start servers that run until the session's end."""
    stops: list[Callable[[], None]] = []

    def start(
        root: str,
        *,
        engine: Any = None,
        step_seconds: float = 0.0,
        room: int = 64,
        access: Any = None,
        settings: Settings | None = None,
    ) -> Server:
        engine = engine or echo_engine(step_seconds=step_seconds, room=room)
        base = Base(BASE, "f" * 64, tiny_folder, "b" * 64)
        models = RegistryModels(root, base)
        service = Service(LocalEngines(engine), models, settings=settings or Settings())
        if access is not None:
            service.access = access
        assert isinstance(service.engines, LocalEngines)
        url, stop = run(create_api(service), service.engines)
        stops.extend([stop, models.close])
        return Server(url, service, engine, root)

    yield start
    for stop in stops:
        stop()


@pytest.fixture(scope="session")
def server(serve: Callable[..., Server], root: str) -> Iterator[Server]:
    """A server without keys, shared by tests that don't change it."""
    found = serve(root)
    yield found
    found.client.close()


@dataclass
class Reply:
    """What came over the wire."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error, which is all that the body holds."""
        [(key, error)] = self.json.items()
        assert (key, set(error)) == ("error", {"message", "type", "param", "code"})
        assert isinstance(error["message"], str)
        return error


@pytest.fixture(scope="session")
def send() -> Callable[..., Reply]:
    """Send bytes as they are, or an object as JSON."""

    def request(server: Server, method: str, path: str, body: Any = b"", **headers: str) -> Reply:
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
        try:
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return Reply(answer.status, names, answer.read())
        finally:
            connection.close()

    return request


@pytest.fixture(scope="session")
def wait_for() -> Callable[[Callable[[], bool]], bool]:
    """Wait until a condition holds, for 5 seconds at most; return whether it does."""

    def wait(condition: Callable[[], bool]) -> bool:
        end = time.monotonic() + 5
        while not condition() and time.monotonic() < end:
            time.sleep(0.01)
        return condition()

    return wait


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return server.client
