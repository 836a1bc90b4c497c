"""What a slot takes, and how many of them a host holds."""

from dataclasses import replace

import pytest

from ftray.model.shape import BUILTIN_SHAPE, read_shape
from ftray.train.memory import GIB, Worker, estimate
from ftray.tune.packed.memory import (
    graph_bytes,
    host_bytes,
    padded,
    plan_capacity,
    slot_bytes,
)
from tests.unit.train.test_plan import LLAMA_8B

GPU = Worker("gpu", 1, 80 * GIB, "a test")


def test_ranks_are_padded_to_powers_of_two_from_eight():
    assert [padded(rank) for rank in (1, 4, 8, 9, 16, 33)] == [8, 8, 8, 16, 16, 64]


@pytest.mark.parametrize("changes", [{"adapter.rank": 4}, {"adapter.target": ["v_proj"]}])
def test_a_slot_is_estimated_as_it_is_held(packed, trial_of, tiny_folder, changes):
    """Weights, gradients and two moments, all in fp32."""
    trainer, trial = packed(), trial_of("a", changes)
    trainer.attach(trial)
    [stack] = trainer._bank.stacks
    expected = slot_bytes(trial.config, read_shape(tiny_folder), Worker("cpu", 1, None, ""))
    assert 0 <= 16 * stack.numbers - expected < 16 * 1024
    assert trainer.footprint().slots == {"a": expected}


def test_what_products_take_costs_two_bytes_more_on_a_gpu(config_of):
    on_cpu = slot_bytes(config_of({}), BUILTIN_SHAPE, replace(GPU, device="cpu"))
    assert slot_bytes(config_of({}), BUILTIN_SHAPE, GPU) * 16 == on_cpu * 18


def test_micro_batches_shrink_before_trials_have_to_wait(config_of):
    base = config_of({"data.max_length": 1024})
    rich = plan_capacity(base, [base], 8, BUILTIN_SHAPE, GPU)
    assert (rich.slots, rich.tokens) == (8, 16384)
    base = config_of({"data.max_length": 1024, "train.graphs": False})
    need = host_bytes(base, BUILTIN_SHAPE, GPU, 1024) + 8 * slot_bytes(base, BUILTIN_SHAPE, GPU)
    tight = plan_capacity(base, [base], 8, BUILTIN_SHAPE, replace(GPU, memory=need))
    assert (tight.slots, tight.tokens) == (8, 1024)
    less = plan_capacity(base, [base], 8, BUILTIN_SHAPE, replace(GPU, memory=need - 1))
    assert less.slots == 7
    assert plan_capacity(base, [base], 8, BUILTIN_SHAPE, replace(GPU, memory=GIB)).slots == 0


def test_recordings_take_memory_where_they_pay_and_go_before_trials_wait(config_of):
    long = {"data.max_length": 1024, "train.max_steps": 100}
    base, launched = config_of(long), config_of({**long, "train.graphs": False})
    held = graph_bytes(base, BUILTIN_SHAPE, GPU, 16384)
    assert held == estimate(base, BUILTIN_SHAPE, GPU, 16).activations
    assert graph_bytes(base, BUILTIN_SHAPE, replace(GPU, device="cpu"), 16384) == 0
    assert graph_bytes(launched, BUILTIN_SHAPE, GPU, 16384) == 0
    assert graph_bytes(base, LLAMA_8B, GPU, 16384) == estimate(base, LLAMA_8B, GPU, 2).activations
    assert graph_bytes(config_of({**long, "data.max_length": 8192}), LLAMA_8B, GPU, 16384) == 0
    short = config_of({**long, "train.max_steps": 10})  # it is not compiled, so not captured
    assert graph_bytes(short, BUILTIN_SHAPE, GPU, 16384) == 0
    need = host_bytes(launched, BUILTIN_SHAPE, GPU, 1024) + 8 * slot_bytes(base, BUILTIN_SHAPE, GPU)
    tight = plan_capacity(base, [base], 8, BUILTIN_SHAPE, replace(GPU, memory=need))
    assert (tight.slots, tight.tokens, tight.graphs) == (8, 1024, False)
    assert plan_capacity(base, [base], 8, BUILTIN_SHAPE, GPU).graphs


def test_of_an_unknown_model_all_trials_are_tried(config_of):
    assert plan_capacity(config_of({}), [config_of({})], 3, None, GPU).slots == 3


def test_a_host_has_room_as_long_as_memory_lasts(packed, trial_of):
    trainer = packed()
    footprint = trainer.footprint()
    assert footprint.held >= footprint.base
    assert trainer.room(trial_of("a", {}))
