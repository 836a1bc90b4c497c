"""Two hundred jobs of one second over five projects, through the queue, the database and Ray Jobs.

`make soak-jobs JOBS=200 DATABASE=postgresql://…` (SQLite unless given). It fails unless all have
finished, none began twice, no project had more at once than its share, and they took turns.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

# As tests run: else `ray start` would want a token of whoever connects. Ray reads it when imported.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
sys.path.append(str(Path(__file__).parents[2]))
sys.path.append(str(Path(__file__).parents[2] / "unit" / "service"))

from head import ray_head
from place import Place, serving, submit, upload
from tiny import tiny_tokenizer

from ftray import jobs
from ftray.accounts.grant import Quota
from ftray.accounts.projects import set_project
from ftray.service.ray_launcher import RayLauncher

PROJECTS = ("ant", "bee", "cat", "dog", "elk")
SHARE = 2
_SECONDS = 3600.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--database", default="")
    given = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ftray-soak-")))
        stack.enter_context(ray_head(cpus=4))
        address = jobs.here()
        assert address is not None
        url = given.database or f"sqlite:///{folder}/accounts.db"
        tiny_tokenizer().save_pretrained(folder / "tiny")
        place = stack.enter_context(serving(url, folder, folder / "tiny", RayLauncher(address)))
        began = time.monotonic()
        run(place, given.jobs)
        problems = judge(place, given.jobs)
    say(f"{given.jobs} jobs in {time.monotonic() - began:.0f} s: {problems or 'all is well'}")
    return 1 if problems else 0


def run(place: Place, count: int) -> None:
    """Queue all jobs, one project after the other, and wait for their ends."""
    clients = {}
    for project in PROJECTS:
        set_project(place.database, project, Quota(running_jobs=SHARE))
        clients[project] = place.client(project)
        file = upload(clients[project]).id
        for _ in range(count // len(PROJECTS)):
            submit(clients[project], seed=1, training_file=file)
    end = time.monotonic() + _SECONDS
    with place.controlled():
        while time.monotonic() < end:
            states = Counter(
                job.status
                for client in clients.values()
                for job in client.fine_tuning.jobs.list(limit=100)
            )
            say(f"{dict(states)}")
            if not states.keys() & {"queued", "running"}:
                return
            time.sleep(10)


def judge(place: Place, count: int) -> list[str]:
    """Return what went wrong."""
    problems = []
    began = {line[0]: (line[1], float(line[2])) for line in place.began}
    ended = {line[0]: float(line[2]) for line in place.read("ended.txt")}
    if len(place.began) != count or len(began) != count:
        problems.append(f"{len(place.began)} processes began, of {len(began)} submissions")
    states: Counter[str] = Counter()
    for project in PROJECTS:
        states.update(job.status for job in place.client(project).fine_tuning.jobs.list(limit=100))
    if states != {"succeeded": count}:
        problems.append(f"they ended as {dict(states)}")
    order = sorted(began.values(), key=lambda one: one[1])
    turns = [Counter(project for project, _ in order[:n]) for n in range(1, count)]
    gap = max(max(t[p] for p in PROJECTS) - min(t[p] for p in PROJECTS) for t in turns)
    if gap > 2 * SHARE:
        problems.append(f"a project was {gap} jobs ahead of another")
    for project in PROJECTS:
        spans = [(at, ended[id]) for id, (of, at) in began.items() if of == project]
        most = max(sum(a <= at < b for a, b in spans) for at, _ in spans)
        if most > SHARE:
            problems.append(f"{project} had {most} jobs at once")
    say(f"at most {gap} jobs ahead")
    return problems


def say(text: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
