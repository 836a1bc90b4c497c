"""What vLLM is given of an adapter computes what the adapter does."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from ftray.errors import ModelError
from ftray.model.export import load_with_peft
from ftray.serve.vllm.copies import (
    check_adapter_for_vllm,
    linear_shapes,
    write_copy,
    write_nothing,
)
from ftray.serve.vllm.options import padded_rank
from tests.unit.serve.engine.conftest import SHAPES, write_adapter


@pytest.fixture(scope="module", params=range(len(SHAPES)))
def adapter(request, tiny_folder, tmp_path_factory):
    """PEFT folders of every shape: rslora, odd ranks, patterns of ranks and alphas."""
    folder = tmp_path_factory.mktemp("adapter") / "plain"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.param)
        write_adapter(tiny_folder, folder, SHAPES[request.param])
    return folder


def test_a_copy_of_a_larger_rank_computes_the_same(adapter, tiny_folder, tmp_path):
    weights = write_copy(adapter, tmp_path / "copy", linear_shapes(tiny_folder), 64)
    tensors = load_file(tmp_path / "copy" / "adapter_model.safetensors")
    ranks = {t.shape[0] for name, t in tensors.items() if "lora_A" in name}
    assert ranks == {padded_rank(weights.rank)}
    config = json.loads((tmp_path / "copy" / "adapter_config.json").read_text())
    assert config["lora_alpha"] == config["r"]  # the scale is in B
    torch.testing.assert_close(
        logits(tiny_folder, tmp_path / "copy"), logits(tiny_folder, adapter), rtol=1e-5, atol=1e-5
    )
    assert not torch.allclose(logits(tiny_folder, adapter), logits(tiny_folder, None), atol=1e-2)


def logits(base_folder, folder):
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    tuned: PeftModel | None = None if folder is None else load_with_peft(model, folder)
    ids = torch.arange(3, 200).reshape(1, -1)
    with torch.no_grad():
        return (tuned or model)(ids).logits


@pytest.mark.parametrize(("rank", "padded"), [(1, 1), (2, 8), (8, 8), (33, 64), (257, 320)])
def test_ranks_are_rounded_up_to_what_vllm_has(rank, padded):
    assert padded_rank(rank) == padded


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"r": 4}, "ranks 8 and 8"),
    ],
)
def test_what_vllm_cannot_run_is_told_before_it_is_served(tiny_folder, tmp_path, change, reason):
    folder = tmp_path / "odd"
    with torch.random.fork_rng(devices=[]):
        write_adapter(tiny_folder, folder, SHAPES[0])
    check_adapter_for_vllm(folder, tiny_folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=reason):
        check_adapter_for_vllm(folder, tiny_folder)


def test_a_rank_above_the_engines_is_refused_with_the_setting_to_change(tiny_folder, tmp_path):
    with torch.random.fork_rng(devices=[]):
        write_adapter(tiny_folder, tmp_path / "wide", {**SHAPES[0], "r": 40})
    with pytest.raises(ModelError, match=r"rank is 40.*up to 32\n.*largest_rank"):
        check_adapter_for_vllm(tmp_path / "wide", tiny_folder, 32)


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")  # it has one layer only
def test_the_adapter_of_rows_without_one_changes_nothing(tiny_folder, tmp_path):
    write_nothing(tmp_path / "nothing", linear_shapes(tiny_folder))
    assert torch.equal(logits(tiny_folder, tmp_path / "nothing"), logits(tiny_folder, None))
