"""From a folder to a loaded model."""

import json
import shutil

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from ftray.config.run import ModelConfig
from ftray.errors import ModelError
from ftray.model.base import load_base, load_tokenizer

CPU = torch.device("cpu")


def test_auto_means_fp32_on_cpu(tiny_folder):
    model = load_base(tiny_folder, ModelConfig(), CPU)

    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert load_base(tiny_folder, ModelConfig(dtype="bfloat16"), CPU).dtype == torch.bfloat16


def test_a_model_without_position_ids_is_refused(tmp_path):
    config = MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=32, state_size=4)
    MambaForCausalLM(config).save_pretrained(tmp_path)

    with pytest.raises(ModelError, match="takes no position ids"):
        load_base(tmp_path, ModelConfig(name="mamba", attention="eager"), CPU)


def test_cut_off_weights_are_an_error_in_one_line(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "cut")
    with (tmp_path / "cut" / "model.safetensors").open("r+b") as file:
        file.truncate(2000)

    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load_base(tmp_path / "cut", ModelConfig(), CPU)

    assert "cut off" in caught.value.hint


def test_an_unknown_architecture_is_an_error_in_one_line(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / "config.json").write_text(json.dumps({"model_type": "nonesuch"}))

    with pytest.raises(ModelError, match="cannot be loaded"):
        load_base(folder, ModelConfig(), CPU)


def test_a_folder_without_a_tokenizer_says_so(tmp_path):
    with pytest.raises(ModelError, match="the tokenizer cannot be loaded"):
        load_tokenizer(tmp_path)
