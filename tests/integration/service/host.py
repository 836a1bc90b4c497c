"""A Ray cluster with the service on it, for as long as this process lives: `host.py CONFIG.json`.

It prints the service's address when it answers.
"""

import json
import random
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import ray
from ray import serve
from ray.serve.config import HTTPOptions

from ftray.config.serve import ServeConfig
from ftray.service.app import build


def main(path: str) -> None:
    given = json.loads(Path(path).read_text())
    ray.init(
        "local",
        num_cpus=4,
        include_dashboard=True,
        dashboard_port=given["dashboard"],
        object_store_memory=200_000_000,
        log_to_driver=False,
        _node_ip_address=own_address(),
    )
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=given["port"]))
    serve.run(build(ServeConfig.model_validate(given["app"])), name="ftray", route_prefix="/")
    url = f"http://127.0.0.1:{given['port']}"
    while not is_ready(url):
        time.sleep(0.2)
    sys.stdout.write(f"{url}\n")
    sys.stdout.flush()
    sys.stdin.read()  # until whoever started it is gone
    serve.shutdown()


def own_address() -> str:
    """A loopback address of its own: of two Rays on one, the second one's jobs never start."""
    first, second, third = (random.randint(1, 254) for _ in range(3))
    return f"127.{first}.{second}.{third}"


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    main(sys.argv[1])
