"""Saves beside training on a GPU: `pytest -m gpu tests/gpu`, on a machine with a CUDA device."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ftray.runs import Run
from ftray.train import checkpoint
from ftray.train.checkpoint import Progress
from ftray.train.parallel import Place
from ftray.train.saver import Saver

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning"),
]


@pytest.fixture(params=["whole", "sharded"])
def mesh(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[object]:
    if request.param == "whole":
        yield None
        return
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cuda", (1,))
    dist.destroy_process_group()


class Learner:
    def __init__(self, mesh: object) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(*[nn.Linear(512, 512) for _ in range(4)]).cuda()
        if mesh is not None:
            fully_shard(model, mesh=mesh)
        self.model = model
        self.trainable = dict(model.named_parameters())
        self.optimizer = torch.optim.AdamW(self.trainable.values(), lr=1e-3, fused=True)

    def step(self, step: int) -> float:
        torch.manual_seed(step)
        loss = self.model(torch.randn(64, 512, device="cuda")).square().mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())


def test_a_save_beside_training_holds_the_state_before_the_steps_taken_meanwhile(
    mesh: object, tmp_path: Path
) -> None:
    run, place = Run(str(tmp_path), "gpu"), Place(0, 1, torch.device("cuda"))
    never_stopped, saver = Learner(mesh), Saver(run, place, attempt=1, keep=1)
    for step in (1, 2, 3):  # from the second one on it is copied into pinned memory
        never_stopped.step(step)
        progress = Progress(step, {}, is_best=False, micro_batch_size=1)
        saver.save(never_stopped.trainable, never_stopped.optimizer, progress)
        if step == 3:
            expected = [never_stopped.step(later) for later in (4, 5, 6)]
        saver.wait()
    saver.close()
    record, again = checkpoint.newest(run, place, 2), Learner(mesh)
    assert record is not None
    assert record.step == 3
    checkpoint.load(run, record, again.trainable, again.optimizer)
    assert [again.step(step) for step in (4, 5, 6)] == expected
