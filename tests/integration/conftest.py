"""One Ray cluster and one small real model for all integration tests of a run."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    RAY_AUTH_MODE="disabled",
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
)

import pytest
import ray
import torch
from safetensors.torch import load_file, save_file

from ftray.config.run import BUILTIN_MODEL, ModelConfig
from ftray.model.folder import fetch


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray of 4 CPUs, of which two workers and their reads can run at once."""
    ray.init(
        "local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=300_000_000,
        log_to_driver=False,
        logging_level="warning",
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 2 layers of the built-in model, with its tokenizer and template; read only."""
    whole = fetch(ModelConfig(name=BUILTIN_MODEL), str(_shared_root(tmp_path_factory)))
    folder = tmp_path_factory.mktemp("small-model")
    for file in whole.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((whole / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    tensors: dict[str, torch.Tensor] = {}
    for file in whole.glob("*.safetensors"):
        tensors |= load_file(file)
    kept = {name: values for name, values in tensors.items() if _in_first_layers(name)}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _in_first_layers(name: str) -> bool:
    parts = name.split(".")
    return "layers" not in parts or int(parts[parts.index("layers") + 1]) < 2


def _shared_root(factory: pytest.TempPathFactory) -> Path:
    """Where the unpacked model is kept: from earlier test runs if the developer named a place."""
    named = os.environ.get("FTRAY_TEST_CACHE")
    return Path(named) if named else factory.mktemp("root")
