"""Sizes of models, read without torch."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from ftray.config.run import BUILTIN_MODEL, ModelConfig
from ftray.model.base import load_base
from ftray.model.shape import BUILTIN_SHAPE, flops_per_token, read_shape, shape_of


def test_a_shape_counts_the_parameters_that_the_model_has(tiny_folder):
    shape = shape_of(str(tiny_folder), None, "")

    model = load_base(tiny_folder, ModelConfig(), torch.device("cpu"))
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert (shape.layers, shape.heads, shape.kv_heads, shape.head_dim) == (2, 4, 2, 16)
    assert shape.linear["self_attn.k_proj"] == (64, 32)
    assert shape.linear["mlp.down_proj"] == (128, 64)
    assert len(shape.linear) == 7


def test_a_config_without_weights_is_read_as_a_llama(tiny_folder, tmp_path):
    shutil.copy(tiny_folder / "config.json", tmp_path)

    assert read_shape(tmp_path) == read_shape(tiny_folder)


def test_the_built_in_shape_is_known_before_it_is_unpacked():
    assert shape_of(BUILTIN_MODEL, None, "/nowhere") is BUILTIN_SHAPE
    assert BUILTIN_SHAPE.parameters == 134_515_008


def test_a_model_that_is_not_here_has_no_shape(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))

    assert shape_of("nobody/nothing", None, "") is None
    assert shape_of(str(tmp_path / "nothing"), None, "") is None


def test_a_cached_hub_model_has_a_shape(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    model, commit = tmp_path / "models--someone--tiny", "0" * 40
    shutil.copytree(tiny_folder, model / "snapshots" / commit)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)

    expected = read_shape(tiny_folder)
    assert shape_of("someone/tiny", None, "") == shape_of("someone/tiny", commit, "") == expected


@pytest.mark.parametrize("config", ["not json", json.dumps({"model_type": "gpt2", "n_embd": 8})])
def test_an_unfamiliar_config_gives_no_shape(tmp_path, config):
    (tmp_path / "config.json").write_text(config)

    assert read_shape(tmp_path) is None


def test_shapes_are_read_without_heavy_imports():
    heavy = "[m for m in ('torch', 'ray', 'transformers', 'peft') if m in sys.modules]"
    code = f"import sys, ftray.model.shape; print({heavy})"

    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert out.stdout.strip() == "[]"


def test_a_token_costs_four_flops_a_weight_with_a_frozen_base_and_six_without():
    weights = BUILTIN_SHAPE.parameters - (2 * 30 + 1) * 576  # the norms are no matrices
    assert flops_per_token(BUILTIN_SHAPE, 0, frozen_base=True) == 4 * weights
    assert flops_per_token(BUILTIN_SHAPE, 0, frozen_base=False) == 6 * weights


def test_attention_adds_in_proportion_to_the_length():
    at = [flops_per_token(BUILTIN_SHAPE, length, frozen_base=True) for length in (0, 1000, 2000)]
    assert at[2] - at[1] == pytest.approx(at[1] - at[0])
    # scores and sums of 9 heads of 64 in 30 layers: 4 FLOPs a pair of tokens, half of them masked,
    # once forward and twice backward
    assert at[1] - at[0] == 3 * 4 * 1000 / 2 * 9 * 64 * 30
