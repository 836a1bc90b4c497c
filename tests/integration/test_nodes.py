"""Workers on several nodes train what workers on one do."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.full


def test_two_nodes_give_the_result_of_one(tmp_path: Path, small_model: Path) -> None:
    pairs = [{"prompt": f"{n} and {n + 1}", "completion": str(2 * n + 1)} for n in range(48)]
    lines = [json.dumps(pair) + "\n" for pair in pairs]
    (tmp_path / "train.jsonl").write_text("".join(lines[:40]))
    (tmp_path / "eval.jsonl").write_text("".join(lines[40:]))
    (tmp_path / "run.yaml").write_text(f"""
name: nodes
model: {{name: {small_model}}}
adapter: {{method: lora, rank: 8, alpha: 16}}
data: {{train: train.jsonl, eval: eval.jsonl, format: prompt_completion, max_length: 128}}
train: {{learning_rate: 5.0e-3, max_steps: 4, global_batch_size: 4, micro_batch_size: 2}}
eval: {{every_steps: 2, samples: 0}}
checkpoint: {{every_steps: 2}}
storage: root
""")
    program = Path(__file__).with_name("two_nodes.py")
    subprocess.run([sys.executable, program, tmp_path], check=True, timeout=600)
    found = json.loads((tmp_path / "found.json").read_text())
    one, two = found["one"], found["two"]
    assert (one["nodes"], two["nodes"]) == (1, 2)
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert two["eval_losses"] == pytest.approx(one["eval_losses"], rel=1e-5)
    assert two["adapter"] == "two@1"
