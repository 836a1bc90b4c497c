"""Whatever ends a group of workers, the next one goes on, and the losses stay what they were."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import psutil
import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from ftray import commands, runs
from ftray.errors import TrainError
from ftray.runs import Run

pytestmark = pytest.mark.full

STEPS = 40  # a notice is seen within half a second, in which some steps may pass
EPOCH = 12


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("work")
    pairs = [{"prompt": f"{n} and {n + 1}", "completion": str(2 * n + 1)} for n in range(48)]
    (folder / "train.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (folder / "run.yaml").write_text(f"""
name: run
model: {{name: {small_model}}}
adapter: {{method: lora, rank: 8, alpha: 16}}
data: {{train: train.jsonl, format: prompt_completion, max_length: 128}}
train: {{max_steps: {STEPS}, global_batch_size: 4, micro_batch_size: 1}}
scaling: {{num_workers: 2}}
checkpoint: {{every_steps: 5, keep: 100}}
storage: root
""")
    return folder


def trained(workplace: Path, name: str, *changes: str) -> Run:
    return commands.train(str(workplace / "run.yaml"), [f"name={name}", *changes]).run


def losses(run: Run) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in runs.read_metrics(run) if "loss" in line]


@pytest.fixture(scope="module")
def undisturbed(workplace: Path, ray_cluster: None) -> Run:
    return trained(workplace, "undisturbed")


@pytest.mark.parametrize(
    ("title", "act", "note"),
    [
        ("RayTrainWorker", psutil.Process.terminate, "its machine is taken"),
        ("RayTrainWorker", psutil.Process.suspend, "gave no answer), loss 1 of at most 3"),
        ("TrainController", psutil.Process.kill, "loss 1 of at most 3"),
    ],
    ids=["preempted worker", "stopped worker", "killed controller"],
)
def test_the_next_group_goes_on_with_the_same_losses(
    title: str,
    act: Callable[[psutil.Process], None],
    note: str,
    workplace: Path,
    undisturbed: Run,
    request: pytest.FixtureRequest,
) -> None:
    run = Run(undisturbed.root, f"run-{request.node.callspec.id.replace(' ', '-')}")
    disturber = Thread(target=disturb, args=(run, title, act))
    disturber.start()
    trained(workplace, run.name, "scaling.step_timeout_seconds=8")
    disturber.join()
    assert losses(run) == losses(undisturbed)
    status = runs.read_status(run)
    assert status.attempts == 2
    assert note in (status.note or "")
    if act is psutil.Process.terminate:
        saved = [record.step for record in runs.checkpoints(run) if record.attempt == 1]
        assert f"ended after step {saved[0]}:" in (status.note or "")


def disturb(run: Run, title: str, act: Callable[[psutil.Process], None]) -> None:
    """Act on one process of the run as soon as it has finished 7 steps."""
    while not any(line["step"] >= 7 for line in runs.read_metrics(run)):
        time.sleep(0.05)
    below = psutil.Process().children(recursive=True)
    act([process for process in below if title in "".join(process.cmdline())][-1])


def test_a_batch_without_a_loss_is_left_out_or_the_run_rewound(
    workplace: Path, small_model: Path, tmp_path: Path, ray_cluster: None
) -> None:
    model = poisoned(small_model, tmp_path / "poisoned", "<reponame>")
    lines = (workplace / "train.jsonl").read_text().splitlines()
    lines[20] = json.dumps({"prompt": "<reponame>", "completion": "41"})
    (workplace / "poison.jsonl").write_text("\n".join(lines))
    data = f"data.train={workplace / 'poison.jsonl'}"
    changes = (f"model.name={model}", data, "data.packing=false", "scaling.num_workers=1")
    changes = (*changes, f"train.max_steps={EPOCH}")
    with pytest.raises(TrainError, match="the loss became nan at step"):
        trained(workplace, "stopped", *changes)
    skipped = trained(workplace, "skipped", *changes, "train.on_nan=skip")
    steps = [line["step"] for line in runs.read_metrics(skipped) if "loss" in line]
    assert len(steps) == EPOCH - 1
    # to go back by no step is the same as to skip one
    every = "checkpoint.every_steps=1"
    rewound = trained(workplace, "rewound", *changes, "train.on_nan=rewind", every)
    assert losses(rewound) == losses(skipped)


def poisoned(model: Path, folder: Path, token: str) -> Path:
    """A copy of a model for which a token is no number on its way in."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    weights = load_file(folder / "model.safetensors")
    words = weights["model.embed_tokens.weight"]
    weights["lm_head.weight"] = words.clone()
    words[AutoTokenizer.from_pretrained(model).convert_tokens_to_ids(token)] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_an_elastic_run_follows_the_nodes_with_the_losses_of_a_fixed_one(
    workplace: Path, undisturbed: Run, tmp_path: Path
) -> None:
    text = (workplace / "run.yaml").read_text()
    text = text.replace("{num_workers: 2}", "{num_workers: {min: 1, max: 2}, cpus_per_worker: 1.5}")
    text = text.replace("every_steps: 5", "every_steps: 2").replace(f"{STEPS},", "4000,")
    (tmp_path / "run.yaml").write_text(text.replace("max_steps", "schedule: constant, max_steps"))
    (tmp_path / "train.jsonl").write_text((workplace / "train.jsonl").read_text())
    program = Path(__file__).with_name("elastic_nodes.py")
    subprocess.run([sys.executable, program, tmp_path], check=True, timeout=900)
    found = json.loads((tmp_path / "found.json").read_text())
    fixed = trained(workplace, "fixed", "train.schedule=constant")
    expected = [loss for _, loss in losses(fixed)]
    assert found["losses"][:EPOCH] == pytest.approx(expected[:EPOCH], rel=1e-5)
    assert found["steps"] == list(range(1, len(found["steps"]) + 1))
    assert {1, 2} == set(found["sizes"])
