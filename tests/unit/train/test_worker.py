import threading

import pytest
import torch

from ftray.train import worker
from ftray.train.retries import Ended
from ftray.train.work import Handover


def test_the_thread_that_trains_has_its_workers_gpu_as_the_current_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each thread begins with the first GPU, and NCCL sends Python objects over the current one."""
    chosen: dict[int, torch.device] = {}
    seen: list[torch.device | None] = []

    def train(_work: object) -> Ended:
        seen.append(chosen.get(threading.get_ident()))
        return Ended("finished", 1)

    def use(device: torch.device) -> None:
        chosen[threading.get_ident()] = device

    monkeypatch.setattr(worker, "get_device", lambda: torch.device("cuda", 1))
    monkeypatch.setattr(torch.cuda, "set_device", use)
    monkeypatch.setattr(worker, "train", train)
    monkeypatch.setattr(Handover, "take", lambda _handover: None)
    thread = threading.Thread(target=worker.train_given, args=(Handover("x"),))
    thread.start()
    thread.join()
    assert seen == [torch.device("cuda", 1)]


def test_a_handover_is_forgotten_quietly_once_ray_has_been_shut_down() -> None:
    """As the thread that trains finds it after a second Ctrl-C."""
    Handover("x").clear()
