"""Tokens made on several nodes: all take part, and a lost one costs its unfinished shards alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.full


def test_a_lost_node_costs_its_unfinished_shards_alone(tmp_path: Path, small_model: Path) -> None:
    rows = [
        {"prompt": f"Count from {n}: " + "one two three " * 20, "completion": f"{n} " * 40}
        for n in range(4000)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    program = Path(__file__).with_name("three_nodes.py")
    subprocess.run([sys.executable, program, tmp_path, small_model], check=True, timeout=300)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["nodes that made tokens"] == 3
    assert found["shards"] > 50
    assert found["shards before the loss"] > 10
    assert found["made again"] == []
    assert found["equal"]
