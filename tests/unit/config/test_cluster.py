from pathlib import Path

import pytest

from ftray.config.cluster import ClusterConfig, load_cluster
from ftray.errors import ConfigError

CLUSTER_FILES = Path(__file__).parents[3] / "cluster"


@pytest.mark.parametrize("name", ["local.yaml", "remote.yaml"])
def test_cluster_files_are_valid(name: str):
    assert isinstance(load_cluster(CLUSTER_FILES / name), ClusterConfig)


@pytest.mark.parametrize("address", ["local", "auto", "10.0.0.1:6379", "ray://head.example:10001"])
def test_addresses_are_those_that_ray_knows(address: str):
    assert ClusterConfig(address=address).address == address


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("address: locl", "expected local, auto, host:port"),
        ("{address: auto, num_cpus: 4}", "are for address local"),
        ("jobs: http://head:8265", "address is missing"),
        ("{address: auto, jobs: 'head:8265'}", "expected http://host:port"),
        ("object_store_memory: 1000", "greater than or equal to 78643200"),
        ("nodes: [{cpus: 8, memory_gib: 32, gpus: 1}]", "gpu_memory_gib is missing"),
        ("nodes: [{cpu: 8, memory_gib: 32}]", "did you mean 'cpus'"),
    ],
)
def test_what_is_no_cluster_is_refused(tmp_path: Path, text: str, message: str):
    path = tmp_path / "cluster.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_cluster(path)


def test_a_token_file_counts_from_the_folder_of_the_file_that_names_it(tmp_path: Path):
    path = tmp_path / "cluster.yaml"
    path.write_text("{address: auto, token_file: token}", encoding="utf-8")
    assert load_cluster(path).token_file == str(tmp_path / "token")
