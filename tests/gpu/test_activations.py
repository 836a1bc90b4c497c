"""What layers keep, on a real GPU: `pytest -m gpu tests/gpu/test_activations.py`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from ftray.config.base import apply, validated
from ftray.config.run import ActivationPolicy, RunConfig
from ftray.data.batching.samples import Sample
from ftray.data.rendering.chat import Tokens
from ftray.data.tokens.memory import MemoryRows
from ftray.model.offload import HostStates
from ftray.train.parallel import Place
from ftray.train.step import micro_batch, train_step
from ftray.train.trainee import build_trainee

# what torch's compiler warns itself of, within itself, stops it when it is raised
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]

PLACE = Place(0, 1, torch.device("cuda"))
LENGTH, HALF = 1024, 512
KINDS: dict[str, dict[str, Any]] = {
    "lora with dropout": {"adapter": {"rank": 8, "dropout": 0.1}},
    "lora, compiled": {"train.compile": True},
    "qlora": {"adapter": {"method": "qlora", "rank": 8}},
    "full": {"adapter": {"method": "full"}, "train.learning_rate": 1e-3},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose activations outweigh it."""
    made = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=512,
        intermediate_size=1792,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(made)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_each_policy_takes_less_memory_for_the_same_gradients(
    kind: str, folder: Path, tmp_path: Path
) -> None:
    peaks, plain = [], None
    for policy in get_args(ActivationPolicy):
        changes = KINDS[kind] | {"train.activation_checkpointing": policy}
        loss, gradient, peak = learned(folder, tmp_path, changes)
        plain = plain or (loss, gradient)
        assert loss == pytest.approx(plain[0], rel=1e-3)
        assert (gradient - plain[1]).norm() < 2e-2 * plain[1].norm()  # bf16
        peaks.append(peak)
    assert peaks == sorted(set(peaks), reverse=True)


def learned(folder: Path, root: Path, changes: dict[str, Any]) -> tuple[float, Tensor, int]:
    """The loss, all gradients in one row, and the bytes at the peak, of the second step."""
    tree = {
        "name": "kept",
        "model": {"name": str(folder)},
        "adapter": {"method": "lora", "rank": 8},
        "data": {"train": "unused.jsonl", "max_length": LENGTH},
        "train": {"max_steps": 8},
    }
    torch.compiler.reset()  # a run has one policy; kernels of several would be too many
    config = validated(RunConfig, apply(tree, changes), "test")
    trainee = build_trainee(config, folder, PLACE, str(root))
    trainable = list(trainee.attached.trainable.values())
    for parameter in trainable:  # an adapter's B begins at zero, and hides the gradient of A
        if not parameter.detach().any():
            torch.nn.init.normal_(parameter, std=0.02, generator=torch.Generator("cuda"))
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(8, 512, (8, HALF), generator=generator).tolist()
    table = MemoryRows([Tokens(row, bytes([0, *[1] * (HALF - 1)])) for row in rows])
    packs = [[Sample(key, 0, HALF, 0), Sample(key + 1, 0, HALF, 0)] for key in range(0, 8, 2)]
    work = [micro_batch(table, packs, [0, 1, 2, 3])]
    train_step(trainee, work, PLACE, config.train, 0)  # compiled here
    trainee.model.zero_grad()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    result = train_step(trainee, work, PLACE, config.train, 0)
    peak = torch.cuda.max_memory_allocated() - sum(p.nbytes for p in trainee.model.parameters())
    return result.loss, torch.cat([p.grad.flatten() for p in trainable]), peak


def test_states_come_back_from_the_host_as_they_went() -> None:
    """More of them than the GPU may hold at a time, each overwritten there once it has gone."""
    layers, shape = 12, torch.Size([1, 2**14, 1024])
    start = torch.randn(shape, device="cuda").requires_grad_()
    before = torch.cuda.memory_allocated()

    def passed(held: list[int]) -> Iterator[Tensor]:
        state = start
        for _ in range(layers):
            state = torch.sin(state)
            held.append(torch.cuda.memory_allocated() - before)
        yield state

    held: list[int] = []
    with HostStates(PLACE.device).keeping(shape):
        [end] = passed(held)
    [gradient] = torch.autograd.grad(end.sum(), start)
    [expected] = torch.autograd.grad(next(passed([])).sum(), start)
    assert torch.equal(gradient, expected)
    assert max(held) <= 4 * start.nbytes
