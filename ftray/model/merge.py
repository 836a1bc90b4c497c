"""Fold an adapter into its base model: one folder that needs neither PEFT nor ftray."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel

from ftray.config.run import ModelConfig
from ftray.errors import ModelError, StorageError
from ftray.model.base import load_base, load_tokenizer, resolve_dtype
from ftray.model.export import compare, export_full, load_with_peft, logits


def merge(adapter_folder: Path, base_folder: Path, out: Path, model: ModelConfig) -> float:
    """Write base + scaling·B·A in the precision of `model.dtype`; `out` must not exist.

    The base is read and merged in fp32 on the CPU, whatever it was trained in, and rounded once at
    the end: 4 bytes a weight are needed. Before that, logits of the merged model are compared with
    the adapter's; their largest difference, as a share of the largest logit, is returned. `out`
    appears whole.
    """
    if out.exists():
        raise ModelError(f"{out} exists already", "name a folder that does not")
    cpu = torch.device("cpu")
    with _appearing(out) as folder:
        base = load_base(base_folder, model.model_copy(update={"dtype": "float32"}), cpu)
        tuned = load_with_peft(base, adapter_folder)
        expected = logits(base)  # PEFT changed it in place: these are the adapter's
        merged: PreTrainedModel = tuned.merge_and_unload(safe_merge=True)  # refuses NaN
        difference = compare(logits(merged), expected, "the merged model")
        nn.Module.to(merged, resolve_dtype(model, cpu))
        own = (adapter_folder / "tokenizer_config.json").is_file()
        export_full(merged, load_tokenizer(adapter_folder if own else base_folder), folder)
    return difference


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """Yield a new folder beside `out` that takes its place at the end, and is gone on failure."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as hidden:
            folder = Path(hidden) / out.name
            folder.mkdir()
            yield folder
            folder.rename(out)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise StorageError(f"{out} cannot be written: {reason}", "name another folder") from None
