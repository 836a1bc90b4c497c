"""Workers that read their own rows hold together what one that reads everything holds."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

Seen = dict[str, Any]

KINDS = ("lora", "qlora", "qlora-single", "full")
CASES = [(name, kind) for name in ("llama", "qwen") for kind in KINDS]
WORKERS = 3  # so that no weight has the same number of rows on each
SIZES: dict[str, Any] = {
    "vocab_size": 301,  # no number of workers divides it
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models in bf16: in several files, and in one with tied embeddings and with biases."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    llama = LlamaForCausalLM(LlamaConfig(**SIZES)).to(torch.bfloat16)
    llama.save_pretrained(root / "llama", max_shard_size="60KB")
    assert (root / "llama" / "model.safetensors.index.json").is_file()
    qwen = Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True)).to(torch.bfloat16)
    for name, bias in qwen.named_parameters():
        if name.endswith("bias"):
            bias.data.normal_()
    qwen.save_pretrained(root / "qwen")
    return {"llama": root / "llama", "qwen": root / "qwen"}


@pytest.fixture(scope="module")
def seen(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[Seen]:
    """What each of the workers saw."""
    root, program = tmp_path_factory.mktemp("fill"), Path(__file__).with_name("fill_worker.py")
    subprocess.run([sys.executable, program, root, *folders.values()], check=True, timeout=300)
    return [json.loads((root / f"{rank}.json").read_text()) for rank in range(WORKERS)]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_shards_are_the_whole_model_bit_for_bit(name: str, kind: str, seen: list[Seen]) -> None:
    for worker in seen:
        found = worker[f"{name} {kind}"]
        assert found["same names"]
        assert found["differing"] == []
        assert found["tied"] == (name == "qwen")


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_worker_reads_its_share_of_the_files(
    name: str, kind: str, seen: list[Seen], folders: dict[str, Path]
) -> None:
    read = [worker[f"{name} {kind}"]["read"] for worker in seen]
    size = sum(file.stat().st_size for file in folders[name].glob("*.safetensors"))
    assert sum(read) == pytest.approx(size, rel=0.1)  # beside it there are the files' headers
    assert max(read) < 1.1 * size / WORKERS


def test_all_workers_train_the_same_weights(seen: list[Seen]) -> None:
    for case in seen[0]:
        names = [worker[case]["trained"] for worker in seen]
        assert all(own == names[0] for own in names)
        assert all("lora_" in name for name in names[0]) == ("lora" in case)
