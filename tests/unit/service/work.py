"""What a job's process leaves behind when it trains, without training: it runs as a process.

The seed says what happens: 0 ends well, and 1 after a second; 100 waits for ever to be stopped;
2 to 8 fail with that code; 200 finds the cluster in use by others at its first four starts; above
1000 each start but the last fails with 4 or dies: seed - 1000 starts are needed.
"""

import json
import os
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from ftray import registry, runs
from ftray.errors import (
    ClusterError,
    DataError,
    FtrayError,
    OccupiedError,
    StorageError,
    TrainError,
)
from ftray.registry import AdapterRecord, BaseModel
from ftray.service.order import Answer, read_order, write_end
from ftray.train.status import status_kept

ERRORS = {2: FtrayError, 3: DataError, 4: ClusterError, 5: TrainError, 8: StorageError}


def main(root: str, job: str, submission: str) -> int:
    signal.signal(signal.SIGTERM, stop)
    config = read_order(root, job).run
    log(root, "began.txt", submission, config)
    answer = Answer(0, "")
    try:
        run = runs.open_run(root, config)
        with status_kept(run):
            work(run, config)
    except FtrayError as error:
        answer = Answer(error.exit_code, error.message, isinstance(error, OccupiedError))
    except KeyboardInterrupt:
        answer = Answer(130, "")
    log(root, "ended.txt", submission, config)
    write_end(root, job, submission, answer)
    return answer.exit_code


def stop(number, _):
    """Begin to end; who asks again is asking for the same."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def log(root, name, submission, config):
    with open(Path(root) / name, "a") as file:
        file.write(f"{submission} {config.publish.project} {time.time()}\n")


def work(run, config):
    seed, starts = config.train.seed, runs.read_status(run).attempts
    fail_at_first(seed, starts)
    if seed == 3:
        raise DataError(f"{config.data.train} line 2: no 'messages' (found: nonsense)", "mend it")
    if seed in ERRORS:
        raise ERRORS[seed](f"{run.root}/secret is in the way")
    if seed == 1:
        time.sleep(1)
    before = max((line["step"] for line in runs.read_metrics(run)), default=0)
    for step in range(before + 1, 4):
        line = {"step": step, "loss": 1.0 / step, "tokens": 10, "learning_rate": 1e-4}
        with open(Path(run.folder) / "metrics.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
            file.write(json.dumps({"step": step, "eval_loss": 2.0 / step}) + "\n")
        while seed == 100 and starts == 1:
            time.sleep(0.1)
    publish(run, config, 2, 2)
    ref = publish(run, config, 3, None)
    runs.change_status(run, lambda status: replace(status, adapter=ref))


def fail_at_first(seed, starts):
    if seed > 1000 and starts < seed - 1000:
        if starts == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        raise ClusterError("the cluster is away")
    if seed == 200 and starts <= 4:
        raise OccupiedError("need 2 CPUs; the cluster has 0 free of 4, 4 used by another")


def publish(run, config, step, checkpoint):
    record = AdapterRecord(
        name=run.name,
        kind="adapter",
        base=BaseModel(name=config.model.name, revision=None, fingerprint="f" * 64),
        method="lora",
        rank=8,
        tokenizer_digest="b" * 64,
        template_digest="",
        metrics={"step": float(step), "loss": 1.0 / step},
        project=config.publish.project,
        model=config.publish.model,
        checkpoint=checkpoint,
    )
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "adapter_config.json").write_text("{}")
        (Path(folder) / "adapter_model.safetensors").write_bytes(f"{run.name}{step}".encode())
        return registry.publish(run.root, Path(folder), record).ref


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
