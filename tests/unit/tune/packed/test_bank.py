"""Adapters that come and go keep their weights, and hold no more memory than they need."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ftray.config.run import LoraConfig, ModelConfig
from ftray.model.adapter import adapter_state, attach
from ftray.model.base import load_base
from ftray.tune.packed.bank import Bank
from ftray.tune.packed.stack import Adapter
from tests.unit.tune.packed.conftest import CPU

SMALL, OTHER, FEW = LoraConfig(rank=4), LoraConfig(rank=16), LoraConfig(rank=4, target=["q_proj"])


@pytest.fixture
def bank(tiny_folder: Path) -> Bank:
    base = load_base(tiny_folder, ModelConfig(), CPU)
    base.requires_grad_(False)
    return Bank(base)


def named(adapter: Adapter) -> dict[str, Tensor]:
    return adapter.named(adapter.weights.detach()[0])


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(values, expected[name]) for name, values in found.items()
    )


@pytest.mark.parametrize("config", [SMALL, OTHER, FEW])
def test_an_adapter_starts_as_that_of_a_run_alone(bank, tiny_folder, config):
    bank.add(config, seed=1)
    added = bank.add(config, seed=5)
    alone = attach(load_base(tiny_folder, ModelConfig(), CPU), config, seed=5)
    assert same(named(added), adapter_state(alone.model))


def test_those_that_stay_keep_their_weights_while_others_come_and_go(bank):
    first, second, third = (bank.add(SMALL, seed) for seed in (1, 2, 3))
    few = bank.add(FEW, 4)
    before = [named(one) for one in (second, third, few)]
    bank.remove(first)
    bank.add(SMALL, 5)
    bank.remove(bank.add(OTHER, 6))
    assert all(
        same(named(one), kept) for one, kept in zip((second, third, few), before, strict=True)
    )
    assert sorted(one.row for one in (second, third)) == [0, 1]


def test_rows_are_held_for_members_only(bank):
    first, second = bank.add(SMALL, 1), bank.add(SMALL, 2)
    bank.remove(first)
    [stack] = bank.stacks
    assert len(stack.weights) == len(stack.gradients) == 1
    bank.remove(second)
    assert bank.stacks == []


def test_a_vector_of_weights_is_named_and_laid_out_again_without_loss(bank):
    adapter = bank.add(LoraConfig(rank=5), 1)
    tensors = {name: torch.randn_like(values) for name, values in named(adapter).items()}
    assert same(adapter.named(adapter.flat(tensors)), tensors)


def test_norms_are_those_of_each_adapters_own_gradient(bank):
    adapters = [bank.add(config, 1) for config in (SMALL, OTHER, SMALL)]
    for number, adapter in enumerate(adapters):
        adapter.weights.grad[0, :4] = float(number)
    assert bank.norms(adapters) == [0.0, 2.0, 4.0]
    assert bank.norms(adapters[:0]) == []
