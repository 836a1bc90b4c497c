"""A Ray cluster with the service on it, for as long as this process lives: `host.py CONFIG.json`.

It prints the service's address when it answers.
"""

import json
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import ray
from head import started_head
from ray import serve
from ray.serve.config import HTTPOptions

from ftray.config.serve import ServeConfig
from ftray.service.app import build


def main(path: str) -> None:
    given = json.loads(Path(path).read_text())
    with started_head(4, given["ray"]) as address:
        ray.init(address, log_to_driver=False)
        serve.start(http_options=HTTPOptions(host="127.0.0.1", port=given["port"]))
        serve.run(build(ServeConfig.model_validate(given["app"])), name="ftray", route_prefix="/")
        url = f"http://127.0.0.1:{given['port']}"
        while not is_ready(url):
            time.sleep(0.2)
        sys.stdout.write(f"{url}\n")
        sys.stdout.flush()
        sys.stdin.read()  # until whoever started it is gone
        serve.shutdown()
        ray.shutdown()


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    main(sys.argv[1])
