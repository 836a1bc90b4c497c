"""The 8-bit layer that serves."""

import pytest
import torch
from torch import nn

from ftray.model.int8 import Int8Linear, rows_in_int8


@pytest.fixture
def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(128, 96)


def test_a_product_is_that_of_the_rounded_weight_and_the_rounded_rows(linear):
    x = torch.randn(3, 5, 128)

    out = Int8Linear(linear)(x)

    (rows, row_scale), (weight, scale) = rows_in_int8(x.view(15, 128)), rows_in_int8(linear.weight)
    expected = (rows.double() * row_scale) @ (weight.double() * scale).t() + linear.bias
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.view(15, 96).double(), expected, rtol=1e-5, atol=1e-5)


def test_rounding_costs_a_percent(linear):
    x = torch.randn(64, 128)
    off = (Int8Linear(linear)(x) - linear(x)).norm() / linear(x).norm()
    assert 1e-3 < off < 2e-2


def test_a_row_does_not_depend_on_its_company_bit_for_bit(linear):
    layer, rows = Int8Linear(linear), torch.randn(40, 128)
    rows[7] *= 1000  # of a scale for the whole batch nothing would be left for the others
    together = layer(rows)
    assert all(torch.equal(layer(rows[i : i + 1])[0], together[i]) for i in range(40))


def test_a_row_of_zeros_gives_the_bias(linear):
    assert torch.equal(Int8Linear(linear)(torch.zeros(1, 128))[0], linear.bias)


def test_a_weight_takes_a_byte(linear):
    weight = Int8Linear(linear).weight
    assert (weight.dtype, weight.shape) == (torch.int8, linear.weight.shape)
    assert not weight.requires_grad
