"""Many adapters beside one layer: each row's numbers are those of its adapter alone."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ftray.model.lanes import Factors, Lane, LaneLinear, Lanes, RowChances
from ftray.model.lora import Routing, Slot, StackedLoraLinear

CPU = torch.device("cpu")
ROWS, LENGTH, IN, OUT, NAME = 8, 5, 16, 12, "q_proj"
RANK, OTHER_RANK = 8, 16
PROBABILITIES = [0.3, 0.0, 0.5, 0.1]


def frozen_linear(*, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(IN, OUT, bias=bias).requires_grad_(False)


def factors(slots: int, rank: int, dtype: torch.dtype = torch.float32) -> Factors:
    generator = torch.Generator().manual_seed(rank)
    a = torch.randn(slots, rank, IN, generator=generator)
    b = torch.randn(slots, OUT, rank, generator=generator)
    return Factors(a.to(dtype), b.to(dtype), torch.zeros_like(a), torch.zeros_like(b))


def lane(stack: int, rows: range, groups: int, slots: list[int] | None) -> Lane:
    scaling = torch.arange(1.0, groups + 1).view(-1, 1, 1)
    chosen = None if slots is None else torch.tensor(slots)
    return Lane(stack, rows.start, rows.stop, groups, chosen, scaling)


def with_dropout(plain: Lane) -> Lane:
    rows = range(plain.start, plain.end)
    chances = [PROBABILITIES[row % len(PROBABILITIES)] for row in rows]
    dropout = RowChances(
        seeds=torch.tensor(rows),
        limits=torch.tensor([int(p * 2**32) for p in chances]),
        gains=torch.tensor([1 / (1 - p) for p in chances]),
    )
    return Lane(*list(vars(plain).values())[:-1], dropout)


# rows of two stacks; the middle ones take no adapter
EVEN = [lane(0, range(4), 2, None), lane(1, range(5, 8), 3, [2, 0, 2])]


def layer(lanes: Sequence[Lane], base: nn.Module | None = None) -> LaneLinear:
    routing = Lanes(CPU)
    routing.set(ROWS, lanes)
    made = LaneLinear(base or frozen_linear(), NAME, routing)
    made.factors = {0: factors(2, RANK), 1: factors(3, OTHER_RANK)}
    return made


def inputs() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(ROWS, LENGTH, IN, generator=generator, requires_grad=True)


def alone(one: LaneLinear, part: Lane, group: int) -> tuple[StackedLoraLinear, slice, int]:
    """The adapter of a group as a layer of its own, the group's rows, and its slot."""
    slot = group if part.slots is None else int(part.slots[group])
    held, per_group = one.factors[part.stack], (part.end - part.start) // part.groups
    rows = slice(part.start + group * per_group, part.start + (group + 1) * per_group)
    dropout = PROBABILITIES[rows.start % len(PROBABILITIES)] if part.dropout else 0.0
    routing = Routing(CPU)
    routing.seed_rows(list(range(rows.start, rows.stop)))
    own = [Slot(held.a.shape[1], float(part.scaling[group]), dropout)]
    made = StackedLoraLinear(one.base, NAME, own, routing, 0)
    with torch.no_grad():
        made.lora_A[0], made.lora_B[0] = held.a[slot], held.b[slot]
    return made, rows, slot


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dropout", [True, False])
def test_each_group_has_the_output_and_gradients_of_its_adapter_alone(dropout, bias):
    lanes = [lane(0, range(2), 2, None), lane(1, range(5, 8), 3, [2, 0, 2])] if dropout else EVEN
    lanes = [with_dropout(one) for one in lanes] if dropout else lanes
    stacked, x = layer(lanes, frozen_linear(bias=bias)), inputs()
    out = stacked(x)
    out.square().sum().backward()

    expected_x = torch.zeros_like(x)
    sums = {
        number: factors(len(held.a), held.a.shape[1]) for number, held in stacked.factors.items()
    }
    for part in lanes:
        for group in range(part.groups):
            own, rows, slot = alone(stacked, part, group)
            mine = inputs()[rows].detach().requires_grad_()
            result = own(mine)
            result.square().sum().backward()
            torch.testing.assert_close(out[rows], result, rtol=1e-5, atol=1e-5)
            expected_x[rows] = mine.grad
            sums[part.stack].of_a[slot] += own.lora_A.grad[0]
            sums[part.stack].of_b[slot] += own.lora_B.grad[0]
    covered = [row for part in lanes for row in range(part.start, part.end)]
    torch.testing.assert_close(x.grad[covered], expected_x[covered], rtol=1e-4, atol=1e-4)
    for number, held in stacked.factors.items():
        torch.testing.assert_close(held.of_a, sums[number].of_a, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(held.of_b, sums[number].of_b, rtol=1e-4, atol=1e-4)


def test_rows_in_no_lane_pass_through_the_base_alone():
    stacked, x = layer(EVEN), inputs()
    out = stacked(x)
    out.square().sum().backward()
    plain = inputs()
    expected = stacked.base(plain)
    expected.square().sum().backward()
    torch.testing.assert_close(out[4], expected[4])
    torch.testing.assert_close(x.grad[4], plain.grad[4])


def test_a_layer_without_factors_is_its_base():
    stacked, x = layer(EVEN), inputs()
    stacked.factors = {}
    assert torch.equal(stacked(x), stacked.base(x))


def test_gradients_reach_adapters_whose_input_needs_none():
    """As in the first layer, whose input is the frozen embedding's."""
    stacked = layer(EVEN)
    stacked(inputs().detach()).square().sum().backward()
    assert all(held.of_a.any() and held.of_b.any() for held in stacked.factors.values())


def test_no_number_of_one_group_reaches_another():
    def found(*, is_broken: bool) -> list[Tensor]:
        stacked, x = layer(EVEN), inputs()
        if is_broken:
            stacked.factors[0].b[1, 0, 0] = torch.nan
            with torch.no_grad():
                x[6] = torch.nan  # slot 0 of the other stack
        out = stacked(x)
        out.square().sum().backward()
        first, second = stacked.factors[0], stacked.factors[1]
        rows = [0, 1, 4, 5, 7]
        kept = [first.of_a[0], first.of_b[0], second.of_a[[1, 2]], second.of_b[[1, 2]]]
        return [out[rows], x.grad[rows], *kept]

    for whole, beside in zip(found(is_broken=False), found(is_broken=True), strict=True):
        assert torch.equal(whole, beside)


def test_recomputation_adds_each_gradient_once():
    def sums(*, recompute: bool) -> list[Tensor]:
        stacked, x = layer([with_dropout(one) for one in EVEN]), inputs()
        out = checkpoint(stacked, x, use_reentrant=False) if recompute else stacked(x)
        out.square().sum().backward()
        return [x.grad, *(held.of_a for held in stacked.factors.values())]

    for plain, again in zip(sums(recompute=False), sums(recompute=True), strict=True):
        assert torch.equal(plain, again)


def test_bf16_products_give_fp32_gradients():
    stacked = layer(EVEN, frozen_linear().bfloat16())
    exact = {number: held.of_a for number, held in stacked.factors.items()}
    for number, (slots, rank) in {0: (2, RANK), 1: (3, OTHER_RANK)}.items():
        stacked.factors[number] = factors(slots, rank, torch.bfloat16)
    assert stacked(inputs().bfloat16()).dtype == torch.bfloat16
    stacked(inputs().bfloat16()).float().square().sum().backward()
    whole = layer(EVEN)
    whole(inputs()).square().sum().backward()
    for number in exact:
        found, expected = stacked.factors[number].of_a, whole.factors[number].of_a
        assert found.dtype == torch.float32
        assert (found - expected).norm() < 0.03 * expected.norm()
