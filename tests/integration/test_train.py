"""`ftray train` on a real small model, through real Ray Train workers."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest

from ftray import commands, registry, runs
from ftray.errors import ConfigError
from ftray.runs import Run
from ftray.train.tuned import load_tuned

pytestmark = pytest.mark.usefixtures("ray_cluster")

SUMS = [("apples", "pears"), ("coins", "stamps"), ("books", "pens"), ("nails", "screws")]


def gsm8k_like(count: int, seed: int) -> str:
    """Sums in words, with GSM8K's columns: as many labels in a row as its numbers need."""
    draw = random.Random(seed)
    lines = []
    for _ in range(count):
        a, b, (one, other) = draw.randint(1, 60), draw.randint(1, 60), draw.choice(SUMS)
        question = f"Ann has {a} {one} and {b} {other}. How many things does she have?"
        steps = f"{a} + {b} = {a + b}\n" if draw.random() < 0.5 else ""
        lines.append({"question": question, "answer": f"{steps}#### {a + b}"})
    return "".join(json.dumps(line) + "\n" for line in lines)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Path:
    """A folder with data and a run file, as a user would have it."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "train.jsonl").write_text(gsm8k_like(96, seed=1))
    (folder / "eval.jsonl").write_text(gsm8k_like(16, seed=2))
    (folder / "run.yaml").write_text(f"""
name: sums
model: {{name: {small_model}}}
adapter: {{method: lora, rank: 8, alpha: 16}}
data:
  train: train.jsonl
  eval: eval.jsonl
  format: prompt_completion
  columns: {{prompt: question, completion: answer}}
  max_length: 192
