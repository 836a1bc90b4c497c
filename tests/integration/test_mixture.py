"""A streamed mixture through `ftray train`: shares as asked for, eval set aside, shards gone."""

import gzip
import json
from pathlib import Path

import pytest

from ftray import commands, runs
from ftray.errors import DataError

pytestmark = pytest.mark.usefixtures("ray_cluster")

STEPS = 8


def test_limits_stop_bad_data_before_any_worker_starts(tmp_path: Path, small_model: Path) -> None:
    row = json.dumps({"prompt": "Again?", "completion": "Again."}) + "\n"
    (tmp_path / "train.jsonl").write_text(row * 10)
    (tmp_path / "run.yaml").write_text(f"""
name: limited
model: {{name: {small_model}}}
data: {{train: train.jsonl, eval: train.jsonl, limits: {{duplicates: 0.5, overlap: 0}}}}
train: {{epochs: 1, global_batch_size: 2}}
storage: root
""")
    with pytest.raises(DataError) as failed:
        commands.train(str(tmp_path / "run.yaml"))
    assert "data.limits.duplicates: 90.00% found, at most 50.00% allowed" in failed.value.message
    assert "data.limits.overlap: 100.00% found, at most 0.00% allowed" in failed.value.message
    assert commands.list_runs(storage=str(tmp_path / "root"))[0].status.state == "failed"


def test_a_streamed_mixture_trains_as_its_weights_say(tmp_path: Path, small_model: Path) -> None:
    sums = [{"question": f"{n} + {n}?", "answer": f"It is {2 * n}."} for n in range(120)]
    chats = [
        {
            "conversations": [
                {"from": "human", "value": f"Say {n}"},
                {"from": "gpt", "value": f"{n}"},
            ]
        }
        for n in range(80)
    ]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums))
    lines = "".join(json.dumps(row) + "\n" for row in chats)
    (tmp_path / "chats.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "run.yaml").write_text(f"""
name: mixed
model: {{name: {small_model}}}
adapter: {{method: lora, rank: 8, alpha: 16}}
data:
  train: [{{path: sums.jsonl, weight: 3}}, {{path: chats.jsonl.gz, weight: 1}}]
  eval_fraction: 0.1
  max_length: 64
  packing: false
  keep_shards: false
train: {{learning_rate: 5.0e-3, max_steps: {STEPS}, global_batch_size: 16}}
eval: {{every_steps: 4, samples: 1, sample_tokens: 4}}
scaling: {{cpus_per_worker: 1}}
checkpoint: {{every_steps: 3}}
storage: root
""")
    found = commands.train(str(tmp_path / "run.yaml"))
    assert found.steps == STEPS
    assert found.eval_loss is not None
    lines_ = runs.read_metrics(found.run)
    evals = [line["eval_loss"] for line in lines_ if "eval_loss" in line]
    assert evals[-1] < evals[0]

    steps = [line for line in lines_ if "loss" in line]
    assert {line["samples"] for line in steps} == {16}
    assert [use.name.rpartition("/")[2] for use in found.sources] == [
        "sums.jsonl",
        "chats.jsonl.gz",
    ]
    seen = [use.tokens_seen for use in found.sources]
    assert sum(seen) == found.tokens == sum(line["tokens"] for line in steps)
    assert 0.6 < seen[0] / sum(seen) < 0.9
    assert commands.show_run("mixed", storage=str(tmp_path / "root")).sources == found.sources
    assert not list((Path(found.run.folder) / "tokens").rglob("*.arrow"))
