import math

import pytest
import torch

from ftray.config.run import TrainConfig
from ftray.train.optim import build_optimizer, clip_gradients, learning_rate, set_learning_rate


def rates(total: int, **changes: object) -> list[float]:
    train = TrainConfig.model_validate({"epochs": 1, "learning_rate": 1.0, **changes})
    return [learning_rate(step, total, train) for step in range(total)]


def test_warm_up_rises_in_equal_steps_to_the_full_rate() -> None:
    assert rates(8, warmup_steps=3, schedule="constant")[:4] == [0.25, 0.5, 0.75, 1.0]


def test_cosine_starts_at_the_full_rate_is_half_in_the_middle_and_nears_zero() -> None:
    curve = rates(100)
    assert curve[0] == 1.0
    assert curve[50] == pytest.approx(0.5)
    assert curve[99] == pytest.approx((1 + math.cos(math.pi * 0.99)) / 2)


def test_linear_falls_by_the_same_amount_each_step() -> None:
    assert rates(4, schedule="linear") == [1.0, 0.75, 0.5, 0.25]


def test_weight_decay_shrinks_matrices_and_leaves_vectors() -> None:
    matrix, vector = (torch.nn.Parameter(torch.ones(shape)) for shape in ((2, 2), (2,)))
    train = TrainConfig(epochs=1, learning_rate=0.1, weight_decay=0.5)
    optimizer = build_optimizer([matrix, vector], train)
    matrix.grad, vector.grad = torch.zeros(2, 2), torch.zeros(2)
    optimizer.step()
    assert matrix.detach().unique().tolist() == pytest.approx([0.95])
    assert vector.detach().unique().tolist() == [1.0]


def test_clipping_returns_the_norm_from_before_and_scales_to_the_limit() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    assert clip_gradients([parameter], 1.0).item() == pytest.approx(5.0)
    assert parameter.grad.norm().item() == pytest.approx(1.0)


def test_no_limit_leaves_the_gradient_as_it_is() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    assert clip_gradients([parameter], None).item() == pytest.approx(5.0)
    assert parameter.grad.tolist() == [3.0, 4.0]


def test_8_bit_adamw_keeps_its_moments_in_bytes_and_lowers_the_loss() -> None:
    parameter = torch.nn.Parameter(torch.ones(128, 64))
    optimizer = build_optimizer([parameter], TrainConfig(epochs=1, optimizer="adamw_8bit"))
    set_learning_rate(optimizer, 0.01)
    before = parameter.square().sum()
    before.backward()
    optimizer.step()
    assert optimizer.state[parameter]["state1"].dtype == torch.uint8
    assert parameter.square().sum() < before
