"""Train a small model under a seeded schedule of faults, and compare with an undisturbed run.

`make soak`, or `python tests/integration/faults/soak.py --faults 50 --seed 0`. Exit code 1 if one
number differs, if a step is lost or done twice, or if a run did not recover by itself (or, where
the command itself was stopped, by the same command).
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from compare import Cost, Found, difference
from driver import Driver
from inject import Scene, inject
from nodes import WORKER, Nodes
from rich.console import Console
from schedule import KINDS, Fault, Ordeal, schedule, steps_for

from ftray import runs
from ftray.config.run import BUILTIN_MODEL, ModelConfig
from ftray.errors import FtrayError
from ftray.model.folder import fetch
from ftray.runs import Run

EVERY_STEPS = 3
PATIENCE_SECONDS = 300.0


def main() -> int:
    asked = _arguments()
    with tempfile.TemporaryDirectory(prefix="ftray-soak-") as made:
        folder = asked.folder or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        _write_files(folder, asked.model or small_model(folder), steps_for(asked.faults))
        found = _soaked(folder, schedule(asked.seed, asked.faults, asked.kinds))
    if asked.json:
        asked.json.write_text(json.dumps(asdict(found), indent=1) + "\n")
    console = Console(width=100, highlight=False)
    console.print(found.table())
    console.print("green" if found.is_green else f"RED: seed {asked.seed}")
    return 0 if found.is_green else 1


def _soaked(folder: Path, ordeals: list[Ordeal]) -> Found:
    found = Found()
    for on_nodes in (False, True):
        if some := [one.faults for one in ordeals if one.on_nodes == on_nodes]:
            with _cluster(folder, on_nodes=on_nodes) as nodes:
                _endure(folder, some, nodes, found)
    return found


def _endure(folder: Path, ordeals: list[list[Fault]], nodes: Nodes | None, found: Found) -> None:
    """Let runs bear faults; compare them with one on the same cluster: as many threads a worker."""
    where = "nodes" if nodes else "one"
    undisturbed = Run(str(folder / "root"), f"undisturbed-{where}")
    Sufferer(folder, undisturbed, nodes).bear([])
    for number, faults in enumerate(ordeals):
        run = Run(undisturbed.root, f"disturbed-{where}-{number}")
        found.costs.extend(Sufferer(folder, run, nodes).bear(faults))
        found.differences.append(difference(run, undisturbed))
        _say(f"{run.name}: {found.differences[-1]}")


class Sufferer:
    """One run that has to bear faults one after the other."""

    def __init__(self, folder: Path, run: Run, nodes: Nodes | None = None) -> None:
        self._folder = folder
        self._run = run
        self._nodes = nodes
        self._driver = self._started()

    def bear(self, faults: list[Fault]) -> list[Cost]:
        """Inject each fault at its step; returns their costs once the run has finished."""
        try:
            costs = [self._after(fault) for fault in faults]
            _finish(self._driver, self._run)
        finally:
            self._driver.look()
            if self._driver.code is None:
                self._driver.send(signal.SIGKILL)
            _bury(self._driver, self._run)
        return costs

    def _after(self, fault: Fault) -> Cost:
        cost = self._cost_of(fault)
        _say(f"{self._run.name}: {cost}")
        if cost.wrong and self._driver.code is not None:
            _say(self._driver.last_words())
            self._restart()  # the faults to come are worth knowing too
        return cost

    def _cost_of(self, fault: Fault) -> Cost:
        cost = Cost(fault.kind, fault.step)
        self._driver.look()
        if not self._wait(lambda: self._step() >= fault.step):
            return replace(cost, wrong=f"ended before, with exit code {self._driver.code}")
        attempt = runs.read_status(self._run).attempts
        at = time.time()
        try:
            is_over = inject(fault, Scene(self._driver, self._run, EVERY_STEPS, self._nodes))
        except (LookupError, OSError, FtrayError) as error:
            return replace(cost, wrong=f"could not be injected: {error!r}")
        if is_over:
            if self._driver.code in (None, 0):
                return replace(cost, wrong=f"the command went on: {self._driver.code}")
            self._restart()
        if not self._wait(lambda: bool(self._news(attempt))):
            return replace(cost, wrong=f"did not recover, exit code {self._driver.code}")
        *again, new = self._news(attempt)
        first = again[0] if again else new
        return replace(cost, seconds=first - at, new=new - at, recomputed=len(again))

    def _news(self, attempt: int) -> list[float]:
        """When each step came that was done again, and then the first that never was before.

        Nothing before that one. A line tells when its step was done, and an attempt's claim when
        it began: what is newer than the claim was done by the new attempt.
        """
        claim = Path(self._run.folder, "attempts", f"{attempt + 1}.json")
        if not claim.exists():
            self._reached = max(self._reached, self._step())
            return []
        began = json.loads(claim.read_text())["heartbeat"]
        lines = runs.read_metrics(self._run)
        self._reached = max([self._reached, *(n["step"] for n in lines if n["time"] <= began)])
        done = [line for line in lines if line["time"] > began]
        again = [line["time"] for line in done if line["step"] <= self._reached]
        new = [line["time"] for line in done if line["step"] > self._reached]
        return [*again, new[0]] if new else []

    _reached = 0  # the furthest step that was done before the fault

    def _step(self) -> int:
        return max((line["step"] for line in runs.read_metrics(self._run)), default=0)

    def _wait(self, is_so: Callable[[], bool]) -> bool:
        """Whether it came true; not if the command ended before, or in all patience."""
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            ended = self._driver.code is not None
            if is_so():
                return True
            if ended:
                return False
            time.sleep(0.05)
        return False

    def _restart(self) -> None:
        """Give the same command again at once, as a supervisor would; then bury what is left."""
        before, self._driver = self._driver, self._started()
        _bury(before, self._run)

    def _started(self) -> Driver:
        changes = [WORKER] if self._nodes else []
        return Driver(self._folder, [f"name={self._run.name}", *changes])


def small_model(folder: Path) -> Path:
    """Write the first 2 layers of the built-in model, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer  # late: a test brings its own

    whole = fetch(ModelConfig(name=BUILTIN_MODEL), str(folder / "root"))
    small = folder / "model"
    AutoModelForCausalLM.from_pretrained(whole, num_hidden_layers=2).save_pretrained(small)
    AutoTokenizer.from_pretrained(whole).save_pretrained(small)
    return small


