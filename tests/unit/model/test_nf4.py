"""The 4-bit frozen layer."""

import bitsandbytes.functional as bnb
import pytest
import torch
from torch import nn

from ftray.model.nf4 import Nf4Linear


def linear(*, bias: bool = False) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(128, 96, bias=bias)


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_the_product_and_its_gradient_are_those_of_the_dequantized_weight(double, bias):
    quantized = Nf4Linear(linear(bias=bias), double_quantization=double)
    x = torch.randn(3, 5, 128, requires_grad=True)
    weight = quantized.dequantized(torch.float32)

    quantized(x).square().sum().backward()

    again = x.detach().clone().requires_grad_()
    nn.functional.linear(again, weight, quantized.bias).square().sum().backward()
    assert torch.equal(x.grad, again.grad)
    assert not any(parameter.requires_grad for parameter in quantized.parameters())


@pytest.mark.parametrize("double", [True, False])
def test_weights_are_dequantized_as_bitsandbytes_does(double):
    original = linear()
    packed, state = bnb.quantize_4bit(
        original.weight.detach(), blocksize=64, compress_statistics=double, quant_type="nf4"
    )

    quantized = Nf4Linear(original, double_quantization=double)

    expected = bnb.dequantize_4bit(packed, state)
    assert torch.equal(quantized.dequantized(torch.float32), expected)
    error = (expected - original.weight).abs().mean() / original.weight.abs().mean()
    assert error < 0.12


def test_weights_take_half_a_byte():
    quantized = Nf4Linear(linear(), double_quantization=True)

    assert quantized.weight.nbytes == 96 * 128 / 2


def test_packed_weights_are_kept_as_what_fsdp_of_torch_2_11_shards():
    """It makes each shard a parameter that wants gradients first, which integers refuse."""
    quantized = Nf4Linear(linear(), double_quantization=True)

    assert nn.Parameter(quantized.weight.detach()).requires_grad


def test_nothing_but_packed_weights_is_kept_for_the_backward_pass():
    quantized, kept = Nf4Linear(linear(), double_quantization=True), []
    x = torch.randn(4, 128, requires_grad=True)

    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        quantized(x)

    assert {tensor.data_ptr() for tensor in kept} <= {
        t.data_ptr() for t in quantized.state_dict().values()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_eval_between_two_steps_changes_neither_loss_nor_gradient(dtype):
    quantized = Nf4Linear(linear().to(dtype), double_quantization=True)
    x = torch.randn(4, 128, dtype=dtype, requires_grad=True)

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        loss = quantized.train()(x).float().square().sum()
        [gradient] = torch.autograd.grad(loss, x)
        return loss, gradient

    before = step()
    with torch.no_grad():
        quantized.eval()(x)
    after = step()

    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    assert after[1].any()
