"""The layer for inference on CPUs."""

import pytest
import torch
from torch import nn

from ftray.model.packed import PackedLinear, can_pack


@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_as_exact_as_the_plain_one(bias):
    torch.manual_seed(0)
    linear = nn.Linear(576, 1536, bias=bias)
    x = torch.randn(2, 5, 576)
    with torch.no_grad():
        out, plain = PackedLinear(linear)(x), linear(x)
        exact = nn.functional.linear(x.double(), linear.weight.double())
        exact = exact + linear.bias.double() if bias else exact
    off, off_plain = (out - exact).norm() / exact.norm(), (plain - exact).norm() / exact.norm()
    assert out.shape == plain.shape
    assert off < max(1e-6, 4 * off_plain)


def test_a_row_comes_to_the_same_whatever_its_company():
    torch.manual_seed(0)
    packed, rows = PackedLinear(nn.Linear(576, 192)), torch.randn(33, 576)
    alone = torch.cat([packed(row[None]) for row in rows])
    torch.testing.assert_close(packed(rows), alone, rtol=1e-5, atol=1e-5)


def test_only_what_gains_by_it_is_packed():
    assert can_pack(nn.Linear(8, 8))
    assert not can_pack(nn.Linear(8, 8, dtype=torch.bfloat16))
    assert not can_pack(nn.Linear(8, 8, device="meta"))