train: {{learning_rate: 5.0e-3, max_steps: 12, global_batch_size: 8, micro_batch_size: 4}}
eval: {{every_steps: 6, samples: 1, sample_tokens: 8}}
scaling: {{num_workers: 2}}
checkpoint: {{every_steps: 5, keep: 2}}
storage: root
""")
    return folder


def trained(workplace: Path, name: str, *changes: str) -> Run:
    return commands.train(str(workplace / "run.yaml"), [f"name={name}", *changes]).run


def losses(run: Run) -> list[float]:
    return [line["loss"] for line in runs.read_metrics(run) if "loss" in line]


def eval_losses(run: Run) -> list[float]:
    return [line["eval_loss"] for line in runs.read_metrics(run) if "eval_loss" in line]


@pytest.fixture(scope="module")
def lora_run(workplace: Path) -> Run:
    """LoRA on 2 workers with micro-batches of 4: what the other runs are compared with."""
    return trained(workplace, "lora-2x4")


def test_the_eval_loss_falls_and_the_best_checkpoint_is_kept(lora_run: Run) -> None:
    found = eval_losses(lora_run)
    assert found[-1] < found[0] < losses(lora_run)[0]
    kept = runs.checkpoints(lora_run)
    assert [record.step for record in kept] == [12, 10]
    assert kept[0].best


def test_every_step_has_its_numbers(lora_run: Run) -> None:
    lines = [line for line in runs.read_metrics(lora_run) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 13))
    wanted = "epoch grad_norm learning_rate tokens label_tokens samples tokens_per_second mfu"
    assert set(wanted.split()) < set(lines[0])
    assert lines[0]["mfu"] is None


def test_the_status_says_what_was_published(lora_run: Run) -> None:
    status = runs.read_status(lora_run)
    assert (status.state, status.step, status.total_steps) == ("succeeded", 12, 12)
    assert status.adapter == "lora-2x4@1"
    assert Path(lora_run.folder, "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("one-worker", ["scaling.num_workers=1", "train.micro_batch_size=8"]),
        ("four-workers", ["scaling.num_workers=4", "train.micro_batch_size=2"]),
    ],
)
def test_the_loss_curve_does_not_depend_on_workers_and_micro_batches(
    name: str, changes: list[str], workplace: Path, lora_run: Run
) -> None:
    other = trained(workplace, name, *changes)
    assert losses(other) == pytest.approx(losses(lora_run), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("qlora-fsdp", ["adapter.method=qlora", "scaling.strategy=fsdp"]),
        ("full-fsdp", ["adapter={method: full}", "train.learning_rate=1e-3"]),
    ],
)
def test_each_method_learns_and_publishes(name: str, changes: list[str], workplace: Path) -> None:
    run = trained(workplace, name, *changes, "train.max_steps=6", "checkpoint.every_steps=6")
    assert eval_losses(run)[-1] < losses(run)[0]
    assert registry.resolve(run.root, name).ref == f"{name}@1"


@pytest.mark.full
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_each_method_learns_under_each_strategy_on_one_worker_and_two(
    method: str, strategy: str, workers: int, workplace: Path
) -> None:
    name = f"{method}-{strategy}-{workers}"
    rate = "1e-3" if method == "full" else "5e-3"
    run = trained(
        workplace,
        name,
        "adapter={method: full}" if method == "full" else f"adapter.method={method}",
        f"train.learning_rate={rate}",
        f"scaling={{num_workers: {workers}, strategy: {strategy}}}",
    )
    assert eval_losses(run)[-1] < eval_losses(run)[0]
    assert registry.resolve(run.root, name).ref == f"{name}@1"


def test_a_finished_run_is_not_begun_again_by_mistake(workplace: Path, lora_run: Run) -> None:
    with pytest.raises(ConfigError, match="has already succeeded"):
        trained(workplace, "lora-2x4")


def test_plain_peft_generates_the_same_tokens_in_another_process(
    workplace: Path, lora_run: Run, small_model: Path
) -> None:
    record = registry.resolve(lora_run.root, "lora-2x4")
    folder = registry.adapter_folder(lora_run.root, record)
    model, tokenizer = load_tuned(record, lora_run.root)
    lines = (workplace / "eval.jsonl").read_text().splitlines()
    questions = [json.loads(line)["question"] for line in lines]
    chats = [[{"role": "user", "content": question}] for question in questions]
    prompts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
    stops = [tokenizer.eos_token_id]
    ids = model.generate([prompt["input_ids"] for prompt in prompts], 64, stops)
    ours = [tokenizer.decode(found, skip_special_tokens=True) for found in ids]
    theirs = json.loads(
        subprocess.run(
            [
                sys.executable,
                "-c",
                PLAIN_PEFT,
                str(small_model),
                folder,
                str(workplace / "eval.jsonl"),
            ],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    )
    assert ours == theirs


PLAIN_PEFT = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, adapter, data = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(adapter)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
answers = []
for line in open(data):
    chat = [{"role": "user", "content": json.loads(line)["question"]}]
    ids = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**ids, max_new_tokens=64, do_sample=False)
    answers.append(tokenizer.decode(out[0, ids["input_ids"].shape[1]:], skip_special_tokens=True))
print(json.dumps(answers))
"""


def test_a_killed_worker_costs_time_and_changes_no_number(workplace: Path, lora_run: Run) -> None:
    killed = Run(lora_run.root, "killed")
    reaper = Thread(target=kill_a_worker_at, args=(killed, 7))
    reaper.start()
    trained(workplace, "killed")
    reaper.join()
    assert runs.read_status(killed).attempts == 2
    assert metrics_without_times(killed) == metrics_without_times(lora_run)


def kill_a_worker_at(run: Run, step: int) -> None:
    """Kill one training process as soon as the run has finished a step."""
    while not any(line["step"] >= step for line in runs.read_metrics(run)):
        time.sleep(0.05)
    below = psutil.Process().children(recursive=True)
    workers = [process for process in below if "RayTrainWorker" in "".join(process.cmdline())]
    workers[-1].kill()


def metrics_without_times(run: Run) -> list[dict[str, Any]]:
    timed = ("time", "step_seconds", "tokens_per_second", "data_wait_seconds")
    lines = runs.read_metrics(run)
    return [{key: value for key, value in line.items() if key not in timed} for line in lines]
