"""The stacked-adapter layer: slots, ranks, starts and dropout."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ftray.model.dropout import dropped
from ftray.model.lora import Routing, Segment, Slot, StackedLoraLinear
from ftray.model.nf4 import Nf4Linear

CPU = torch.device("cpu")
ROWS, LENGTH, IN, OUT = 6, 5, 16, 12
SEGMENTS = [Segment(0, 0, 2), Segment(2, 2, 3), Segment(1, 3, 6)]


def frozen_linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(IN, OUT).requires_grad_(False)


def layer(slots: list[Slot], *, routing: Routing | None = None, seed: int = 0) -> StackedLoraLinear:
    made = StackedLoraLinear(frozen_linear(), "q_proj", slots, routing or Routing(CPU), seed)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for index, slot in enumerate(slots):
            values = torch.randn(OUT, slot.rank, generator=generator)
            made.lora_B[index, :, : slot.rank] = values
    return made


def three_slots(dropout: float = 0.0) -> list[Slot]:
    return [Slot(2, 2.0, dropout), Slot(8, 0.5), Slot(4, 1.0, dropout)]


def routed(seeds: range = range(ROWS)) -> Routing:
    routing = Routing(CPU)
    routing.route(SEGMENTS)
    routing.seed_rows(list(seeds))
    return routing


def rows() -> torch.Tensor:
    return torch.randn(ROWS, LENGTH, IN, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_stacked_slots_equal_separate_layers(dropout):
    slots, routing, x = three_slots(dropout), routed(), rows()
    stacked = layer(slots, routing=routing)
    out = stacked(x)
    out.square().sum().backward()

    for segment in SEGMENTS:
        slot, some = slots[segment.slot], slice(segment.start, segment.end)
        own = Routing(CPU)
        own.seed_rows(list(range(ROWS))[some])
        alone = layer([slot], routing=own)
        with torch.no_grad():
            alone.lora_A[0] = stacked.lora_A[segment.slot, : slot.rank]
            alone.lora_B[0] = stacked.lora_B[segment.slot, :, : slot.rank]
        expected = alone(x[some])
        expected.square().sum().backward()
        torch.testing.assert_close(out[some], expected, rtol=1e-6, atol=1e-6)
        gradient = stacked.lora_A.grad[segment.slot, : slot.rank]
        torch.testing.assert_close(gradient, alone.lora_A.grad[0], rtol=1e-5, atol=1e-5)
        gradient = stacked.lora_B.grad[segment.slot, :, : slot.rank]
        torch.testing.assert_close(gradient, alone.lora_B.grad[0], rtol=1e-5, atol=1e-5)


def test_nan_in_one_slot_leaves_the_others_bit_equal():
    def outputs_and_gradients(broken: bool):
        stacked, x = layer(three_slots(), routing=routed()), rows()
        if broken:
            x[3:6] = torch.nan  # rows of slot 1
            stacked.lora_B.data[1, 0, 0] = torch.nan
        out = stacked(x)
        out.square().sum().backward()
        return out[:3], stacked.lora_A.grad[[0, 2]], stacked.lora_B.grad[[0, 2]]

    for whole, beside_nan in zip(
        outputs_and_gradients(False), outputs_and_gradients(True), strict=True
    ):
        assert torch.equal(whole, beside_nan)


def test_padding_of_smaller_ranks_stays_zero_under_training():
    stacked, x = layer(three_slots(), routing=routed()), rows()
    optimizer = torch.optim.AdamW([stacked.lora_A, stacked.lora_B], lr=0.1, weight_decay=0.1)
    for _ in range(3):
        stacked(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    for index, slot in enumerate(three_slots()):
        assert not stacked.lora_A[index, slot.rank :].any()
        assert not stacked.lora_B[index, :, slot.rank :].any()
        assert stacked.lora_A[index, : slot.rank].all()


def test_the_start_is_a_function_of_seed_and_layer_name():
    def start(name: str, seed: int) -> torch.Tensor:
        torch.manual_seed(seed + 17)  # the global generator plays no part
        slots = [Slot(4, 1.0)]
        return StackedLoraLinear(frozen_linear(), name, slots, Routing(CPU), seed).lora_A.detach()

    assert torch.equal(start("layers.0.q_proj", 1), start("layers.0.q_proj", 1))
    assert not torch.equal(start("layers.0.q_proj", 1), start("layers.1.q_proj", 1))
    assert not torch.equal(start("layers.0.q_proj", 1), start("layers.0.q_proj", 2))
    assert start("layers.0.q_proj", 1).abs().max() <= IN**-0.5


def test_a_new_adapter_changes_nothing():
    base, x = frozen_linear(), rows()
    wrapped = StackedLoraLinear(base, "q_proj", [Slot(4, 2.0)], Routing(CPU), 0)

    assert torch.equal(wrapped(x), base(x))


def test_a_dropout_mask_does_not_depend_on_the_company_or_place_of_a_row():
    x, seeds = torch.ones(4, 7, IN), torch.tensor([5, 6, 7, 2**62])
    together = dropped(x, seeds, layer=9, probability=0.5)

    for row in range(4):
        longer = torch.ones(1, 9, IN)
        alone = dropped(longer, seeds[row : row + 1], layer=9, probability=0.5)
        assert torch.equal(alone[0, :7], together[row])
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(together, dropped(x, seeds, layer=10, probability=0.5))


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_mean_and_drops_neighbours_independently(probability):
    x = torch.ones(64, 32, 64)
    kept = dropped(x, torch.arange(64), layer=3, probability=probability) != 0

    count = kept.numel()
    spread = (probability * (1 - probability)) ** 0.5
    assert kept.float().mean().item() == pytest.approx(1 - probability, abs=4 * spread / count**0.5)
    centred = kept.float() - kept.float().mean()
    for shift, axis in ((1, 2), (1, 1), (1, 0), (2, 2)):
        correlation = (centred * centred.roll(shift, axis)).mean().item() / spread**2
        assert abs(correlation) < 4 / count**0.5


def test_eval_mode_drops_nothing():
    dropping, plain = layer([Slot(4, 1.0, 0.5)]), layer([Slot(4, 1.0)])

    assert torch.equal(dropping.eval()(rows()), plain(rows()))


def test_recomputation_draws_the_same_mask():
    def gradients(recompute: bool) -> torch.Tensor:
        dropping, x = layer([Slot(4, 1.0, 0.5)], routing=routed()), rows()
        out = checkpoint(dropping, x, use_reentrant=False) if recompute else dropping(x)
        out.square().sum().backward()
        return dropping.lora_A.grad

    assert torch.equal(gradients(recompute=True), gradients(recompute=False))


def test_bf16_input_gives_bf16_output_and_fp32_gradients():
    wrapped = StackedLoraLinear(
        frozen_linear().bfloat16(), "q_proj", [Slot(4, 2.0)], Routing(CPU), 0
    )

    out = wrapped(rows().bfloat16())
    out.float().square().sum().backward()

    assert out.dtype == torch.bfloat16
    assert wrapped.lora_B.grad.dtype == torch.float32


@pytest.mark.filterwarnings(  # dynamo's own doing
    "ignore:The .grad attribute of a Tensor that is not a leaf",
    "ignore:.*Function.* should not be instantiated:DeprecationWarning",
)
@pytest.mark.parametrize("quantized", [False, True])
def test_the_layer_compiles_into_one_graph_that_new_seeds_do_not_invalidate(quantized):
    base = frozen_linear()
    base = Nf4Linear(base, double_quantization=True) if quantized else base
    routing, graphs = Routing(CPU), []
    wrapped = StackedLoraLinear(base, "q_proj", [Slot(4, 2.0, 0.5)], routing, 0)

    def count(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(wrapped, backend=count, fullgraph=True)
    for seed in range(3):
        routing.seed_rows([seed + row for row in range(ROWS)])
        torch.testing.assert_close(compiled(rows()), wrapped(rows()))

    assert len(graphs) == 1
