"""The 8-bit frozen layer: what a GPU's products have to come to."""

import pytest
import torch
from torch import nn

from ftray.config.run import LoraConfig, ModelConfig
from ftray.errors import ModelError
from ftray.model.adapter import attach, lora_layers
from ftray.model.base import load_base
from ftray.model.fp8 import FP8, Fp8Linear, check_products, fits_fp8, rows_in_fp8, uncast
from ftray.model.loss import LanguageModel

CPU = torch.device("cpu")


def linear(*, bias: bool = False) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(128, 96, bias=bias)


def test_each_row_is_rounded_in_its_own_scale():
    rows = torch.randn(7, 64) * torch.logspace(-6, 3, 7)[:, None]
    cast = rows_in_fp8(rows)

    assert cast.values.dtype == FP8
    # three bits after the point: at most a 16th off, in normal numbers
    normal = rows.abs() > cast.scale * 2**-6
    off = (cast.values.float() * cast.scale - rows).abs() / rows.abs()
    assert off[normal].max() <= 1 / 16 + 1e-6
    assert rows_in_fp8(torch.zeros(2, 16)).values.float().eq(0).all()


@pytest.mark.parametrize("bias", [True, False])
def test_product_and_gradient_are_those_of_rounded_rows(bias):
    plain = linear(bias=bias)
    quantized = Fp8Linear(plain)
    x, grad = torch.randn(3, 5, 128, requires_grad=True), torch.randn(3, 5, 96)
    out = quantized(x)
    out.backward(grad)

    def rounded(rows):
        cast = rows_in_fp8(rows)
        return cast.values.float() * cast.scale

    expected = rounded(x.detach()) @ rounded(plain.weight).t()
    torch.testing.assert_close(out, expected + (plain.bias if bias else 0))
    backward = rounded(grad) @ rounded(plain.weight.t().contiguous()).t()
    torch.testing.assert_close(x.grad, backward)
    assert not any(parameter.requires_grad for parameter in quantized.parameters())


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of itself in many ways
def test_compiled_it_has_the_same_product_and_gradient():
    quantized, rows, grad = Fp8Linear(linear()), torch.randn(3, 5, 128), torch.randn(3, 5, 96)
    found = []
    for layer in (quantized, torch.compile(quantized, backend="aot_eager", fullgraph=True)):
        x = rows.clone().requires_grad_()
        out = layer(x)
        out.backward(grad)
        found.append((out, x.grad))
    torch.testing.assert_close(found[1], found[0])
    assert found[1][1].norm() > 0


def test_it_is_near_the_layer_that_it_replaces():
    plain = linear()
    x, grad = torch.randn(64, 128, requires_grad=True), torch.randn(64, 96)
    Fp8Linear(plain)(x).backward(grad)
    again = x.detach().clone().requires_grad_()
    plain(again).backward(grad)

    assert torch.cosine_similarity(x.grad.flatten(), again.grad.flatten(), 0) > 0.998


def test_uncast_multiplies_the_same_weights_with_exact_rows():
    quantized, x = Fp8Linear(linear()), torch.randn(4, 128)
    with uncast(quantized):
        exact = quantized(x)
    torch.testing.assert_close(exact, x @ quantized.dequantized(torch.float32).t())
    assert not torch.equal(quantized(x), exact)


def test_odd_sizes_stay_as_they_are():
    assert fits_fp8(nn.Linear(64, 32))
    assert not fits_fp8(nn.Linear(64, 33))


def test_a_device_that_does_not_multiply_fp8_is_refused(tiny_folder):
    base = load_base(tiny_folder, ModelConfig(name=str(tiny_folder)), CPU)
    with pytest.raises(ModelError, match="a CPU does not multiply 8-bit floats") as refused:
        attach(base, LoraConfig(base_precision="fp8"), seed=0)
    assert "adapter.method=qlora" in refused.value.hint


@pytest.mark.parametrize("broken", ["weight", "transposed"])
def test_products_that_are_not_the_layers_own_are_refused(broken):
    quantized = Fp8Linear(linear())
    check_products(quantized)
    values = getattr(quantized, broken)
    with torch.no_grad():
        values.copy_(values.float().roll(1, 0).to(FP8))
    with pytest.raises(ModelError, match="off what they should be"):
        check_products(quantized)


def test_adapters_over_an_8_bit_base_learn_as_over_a_whole_one(tiny_folder):
    def losses(*, rounded: bool) -> list[float]:
        base = load_base(tiny_folder, ModelConfig(name=str(tiny_folder)), CPU)
        attached = attach(base, LoraConfig(rank=4), seed=0)
        for layer in lora_layers(base) if rounded else []:
            layer.base = Fp8Linear(layer.base)
        model = LanguageModel(base, attached.routing)
        optimizer = torch.optim.AdamW(attached.trainable.values(), lr=1e-2)
        ids = torch.randint(3, 259, (4, 32), generator=torch.Generator().manual_seed(0))
        labels = torch.cat([ids[:, 1:], torch.full((4, 1), -100)], 1)
        found = []
        for _ in range(30):
            loss = model(ids, labels, torch.arange(32).expand(4, -1)) / 124
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())
        return found

    exact, rounded = losses(rounded=False), losses(rounded=True)
    fallen = exact[0] - exact[-1]
    assert fallen > 1.5
    assert rounded[0] - rounded[-1] == pytest.approx(fallen, rel=0.1)
