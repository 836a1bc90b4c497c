"""Sixteen streams through `ftray serve`: when tokens come, and who takes the CPU."""

import itertools
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from server import Server

CLIENTS, EACH, THREADS = 16, 3, 2
NO_END = {"0": -100, "2": -100}


@dataclass
class Times:
    """Seconds to the first token, and between the others, of all streams together."""

    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def served(
    folder: Path, model: Path, names: Sequence[str], tokens: int, rounds: int
) -> dict[str, Any]:
    """Return times and CPU shares of all rounds, the first of which only warms up."""
    settings = [f"storage={folder / 'storage'}", f"model.name={model}", f"engine.threads={THREADS}"]
    server = Server(folder / "server", [*settings, "engine.kv_gib=0.5"])
    try:
        server.wait_until_ready()
        alone, together, used, seconds = Times(), Times(), _Used(server), []
        _streams(server, names[:1], tokens, Times(), clients=1)
        _streams(server, names, tokens, Times(), clients=CLIENTS)
        _streams(server, names, tokens, alone, clients=1)
        used.start()
        for _ in range(rounds):
            started = time.perf_counter()
            _streams(server, names, tokens, together, clients=CLIENTS)
            seconds.append(time.perf_counter() - started)
        shares = used.shares()
        server.interrupt()
    finally:
        server.left_over()
    wanted = CLIENTS * EACH * tokens
    return {
        "tokens a second, 16 streams": round(wanted / median(seconds), 1),
        "first token, ms": _percentiles(together.first),
        "first token alone, ms": _percentiles(alone.first),
        "between tokens, ms": _percentiles(together.between),
        "between tokens alone, ms": _percentiles(alone.between),
        "share of the server's CPU": shares,
        "HTTP and Serve (aim < 15%)": round(1 - shares["engine: model"], 4),
    }


def _streams(server: Server, names: Sequence[str], tokens: int, times: Times, clients: int) -> None:
    turn = itertools.cycle(names)
    lists = [[next(turn) for _ in range(EACH)] for _ in range(clients)]
    with ThreadPoolExecutor(clients) as threads:
        for done in [threads.submit(_one_client, server, mine, tokens, times) for mine in lists]:
            done.result()


def _one_client(server: Server, names: Sequence[str], tokens: int, times: Times) -> None:
    client = server.client()
    for name in names:
        started = last = time.perf_counter()
        gaps: list[float] = []
        for chunk in client.chat.completions.create(
            model=name,
            messages=[{"role": "user", "content": "Tell me about rivers, please."}],
            max_tokens=tokens,
            temperature=0,
            logit_bias=NO_END,
            stream=True,
            logprobs=True,  # a chunk for every token, also for a part of a character
        ):
            if chunk.choices[0].logprobs:
                now = time.perf_counter()
                gaps.append(now - last)
                last = now
        with times.lock:
            times.first.append(gaps[0])
            times.between += gaps[1:]
        assert last > started


def _percentiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    at = {"p50": 0.5, "p99": 0.99}
    return {
        name: round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000, 1)
        for name, share in at.items()
    }


class _Used:
    """CPU time of the server's processes since `start`; the clients' own is not in it.

    The engine's process has the model on its busiest threads, one a core that torch uses; its other
    threads are Ray's and Serve's.
    """

    def __init__(self, server: Server) -> None:
        self._groups = {
            "proxy": server.replicas("Proxy"),
            "api": server.replicas("Api"),
            "engine": server.replicas("Engine"),
        }
        known = {process.pid for group in self._groups.values() for process in group}
        below = server.processes()
        self._groups["Ray's own"] = [process for process in below if process.pid not in known]

    def start(self) -> None:
        self._before = self._now()

    def shares(self) -> dict[str, float]:
        spent = {name: now - self._before[name] for name, now in self._now().items()}
        busiest = sum(sorted((v for k, v in spent.items() if k.startswith("thread")))[-THREADS:])
        spent = {name: value for name, value in spent.items() if not name.startswith("thread")}
        spent["engine: model"] = busiest
        spent["engine: the rest"] = spent.pop("engine") - busiest
        total = sum(spent.values())
        return {name: round(value / total, 4) for name, value in spent.items()}

    def _now(self) -> dict[str, float]:
        times = {name: sum(map(_cpu, group)) for name, group in self._groups.items()}
        for process in self._groups["engine"]:
            for thread in process.threads():
                times[f"thread {thread.id}"] = thread.user_time + thread.system_time
        return _Zero(times)


class _Zero(dict[str, float]):
    """A thread that was not there before has used nothing before."""

    def __missing__(self, _: str) -> float:
        return 0.0


def _cpu(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return times.user + times.system
