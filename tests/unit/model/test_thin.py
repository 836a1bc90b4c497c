"""Thin products that share a factor become one, and the graph computes what it did."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Graph
from torch.fx.experimental.proxy_tensor import make_fx

from ftray.config.run import LoraConfig
from ftray.model import thin
from tests.unit.model.test_activations import language_model, learned

TOKENS, WIDE, RANK = 20, 64, 4


def products(graph: Graph) -> int:
    return len(graph.find_nodes(op="call_function", target=torch.ops.aten.mm.default))


def matrices(*shapes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def same_input(x: Tensor, *factors: Tensor) -> list[Tensor]:
    return [x @ factor.t() for factor in factors]


def gradients_of_factors(x: Tensor, *lows: Tensor) -> list[Tensor]:
    return [low.t() @ x for low in lows]


def one_sum(x: Tensor, *factors: Tensor) -> Tensor:
    total = x.view(2, -1, WIDE)
    for left, right in zip(factors[::2], factors[1::2], strict=True):
        total = (left @ right).view(2, -1, WIDE) + total
    return total * 2


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (same_input, [(RANK, WIDE), (2, WIDE), (RANK, WIDE)]),
        (gradients_of_factors, [(TOKENS, RANK), (TOKENS, 2)]),
        (one_sum, [(TOKENS, RANK), (RANK, WIDE), (TOKENS, 2), (2, WIDE)]),
    ],
)
def test_products_with_a_common_factor_or_sum_become_one(
    function: Callable[..., object], shapes: list[tuple[int, int]]
) -> None:
    inputs = matrices((TOKENS, WIDE), *shapes)
    traced = make_fx(function, tracing_mode="fake")(*inputs)

    thin.join(traced.graph)
    traced.recompile()

    assert products(traced.graph) == 1
    torch.testing.assert_close(traced(*inputs), function(*inputs), check_stride=True)


def one_needs_the_other(x: Tensor, a: Tensor) -> Tensor:
    first = x @ a  # [tokens, rank]
    return x @ (x.t() @ first)


def wide_ones(x: Tensor, a: Tensor, b: Tensor) -> list[Tensor]:
    return [x @ a.t(), x @ b.t()]


def terms_that_are_seen_elsewhere(x: Tensor, left: Tensor, right: Tensor) -> list[Tensor]:
    first, second = left @ right, (left * 2) @ right
    return [x + first + second, first, second]


def a_sum_that_counts_twice(x: Tensor, *factors: Tensor) -> Tensor:
    half = x + factors[0] @ factors[1] + factors[2] @ factors[3]
    return half + half


def terms_of_other_shapes(x: Tensor, *factors: Tensor) -> Tensor:
    terms = [left @ right for left, right in zip(factors[::2], factors[1::2], strict=True)]
    return x.flatten() + terms[0].flatten() + terms[1].flatten()


@pytest.mark.parametrize(
    ("function", "shapes", "count"),
    [
        (a_sum_that_counts_twice, [(TOKENS, 2), (2, WIDE), (TOKENS, RANK), (RANK, WIDE)], 1),
        (terms_of_other_shapes, [(TOKENS, 2), (2, WIDE), (2 * TOKENS, 2), (2, WIDE // 2)], 2),
        (one_needs_the_other, [(WIDE, RANK)], 3),
        (wide_ones, [(WIDE, WIDE), (WIDE, WIDE)], 2),
        (terms_that_are_seen_elsewhere, [(TOKENS, RANK), (RANK, WIDE)], 2),
    ],
)
def test_only_what_can_be_joined_is(
    function: Callable[..., object], shapes: list[tuple[int, int]], count: int
) -> None:
    inputs = matrices((TOKENS, WIDE), *shapes)
    traced = make_fx(function, tracing_mode="fake")(*inputs)

    thin.join(traced.graph)
    traced.recompile()

    assert products(traced.graph) == count
    torch.testing.assert_close(traced(*inputs), function(*inputs))


class Layer(nn.Module):
    def forward(self, x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        rows = torch.arange(x.shape[0]) + x.shape[0]
        return x @ a.t() + x.shape[0], x @ b.t(), rows


@pytest.mark.filterwarnings("ignore")  # torch warns of itself
def test_the_number_of_rows_need_not_be_known() -> None:
    x, *factors = matrices((TOKENS, WIDE), (RANK, WIDE), (RANK, WIDE))
    sizes = ({0: torch.export.Dim("rows", min=2)}, None, None)
    traced = torch.export.export(Layer(), (x, *factors), dynamic_shapes=sizes)
    graph = traced.run_decompositions().graph_module

    assert products(graph.graph) == 2
    thin.join(graph.graph)
    graph.recompile()

    assert products(graph.graph) == 1
    for rows in (TOKENS, 7):
        torch.testing.assert_close(graph(x[:rows], *factors), Layer()(x[:rows], *factors))


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of itself in many ways
def test_a_compiled_model_has_fewer_products_and_the_same_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts: list[tuple[int, int]] = []

    def counting(_: thin.Joining, graph: Graph) -> None:
        before = products(graph)
        thin.join(graph)
        counts.append((before, products(graph)))

    monkeypatch.setattr(thin.Joining, "__call__", counting)
    monkeypatch.setattr(thin.Joining, "uuid", lambda _: None)  # nothing comes from a cache
    adapter = LoraConfig(rank=RANK, alpha=RANK)  # times 1, products are kept as they come
    found = []
    for compiled in (False, True):
        torch.compiler.reset()
        model = language_model(adapter, 1)
        model.keep("none", compiled=compiled)
        found.append(learned(model))
    torch.compiler.reset()

    # A of queries, keys and values, A of gate and up; what becomes of each backward, and one sum:
    # that of queries, keys and values is nobody's, since embeddings are not trained
    assert counts == [(21, 18), (29, 25)]
    (expected, plain), (loss, gradients) = found
    assert loss == pytest.approx(expected, rel=1e-5)
    for ours, theirs in zip(gradients, plain, strict=True):
        assert (ours - theirs).norm() < 1e-5 * theirs.norm()
