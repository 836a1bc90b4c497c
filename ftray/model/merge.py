"""Fold an adapter into its base model: one folder that needs neither PEFT nor ftray."""

import shutil
import tempfile
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ftray.config.run import ModelConfig
from ftray.errors import ModelError
from ftray.model.base import load_base, load_tokenizer
from ftray.model.export import compare, export_full, load_with_peft, logits


def merge(adapter_folder: Path, base_folder: Path, out: Path, model: ModelConfig) -> float:
    """Write base + scaling·B·A in the precision of `model.dtype`; `out` must not exist.

    The base is read at that precision, never at 4 bits. Logits of the merged model are compared
    with the adapter's; their largest difference, as a share of the largest logit, is returned.
    `out` appears whole.
    """
    if out.exists():
        raise ModelError(f"{out} exists already", "name a folder that does not")
    base = load_base(base_folder, model, torch.device("cpu"))
    tuned = load_with_peft(base, adapter_folder)
    expected = logits(base)  # PEFT changed it in place: these are the adapter's
    merged: PreTrainedModel = tuned.merge_and_unload(safe_merge=True)  # refuses NaN
    difference = compare(logits(merged), expected, "the merged model")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    try:
        own = (adapter_folder / "tokenizer_config.json").is_file()
        export_full(merged, load_tokenizer(adapter_folder if own else base_folder), temporary)
        temporary.chmod(0o755)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return difference
