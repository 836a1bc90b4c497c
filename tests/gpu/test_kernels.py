"""Each kernel on a real GPU beside its plain path."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ftray.model.attention import attend
from ftray.model.entropy import linear_cross_entropy
from ftray.model.fp8 import Fp8Linear, multiplies_fp8

# what torch's compiler warns itself of, within itself, stops it when it is raised
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.float().cpu(), expected.float().cpu()
    return float((found - expected).norm() / expected.norm())


def test_documents_attend_as_they_do_one_by_one() -> None:
    starts = torch.tensor([0, 7, 8, 300, 812], dtype=torch.int32)
    shapes = [(812, 8, 64), (812, 2, 64), (812, 2, 64)]
    exact = [torch.randn(shape, requires_grad=True) for shape in shapes]
    on_gpu = [one.detach().cuda().bfloat16().requires_grad_() for one in exact]
    weights = torch.randn(812, 8, 64)

    expected = attend(*exact, starts, 812, 0.125)
    (expected * weights).sum().backward()
    found = attend(*on_gpu, starts.cuda(), 812, 0.125)
    (found * weights.cuda()).sum().backward()

    assert apart(found, expected) < 1e-2
    for ours, reference in zip(on_gpu, exact, strict=True):
        assert apart(ours.grad, reference.grad) < 2e-2


@pytest.mark.parametrize("compiled", [False, True])
def test_fp8_products_are_those_of_the_plain_path(compiled: bool) -> None:
    if not multiplies_fp8(torch.device("cuda")):
        pytest.skip("no Hopper")
    linear = nn.Linear(256, 512, bias=True).bfloat16()
    plain = Fp8Linear(linear)
    fast = Fp8Linear(copy.deepcopy(linear).cuda())
    product = torch.compile(fast) if compiled else fast
    x = torch.randn(3, 50, 256).bfloat16()
    inputs = [x.clone().requires_grad_(), x.cuda().requires_grad_()]
    weights = torch.randn(3, 50, 512).bfloat16()

    outs = [plain(inputs[0]), product(inputs[1])]
    (outs[0] * weights).sum().backward()
    (outs[1] * weights.cuda()).sum().backward()

    assert apart(outs[1], outs[0]) < 1e-2
    assert apart(inputs[1].grad, inputs[0].grad) < 1e-2


def test_the_compiled_cross_entropy_is_the_plain_one() -> None:
    hidden, weight = torch.randn(1300, 64).cuda(), torch.randn(100_003, 64).cuda()
    labels = torch.randint(100_003, (1300,)).cuda()
    for rows in (1300, 700, 3):
        ours = hidden[:rows].bfloat16().requires_grad_()
        exact = hidden[:rows].bfloat16().float().requires_grad_()
        loss = linear_cross_entropy(ours, weight.bfloat16(), None, labels[:rows], compiled=True)
        expected = F.cross_entropy(
            exact @ weight.bfloat16().float().t(), labels[:rows], reduction="sum"
        )
        loss.backward()
        expected.backward()
        assert apart(loss, expected) < 1e-3
        assert apart(ours.grad, exact.grad) < 2e-2
