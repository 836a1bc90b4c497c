"""A model that is never whole computes what the whole one does."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ftray.config.run import AdapterConfig, LoraConfig, ModelConfig, QloraConfig
from ftray.errors import TrainError
from ftray.model.adapter import Attached, attach, lora_layers
from ftray.model.base import decoder, load_base
from ftray.model.blank import Blank, blank_base
from ftray.model.export import BaseName, export_adapter, logits, verify_streamed
from ftray.model.stream import streamed

CPU = torch.device("cpu")
ADAPTERS = [LoraConfig(rank=4), QloraConfig(rank=4)]


def blank_of(folder: Path) -> Blank:
    blank = blank_base(folder, ModelConfig(name=str(folder)), torch.float32, CPU)
    assert isinstance(blank, Blank)
    return blank


def learned(model: Any, adapter: AdapterConfig) -> Attached:
    """An adapter that changes what the model says."""
    attached = attach(model, adapter, seed=0, device=CPU)
    torch.manual_seed(1)
    for layer in lora_layers(attached.model):
        torch.nn.init.normal_(layer.lora_B, std=0.1)
    return attached


@pytest.mark.parametrize("adapter", ADAPTERS, ids=["lora", "qlora"])
def test_its_logits_are_those_of_the_whole_model(adapter: LoraConfig, tiny_folder: Path) -> None:
    whole = learned(load_base(tiny_folder, ModelConfig(name=str(tiny_folder)), CPU), adapter)
    blank = blank_of(tiny_folder)
    attached = learned(blank.copy().model, adapter)
    with streamed(replace(blank, model=attached.model), CPU):
        found = logits(attached.model)
    assert torch.equal(found, logits(whole.model))


def test_no_two_blocks_are_there_at_once(tiny_folder: Path) -> None:
    blank = blank_of(tiny_folder)
    layers = list(decoder(blank.model).layers)
    seen: list[list[bool]] = []
    for layer in layers:
        layer.mlp.register_forward_hook(
            lambda *_: seen.append([not own.mlp.up_proj.weight.is_meta for own in layers])
        )
    with streamed(blank, CPU):
        logits(blank.model)
    assert seen == [[True, False], [False, True]]
    assert all(parameter.is_meta for parameter in blank.model.parameters())
    assert blank.model.lm_head.weight is blank.model.model.embed_tokens.weight


@pytest.mark.parametrize("adapter", ADAPTERS, ids=["lora", "qlora"])
def test_an_export_that_is_another_adapter_is_refused(
    adapter: LoraConfig, tiny_folder: Path, tmp_path: Path
) -> None:
    blank = blank_of(tiny_folder)
    attached = learned(blank.copy().model, adapter)
    export_adapter(attached, adapter, BaseName(str(tiny_folder)), tmp_path)
    verify_streamed(attached, blank, tmp_path)

    file = tmp_path / "adapter_model.safetensors"
    state = load_file(file)
    name = next(iter(state))
    save_file({**state, name: state[name] + 1e-3}, file, metadata={"format": "pt"})
    with pytest.raises(TrainError, match="is not what was trained"):
        verify_streamed(attached, blank, tmp_path)
