"""The Ray head that `ftray up` starts: on loopback, with a token of its own."""

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from ftray import credentials, jobs
from ftray.config.cluster import ClusterConfig
from ftray.config.serve import ServeConfig
from ftray.connection import object_store_bytes, own_address
from ftray.deployment import standing as record
from ftray.deployment.processes import MARK
from ftray.deployment.standing import Process, Standing
from ftray.errors import ClusterError
from ftray.ports import some_port

HOST = "127.0.0.1"
_START_SECONDS = 60.0


def start_head(standing: Standing, sizes: ClusterConfig) -> Process:
    """Start Ray so that it outlives this command; its log is beside the record."""
    folder = record.folder()
    token = Path(standing.token_file)
    token.unlink(missing_ok=True)
    credentials.make_token(token)
    credentials.use_token(str(token))
    ray = Path(sys.executable).with_name("ray")
    with (folder / "ray.log").open("wb") as log:
        process = subprocess.Popen(
            [str(ray), "start", "--head", "--block", *_arguments(standing, sizes)],
            env=_environment(standing, ray.parent),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # neither Ctrl-C nor the end of this terminal reaches it
        )
    return Process(pid=process.pid, created=psutil.Process(process.pid).create_time())


def wait_for_head(standing: Standing) -> None:
    """Return when jobs can be submitted."""
    end = time.monotonic() + _START_SECONDS
    while True:
        try:
            jobs.list_jobs(standing.jobs)
        except ClusterError as error:
            log = record.folder() / "ray.log"
            if standing.head is None or not standing.head.is_alive:
                raise ClusterError(
                    f"Ray ended at its start: {_last_line(log)}", f"see {log}"
                ) from None
            if time.monotonic() > end:
                raise ClusterError(f"Ray did not start: {error.message}", f"see {log}") from None
            time.sleep(0.3)
        else:
            return


def cpus_of(sizes: ClusterConfig, app: ServeConfig) -> int:
    """Return how many CPUs Ray counts: the machine's, and those that serving is given besides.

    Serving is mostly idle where training is not: without them a machine of two cores could do only
    one of both. The cores themselves are shared by the system.
    """
    serving = (
        math.ceil(app.engine.num_cpus * app.replicas.max) + 1
    )  # one for the HTTP side and jobs
    return sizes.num_cpus or (os.cpu_count() or 1) + serving


def addresses() -> tuple[str, str]:
    """Return Ray's and its dashboard's: on loopback, at the usual ports where they are free."""
    host = own_address() or HOST
    return f"{host}:{some_port(host, 6379)}", f"{HOST}:{some_port(HOST, 8265)}"


def _arguments(standing: Standing, sizes: ClusterConfig) -> list[str]:
    gpus = [] if sizes.num_gpus is None else [f"--num-gpus={sizes.num_gpus}"]
    return [
        f"--node-ip-address={standing.address.partition(':')[0]}",
        f"--port={standing.address.rpartition(':')[2]}",
        f"--dashboard-host={HOST}",
        f"--dashboard-port={standing.jobs.rpartition(':')[2]}",
        f"--ray-client-server-port={some_port(HOST, 10001)}",
        # every Ray of a machine wants the same one on 127.0.0.1 too; without it no job starts
        f"--dashboard-agent-listen-port={some_port(HOST, 0)}",
        f"--temp-dir={standing.session}",
        f"--num-cpus={standing.cpus}",
        f"--object-store-memory={sizes.object_store_memory or object_store_bytes()}",
        *gpus,
    ]


def _environment(standing: Standing, programs: Path) -> dict[str, str]:
    """What this command has, less what would lead its processes elsewhere."""
    elsewhere = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN")
    kept = {name: text for name, text in os.environ.items() if name not in elsewhere}
    return {
        **kept,
        MARK: standing.mark,
        "PATH": f"{programs}{os.pathsep}{kept.get('PATH', '')}",  # jobs say `python`
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": standing.token_file,
    }


def _last_line(log: Path) -> str:
    lines = log.read_text("utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