def _write_files(folder: Path, model: Path, steps: int) -> None:
    pairs = [{"prompt": f"{n} and {n + 1}", "completion": str(2 * n + 1)} for n in range(300)]
    (folder / "train.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (folder / "run.yaml").write_text(f"""
name: soak
model: {{name: {model}}}
adapter: {{method: lora, rank: 8, alpha: 16, dropout: 0.05}}
data: {{train: train.jsonl, format: prompt_completion, max_length: 128}}
train: {{learning_rate: 1.0e-3, max_steps: {steps}, global_batch_size: 8, micro_batch_size: 4}}
scaling: {{num_workers: 2, max_failures: 100, step_timeout_seconds: 8}}
checkpoint: {{every_steps: {EVERY_STEPS}, keep: 3}}
storage: root
""")


@contextmanager
def _cluster(folder: Path, *, on_nodes: bool) -> Iterator[Nodes | None]:
    """Write the file of a cluster that the command joins, or of one that it starts by itself."""
    if on_nodes:
        with closing(Nodes(folder)) as nodes:
            yield nodes
    else:
        file = folder / "cluster.yaml"
        file.write_text("num_cpus: 2\nobject_store_memory: 200000000\n")
        yield None


def _finish(driver: Driver, run: Run) -> None:
    code = driver.wait(PATIENCE_SECONDS)
    if code != 0:
        raise SystemExit(f"{run.name} ended with {code}:\n{driver.last_words()}")
    _bury(driver, run)


def _bury(driver: Driver, run: Run) -> None:
    if left := driver.bury():
        _say(f"{run.name}: killed what outlived the command: {', '.join(left)}")


def _say(text: str) -> None:
    _LOG.print(f"{time.strftime('%H:%M:%S')} {text}")


_LOG = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--faults", type=int, default=50, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="decides which, and when")
    names = "; ".join(f"{kind}: {what}" for kind, what in KINDS.items())
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS], help=names)
    parser.add_argument("--model", type=Path, help="a base model's folder")
    parser.add_argument("--folder", type=Path, help="where to work, and to leave what was made")
    parser.add_argument("--json", type=Path, help="a file for all that was found")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
