"""What each kind of fault does to a running command."""

import signal
from pathlib import Path

from driver import Driver
from schedule import Fault

from ftray import runs
from ftray.runs import Run

_WORKER, _CONTROLLER = "RayTrainWorker", "TrainController"


def inject(fault: Fault, driver: Driver, run: Run, every_steps: int) -> bool:
    """Do it; returns whether the same command has to be given again."""
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
            _block(driver, run, every_steps)
        case kind:
            _signal(driver, *_AIMS[kind], fault.draw)
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


def _signal(driver: Driver, word: str, sign: signal.Signals, draw: int) -> None:
    found = sorted(driver.below(word), key=lambda process: process.pid)
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
