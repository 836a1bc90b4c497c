"""What is an option for speed or memory changes no result."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.filterwarnings(
    # transformers 5.23 renames it; the version that we need at least has the old name only
    "ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning"
)

Learning = Callable[[dict[str, Any]], Any]
LORA = {"adapter": {"method": "lora", "rank": 4, "dropout": 0.2}}


@pytest.mark.parametrize("changes", [LORA, {"adapter": {"method": "full"}}])
def test_recomputed_activations_give_the_same_steps(
    changes: dict[str, Any], learner: Learning
) -> None:
    plain = learner(changes)
    recomputing = learner({**changes, "train.activation_checkpointing": True})
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
