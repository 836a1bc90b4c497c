"""What each kind of fault does to a running command."""

import signal
from dataclasses import dataclass
from pathlib import Path

from driver import Driver, at_work
from nodes import Nodes
from schedule import Fault

from ftray import runs
from ftray.runs import Run

_WORKER, _CONTROLLER = "RayTrainWorker", "TrainController"


@dataclass(frozen=True)
class Scene:
    """What there is to do harm to: a command at work on a run, and the nodes if there are some."""

    driver: Driver
    run: Run
    every_steps: int
    nodes: Nodes | None


def inject(fault: Fault, scene: Scene) -> bool:
    """Do it; returns whether the same command has to be given again."""
    driver, run = scene.driver, scene.run
    match fault.kind:
        case "bit":
            _flip_a_bit(_newest_file(run), fault.draw)
        case "cut":
            _cut(_newest_file(run), fault.draw)
    match fault.kind:
        case "driver" | "cut":
            driver.send(signal.SIGKILL)
        case "pause":
            driver.send(signal.SIGTERM)
        case "storage":
            _block(driver, run, scene.every_steps)
        case "node" | "drain":
            _take_node(scene.nodes, fault)
        case kind:
            _signal(*_AIMS[kind], fault.draw)
    if fault.kind not in _FOR_THE_COMMAND:
        return False
    driver.wait(120)
    return True


_AIMS = {
    "worker": (_WORKER, signal.SIGKILL),
    "bit": (_WORKER, signal.SIGKILL),
    "preempt": (_WORKER, signal.SIGTERM),
    "hang": (_WORKER, signal.SIGSTOP),
    "controller": (_CONTROLLER, signal.SIGKILL),
}
_FOR_THE_COMMAND = ("driver", "cut", "pause", "storage")  # it ends, and is given again


def _take_node(nodes: Nodes | None, fault: Fault) -> None:
    if nodes is None:
        raise LookupError("there is one node only")
    take = nodes.kill if fault.kind == "node" else nodes.drain
    take(fault.draw)


def _signal(word: str, sign: signal.Signals, draw: int) -> None:
    found = at_work(word)
    if not found:
        raise LookupError(f"no {word} below the command")
    found[draw % len(found)].send_signal(sign)


def _newest_file(run: Run) -> Path:
    """The largest file of the newest checkpoint: the tensors of one worker."""
    record = runs.checkpoints(run)[0]
    folder = Path(runs.checkpoint_folder(run, record.step, record.attempt))
    return max((folder / name for name in record.files), key=lambda path: path.stat().st_size)


def _flip_a_bit(path: Path, draw: int) -> None:
    with path.open("r+b") as file:
        place = draw % path.stat().st_size
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1 << draw % 8]))


def _cut(path: Path, draw: int) -> None:
    with path.open("r+b") as file:
        file.truncate(draw % path.stat().st_size)


def _block(driver: Driver, run: Run, every_steps: int) -> None:
    """Put files where the next checkpoints will be, until the command has given up."""
    attempt = runs.read_status(run).attempts
    done = max((line["step"] for line in runs.read_metrics(run)), default=0)
    first = done - done % every_steps + every_steps
    blocks = []
    for step in range(first, first + 4 * every_steps, every_steps):
        place = Path(runs.checkpoint_folder(run, step, attempt))
        try:
            place.touch(exist_ok=False)
        except FileExistsError:
            continue  # it is being written already
        blocks.append(place)
    driver.wait(120)
    for place in blocks:
        place.unlink(missing_ok=True)
