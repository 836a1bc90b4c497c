"""What is an option for speed or memory changes no result."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ftray.model.adapter import lora_layers
from ftray.model.nf4 import Nf4Linear
from ftray.train.trainee import is_compiled, load_for_training

Learning = Callable[[dict[str, Any]], Any]
LORA = {"adapter": {"method": "lora", "rank": 4, "dropout": 0.2}}


@pytest.mark.parametrize("policy", ["pointwise", "mlp", "layer", "offload"])
@pytest.mark.parametrize("changes", [LORA, {"adapter": {"method": "full"}}])
def test_recomputed_activations_give_the_same_steps(
    changes: dict[str, Any], policy: str, learner: Learning
) -> None:
    plain = learner(changes)
    recomputing = learner({**changes, "train.activation_checkpointing": policy})
    for step in range(2):
        assert recomputing.step(step) == plain.step(step)
    expected = plain.weights()
    assert all(
        torch.equal(values, expected[name]) for name, values in recomputing.weights().items()
    )


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of itself in many ways
def test_compiled_layers_give_the_same_losses(learner: Learning) -> None:
    changes = {"adapter": {"method": "lora", "rank": 4}}
    plain, compiled = learner(changes), learner({**changes, "train.compile": True})
    for step in range(3):
        expected, found = plain.step(step), compiled.step(step)
        assert found.loss == pytest.approx(expected.loss, rel=1e-5)
        assert found.grad_norm == pytest.approx(expected.grad_norm, rel=1e-4)


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_bf16_computes_beside_weights_in_fp32(method: str, learner: Learning) -> None:
    adapter = {"method": method} if method == "full" else {"method": method, "rank": 4}
    exact, rounded = (
        learner({"adapter": adapter, "model.dtype": dtype}) for dtype in ("float32", "bfloat16")
    )
    for step in range(2):
        expected, found = exact.step(step), rounded.step(step)
        assert found.loss == pytest.approx(expected.loss, rel=2e-2)
        assert found.loss != expected.loss
    assert all(values.dtype == torch.float32 for values in rounded.weights().values())


def test_padding_to_one_length_changes_no_step(learner: Learning) -> None:
    plain, padded = learner(LORA), learner(LORA)
    longer = replace(padded.trainee, row_length=64)
    padded = replace(padded, trainee=longer)
    for step in range(2):
        expected, found = plain.step(step), padded.step(step)
        assert found.loss == pytest.approx(expected.loss, rel=1e-6)
        assert found.grad_norm == pytest.approx(expected.grad_norm, rel=1e-4)
        assert found.counts == expected.counts


def test_layers_are_compiled_where_it_pays(config_of: Callable[[dict[str, Any]], Any]) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    long = config_of({"train.max_steps": 1000}).train
    assert is_compiled(long, cpu) == (False, "no GPU")
    assert is_compiled(config_of({"train.compile": True}).train, cpu)[0]
    assert not is_compiled(config_of({"train.compile": False}).train, gpu)[0]
    assert "8 steps would not earn" in is_compiled(config_of({}).train, gpu)[1]


def test_a_base_of_4_bits_is_never_whole_on_the_device(
    config_of: Callable[[dict[str, Any]], Any], tiny_folder: Path
) -> None:
    config = config_of({"adapter": {"method": "qlora", "rank": 4}})
    attached = load_for_training(config, tiny_folder, torch.device("cpu"))
    assert attached.model.device == torch.device("cpu")
    assert all(isinstance(layer.base, Nf4Linear) for layer in lora_layers(attached.model))
