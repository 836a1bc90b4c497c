"""A real server with the fine-tuning API, controllers, and jobs that are small real processes."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import openai
from echo import ECHO_BASE, EchoEngine
from loopback import run
from processes import work

from ftray.accounts.access import KeyAccess
from ftray.accounts.database import Database, open_database
from ftray.accounts.grant import ROLES, Grant
from ftray.accounts.keys import create_key
from ftray.config.run import ModelConfig
from ftray.config.serve import FilesConfig, JobsConfig
from ftray.errors import FtrayError
from ftray.serve.openai.local import LocalEngines
from ftray.serve.openai.models import Base, RegistryModels
from ftray.serve.openai.service import Service
from ftray.service.api import Tuning, create_service_api
from ftray.service.controller import Controller, Ground
from ftray.service.files import Files
from ftray.service.jobs import Jobs
from ftray.service.launcher import Launcher

ROWS = [
    {"messages": [{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": "ok"}]}
    for i in range(12)
]
KNOWN = 0.3  # seconds until a server surely knows of a version; 1.2 where it looks once a second
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


@dataclass
class Place:
    """A server over a database and a storage root, with its launcher."""

    url: str
    root: str
    database: Database
    launcher: Launcher
    files: Files
    config: JobsConfig
    clients: list[openai.OpenAI] = field(default_factory=list)

    def client(self, project: str = "default", role: str = "member") -> openai.OpenAI:
        """OpenAI's own client, with a new key of a project."""
        grant = Grant(name=f"{project} {role}", project=project, scopes=ROLES[role])
        _, secret = create_key(self.database, grant)
        return self.sending(secret)

    def sending(self, secret: str) -> openai.OpenAI:
        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=secret, max_retries=0)
        self.clients.append(client)
        return client

    def ground(self) -> Ground:
        return Ground(self.database, self.files, self.launcher, self.config, work, KNOWN)

    @contextlib.contextmanager
    def controlled(self, name: str = "one") -> Iterator[Controller]:
        """A controller at work for the block's time."""
        controller, over = Controller(self.ground(), name), threading.Event()

        def run() -> None:
            while not over.wait(0.05):
                with contextlib.suppress(FtrayError):  # as its deployment does
                    controller.round()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield controller
        finally:
            over.set()
            thread.join()
            controller.close()

    @property
    def began(self) -> list[list[str]]:
        """Submission, project and time of each process that ever began."""
        return self.read("began.txt")

    def read(self, name: str) -> list[list[str]]:
        """The lines that processes have left behind."""
        path = Path(self.root) / name
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


@contextlib.contextmanager
def serving(url: str, folder: Path, tiny: Path, launcher: Launcher) -> Iterator[Place]:
    database = open_database(url)
    root = str(folder / "root")
    Path(root).mkdir()
    access = KeyAccess(database, every=0.2)
    models = RegistryModels(root, Base(ECHO_BASE, "f" * 64, tiny, "b" * 64), KNOWN / 1.2)
    service = Service(LocalEngines(EchoEngine(tiny)), models, access=access)
    files = Files(database, root, FilesConfig(max_bytes=200_000, max_rows=1000))
    config = JobsConfig(retry_seconds=0.05, max_failures=2)
    tuning = Tuning(
        files, Jobs(database, root, ModelConfig(name=ECHO_BASE), config, 0.0), lambda: None
    )
    access.start()
    assert isinstance(service.engines, LocalEngines)
    address, stop = run(create_service_api(service, tuning), service.engines)
    found = Place(address, root, database, launcher, files, config)
    try:
        yield found
    finally:  # else its thread would keep a process alive that has failed
        for client in found.clients:
            client.close()
        stop()
        models.close()
        access.close()
        database.close()


def upload(client: openai.OpenAI, data: bytes = LINES) -> Any:
    return client.files.create(file=("train.jsonl", BytesIO(data)), purpose="fine-tune")


def submit(client: openai.OpenAI, seed: int = 0, **more: Any) -> Any:
    file = more.pop("training_file", None) or upload(client).id
    return client.fine_tuning.jobs.create(model=ECHO_BASE, training_file=file, seed=seed, **more)


def wait_for(condition: Callable[[], Any], seconds: float = 120.0) -> Any:
    """Return what a condition gives as soon as that is true; it is late on a busy machine."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


def ended(client: openai.OpenAI, id: str, *statuses: str) -> Any:
    wanted = statuses or ("succeeded", "failed", "cancelled")

    def look() -> Any:
        job = client.fine_tuning.jobs.retrieve(id)
        return job if job.status in wanted else None

    return wait_for(look)
