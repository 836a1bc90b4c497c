"""Adapters and models out and in again, against plain PEFT and transformers."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from ftray.config.run import FullConfig, LoraConfig, ModelConfig, QloraConfig
from ftray.errors import ModelError, StorageError, TrainError
from ftray.model.adapter import Attached, attach
from ftray.model.base import load_base, load_tokenizer
from ftray.model.export import (
    BaseName,
    export_adapter,
    export_full,
    load_adapter,
    logits,
    verify_adapter,
    verify_full,
)
from ftray.model.foreign import check_adapter
from ftray.model.merge import merge

pytestmark = pytest.mark.filterwarnings(  # PEFT 0.21 reads what transformers 5.23 renamed
    "ignore:`is_gradient_checkpointing`:FutureWarning",
    "ignore:Setting `save_embedding_layers`:UserWarning",
    "ignore:Model has `tie_word_embeddings=True`:UserWarning",  # a test adapts the embedding
)

CPU = torch.device("cpu")
FP32 = ModelConfig(dtype="float32")
ADAPTERS = [
    LoraConfig(rank=4, alpha=8.0),
    LoraConfig(rank=4, alpha=6.5, rslora=True, dropout=0.1),
    LoraConfig(rank=2, target=["q_proj", "mlp.down_proj"]),
    QloraConfig(rank=4),
]


def trained(folder, adapter, model=FP32) -> Attached:
    """An adapter with weights as after training: B is not zero."""
    attached = attach(load_base(folder, model, CPU), adapter, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in attached.trainable.items():
            if "lora_B" in name:
                parameter.normal_(std=0.2, generator=generator)
    return attached


@pytest.fixture
def exported(tiny_folder, tmp_path):
    adapter = LoraConfig(rank=4, alpha=8.0)
    attached = trained(tiny_folder, adapter)
    export_adapter(attached, adapter, BaseName("tiny"), tmp_path / "adapter")
    return attached, tmp_path / "adapter"


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda a: f"{a.method} {a.target} {a.rslora}")
def test_plain_peft_gives_the_same_logits(tiny_folder, tmp_path, adapter):
    attached = trained(tiny_folder, adapter)
    export_adapter(attached, adapter, BaseName("tiny", "main"), tmp_path)

    verify_adapter(attached, tmp_path, tiny_folder, FP32)

    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    before = logits(base)
    assert (logits(attached.model) - before).abs().max() > 0.1
    if not isinstance(adapter, QloraConfig):
        PeftModel.from_pretrained(base, str(tmp_path))
        torch.testing.assert_close(logits(base), logits(attached.model), rtol=0, atol=1e-4)


def test_a_damaged_adapter_does_not_pass(tiny_folder, exported):
    attached, folder = exported
    state = load_file(folder / "adapter_model.safetensors")
    layer = "model.layers.1.mlp.up_proj"
    damaged = f"base_model.model.{layer}.lora_B.weight"
    save_file({**state, damaged: state[damaged] * 1.05}, folder / "adapter_model.safetensors")

    with pytest.raises(TrainError, match=f"is not what was trained: {layer}"):
        verify_adapter(attached, folder, tiny_folder, FP32)


def test_another_scaling_does_not_pass(tiny_folder, exported):
    attached, folder = exported
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 8.1}))

    with pytest.raises(TrainError, match="is not what was trained"):
        verify_adapter(attached, folder, tiny_folder, FP32)


def test_another_base_does_not_pass(tiny_folder, tmp_path, exported):
    attached, folder = exported
    other = shutil.copytree(tiny_folder, tmp_path / "other")
    state = load_file(other / "model.safetensors")
    state["model.norm.weight"] *= 1.01
    save_file(state, other / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(TrainError, match=r"gives other logits .* they differ by [1-9]"):
        verify_adapter(attached, folder, other, FP32)


@pytest.mark.parametrize("method", [LoraConfig, QloraConfig])
def test_a_bf16_adapter_passes(tiny_folder, tmp_path, method):
    bf16, adapter = ModelConfig(dtype="bfloat16"), method(rank=4)
    attached = trained(tiny_folder, adapter, bf16)
    export_adapter(attached, adapter, BaseName("tiny"), tmp_path)

    verify_adapter(attached, tmp_path, tiny_folder, bf16)


def test_nan_does_not_pass(tiny_folder, exported):
    attached, folder = exported
    next(iter(attached.trainable.values())).data.fill_(torch.nan)

    with pytest.raises(TrainError, match="is not what was trained"):
        verify_adapter(attached, folder, tiny_folder, FP32)


def test_an_exported_adapter_is_loaded_again_bit_for_bit(tiny_folder, exported):
    attached, folder = exported
    adapter = LoraConfig(rank=4, alpha=8.0)
    fresh = attach(load_base(tiny_folder, FP32, CPU), adapter, seed=7)

    load_adapter(fresh, adapter, folder)

    assert torch.equal(logits(fresh.model), logits(attached.model))


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (LoraConfig(rank=8, alpha=8.0), "rank 4, the run says adapter.rank=8"),
        (LoraConfig(rank=4, alpha=16.0), "alpha 8.0, the run says adapter.alpha=16.0"),
        (LoraConfig(rank=4, alpha=8.0, rslora=True), "rslora False"),
        (LoraConfig(rank=4, alpha=8.0, target=["q_proj"]), "it has also model.layers.0.mlp"),
    ],
)
def test_starting_from_an_unlike_adapter_names_the_difference(
    tiny_folder, exported, adapter, message
):
    attached = attach(load_base(tiny_folder, FP32, CPU), adapter, seed=0)

    with pytest.raises(ModelError, match=message):
        load_adapter(attached, adapter, exported[1])


def test_a_full_model_is_loaded_again_with_the_same_logits(tiny_folder, tmp_path):
    attached = attach(load_base(tiny_folder, FP32, CPU), FullConfig(), seed=0)
    with torch.no_grad():
        for parameter in attached.trainable.values():
            parameter.mul_(1.1)

    export_full(attached.model, load_tokenizer(tiny_folder), tmp_path)

    verify_full(attached.model, tmp_path, FP32)
    assert json.loads((tmp_path / "config.json").read_text())["use_cache"] is True
    assert load_tokenizer(tmp_path).chat_template == load_tokenizer(tiny_folder).chat_template


def test_a_merged_model_needs_no_adapter(tiny_folder, tmp_path, exported):
    attached, folder = exported

    difference = merge(folder, tiny_folder, tmp_path / "merged", FP32)

    assert difference < 1e-5
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(plain), logits(attached.model), rtol=0, atol=1e-4)
    assert load_tokenizer(tmp_path / "merged").chat_template
    with pytest.raises(ModelError, match="exists already"):
        merge(folder, tiny_folder, tmp_path / "merged", FP32)


def test_merging_in_bf16_stays_within_rounding(tiny_folder, tmp_path, exported):
    merge(exported[1], tiny_folder, tmp_path / "merged", ModelConfig(dtype="bfloat16"))

    state = load_file(tmp_path / "merged" / "model.safetensors")
    assert {values.dtype for values in state.values()} == {torch.bfloat16}


def foreign(folder, tiny_folder, **settings) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    config = PeftConfig(
        task_type="CAUSAL_LM", **{"target_modules": ["q_proj", "up_proj"], **settings}
    )
    get_peft_model(base, config).save_pretrained(str(folder))


def test_a_foreign_adapter_is_described_as_a_run_would_make_it(tiny_folder, tmp_path):
    foreign(tmp_path, tiny_folder, r=4, lora_alpha=12, use_rslora=True, lora_dropout=0.1)

    found = check_adapter(tmp_path, tiny_folder)

    names = [
        f"model.layers.{i}.{part}" for i in (0, 1) for part in ("mlp.up_proj", "self_attn.q_proj")
    ]
    assert found == LoraConfig(rank=4, alpha=12, rslora=True, dropout=0.1, target=sorted(names))
    load_adapter(attach(load_base(tiny_folder, FP32, CPU), found, seed=0), found, tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"rank_pattern": {"q_proj": 2}}, r"found \[2, 8\]"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "no part of plain LoRA"),
    ],
)
def test_a_foreign_adapter_beyond_plain_lora_is_refused(tiny_folder, tmp_path, settings, message):
    foreign(tmp_path, tiny_folder, **settings)

    with pytest.raises(ModelError, match=message):
        check_adapter(tmp_path, tiny_folder)


def test_an_adapter_of_another_base_is_refused(tiny_folder, tmp_path):
    foreign(tmp_path / "adapter", tiny_folder)
    other = shutil.copytree(tiny_folder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "intermediate_size": 96}))

    with pytest.raises(ModelError, match="goes from 64 to 128, this base's from 64 to 96"):
        check_adapter(tmp_path / "adapter", other)


def test_an_adapter_of_fewer_layers_is_refused(tiny_folder, tmp_path):
    foreign(tmp_path / "adapter", tiny_folder)
    deeper = shutil.copytree(tiny_folder, tmp_path / "deeper")
    config = json.loads((deeper / "config.json").read_text())
    (deeper / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))

    with pytest.raises(ModelError, match=r"none for 2 others .* as model\.layers\.2\.") as refused:
        check_adapter(tmp_path / "adapter", deeper)

    assert refused.value.hint.startswith("it names '")


def test_other_kinds_of_peft_are_refused(tiny_folder, tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "PROMPT_TUNING"}')

    with pytest.raises(ModelError, match="type is PROMPT_TUNING, expected LORA"):
        check_adapter(tmp_path, tiny_folder)


def test_a_merged_model_that_cannot_be_written_is_told_before_the_work(tiny_folder, tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(StorageError, match="out cannot be written"):
        merge(tmp_path / "no-adapter", tiny_folder, tmp_path / "file" / "out", FP32)


def test_a_folder_without_an_adapter_says_so(tmp_path, tiny_folder):
    with pytest.raises(ModelError, match=r"no usable adapter_config\.json"):
        check_adapter(tmp_path, tiny_folder)
