"""A model without weights: what the files must hold for each worker to read its own rows."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from ftray.config.run import ModelConfig
from ftray.errors import ModelError
from ftray.model.base import load_base
from ftray.model.blank import Blank, Whole, blank_base

CPU = torch.device("cpu")
SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
LONG = {"factor": 4.0, "original_max_position_embeddings": 128}
ROPES: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, **LONG},
    {"rope_type": "yarn", **LONG},
    {"rope_type": "dynamic", "factor": 2.0},
]


def made(folder: Path, dtype: torch.dtype = torch.float32) -> Blank | Whole:
    return blank_base(folder, ModelConfig(name=str(folder)), dtype, CPU)


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """A model in several files."""
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(tmp_path / "base", max_shard_size="60KB")
    return tmp_path / "base"


@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: rope["rope_type"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_but_the_weights_is_as_in_a_loaded_model(
    rope: dict[str, Any], dtype: str, tmp_path: Path
) -> None:
    LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=rope)).save_pretrained(tmp_path)
    blank = made(tmp_path, getattr(torch, dtype))
    loaded = load_base(tmp_path, ModelConfig(name=str(tmp_path), dtype=dtype), CPU)

    assert isinstance(blank, Blank)
    assert all(parameter.is_meta for parameter in blank.model.parameters())
    expected = dict(loaded.named_buffers())
    found = dict(blank.model.named_buffers())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    shapes = [
        {name: (values.shape, values.dtype) for name, values in model.named_parameters()}
        for model in (blank.model, loaded)
    ]
    assert shapes[0] == shapes[1]
    assert blank.model.config.to_dict() == loaded.config.to_dict()
    assert blank.model.generation_config.to_dict() == loaded.generation_config.to_dict()


def test_embeddings_stay_tied(tiny_folder: Path) -> None:
    blank = made(tiny_folder)

    assert isinstance(blank, Blank)
    assert blank.model.lm_head.weight is blank.model.model.embed_tokens.weight


def test_what_transformers_merges_is_loaded_whole(tmp_path: Path) -> None:
    MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=2)).save_pretrained(tmp_path)

    assert made(tmp_path) == Whole("transformers converts them")


def test_what_is_quantized_is_loaded_whole(several: Path) -> None:
    config = json.loads((several / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (several / "config.json").write_text(json.dumps(config))

    assert made(several) == Whole("they are quantized")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda name, values: {f"old.{name}": values}, "other names: old.model"),
        (lambda name, values: {name: values, "lm_head.weight": values}, "two in the files"),
    ],
)
def test_other_names_are_left_to_transformers(
    change: Callable[..., Any], reason: str, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    changed = {
        name: values.clone()
        for own in state
        for name, values in change(own, state[own]).items()
        if own == "model.embed_tokens.weight" or name != "lm_head.weight"
    }
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})

    match made(folder):
        case Whole(why):
            assert reason in why
        case _:
            pytest.fail("its names are not the model's")


def test_a_missing_file_is_named(several: Path) -> None:
    gone = sorted(several.glob("*.safetensors"))[1]
    gone.unlink()

    with pytest.raises(ModelError, match=f"{re.escape(str(gone))}: no such file"):
        made(several)


def test_a_file_that_was_cut_off_is_named(several: Path) -> None:
    cut = sorted(several.glob("*.safetensors"))[1]
    with cut.open("r+b") as file:
        file.truncate(2000)

    with pytest.raises(ModelError, match=re.escape(str(cut))) as caught:
        made(several)

    assert "cut off" in caught.value.hint


def test_a_file_without_its_tensor_is_named_with_it(several: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    index = json.loads((several / "model.safetensors.index.json").read_text())
    file = several / index["weight_map"][name]
    rest = {own: values for own, values in load_file(file).items() if own != name}
    save_file(rest or {"another": torch.zeros(1)}, file, metadata={"format": "pt"})

    with pytest.raises(ModelError, match=f"{re.escape(str(file))}: no usable {name}"):
        made(several)


def test_a_tensor_that_no_file_holds_is_named(several: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    path = several / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    del index["weight_map"][name]
    path.write_text(json.dumps(index))

    with pytest.raises(ModelError, match=f"no file holds {name}"):
        made(several)


def test_a_tensor_of_another_shape_is_named_with_its_file(several: Path) -> None:
    config = json.loads((several / "config.json").read_text())
    (several / "config.json").write_text(json.dumps({**config, "intermediate_size": 96}))

    with pytest.raises(ModelError) as caught:
        made(several)

    assert str(several / "model-0000") in str(caught.value)
    assert re.search(r"mlp\.\w+_proj\.weight has shape \[128, 64\]", str(caught.value))
    assert "it is [96, 64]" in str(caught.value)
