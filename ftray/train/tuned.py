"""A published model in one process: loaded as it was trained, and measured on data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ftray import registry, storage
from ftray.config.base import apply, parse_overrides, validated
from ftray.config.data import sources_of
from ftray.config.paths import anchored
from ftray.config.run import LoraConfig, ModelConfig, RunConfig
from ftray.data.sources import check_sources, read_rows
from ftray.errors import ConfigError, ModelError
from ftray.model.adapter import attach, load_adapter_state
from ftray.model.base import load_base, load_tokenizer
from ftray.model.export import read_adapter_weights
from ftray.model.folder import fetch, fingerprint
from ftray.model.foreign import check_adapter
from ftray.model.lora import Routing
from ftray.model.loss import LanguageModel
from ftray.registry import AdapterRecord
from ftray.train.evaluate import EvalResult, measure


def evaluate(ref: str, data: str, overrides: Sequence[str] = (), *, root: str) -> EvalResult:
    """Measure a published model on a data file, read in the format of its training data.

    Overrides are run keys, such as `data.format=messages`.
    """
    record = registry.resolve(root, ref)
    config = _eval_config(record, data, overrides)
    check_sources(sources_of(data), config.data)
    model, tokenizer = load_tuned(record, root)
    rows = list(read_rows(sources_of(data), config.data))
    return measure(model, tokenizer, rows, config.data)


def load_tuned(record: AdapterRecord, root: str) -> tuple[LanguageModel, PreTrainedTokenizerBase]:
    """Load a published model, and the tokenizer and chat template that travel with it."""
    folder = registry.fetch_adapter(root, record, storage.local_cache(root))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = _model_config(record)
    if record.kind == "full":
        whole = LanguageModel(load_base(folder, model, device), Routing(device))
        return whole, load_tokenizer(folder)
    base_folder = fetch(model, root)
    check_base(record, base_folder)
    base = load_base(base_folder, model, device)
    attached = attach(base, _adapter_config(record, folder, base_folder), seed=0)
    load_adapter_state(attached.model, read_adapter_weights(folder))
    return LanguageModel(attached.model, attached.routing), load_tokenizer(folder)


def check_base(record: AdapterRecord, base_folder: Path) -> None:
    """Refuse a base model that is not the one an adapter was trained on."""
    if fingerprint(base_folder) != record.base.fingerprint:
        raise ModelError(
            f"{record.ref} was trained on another '{record.base.name}' than the one in"
            f" {base_folder}: the fingerprints differ",
            "pin the base by model.revision, or train again on this one",
        )


def _eval_config(record: AdapterRecord, data: str, overrides: Sequence[str]) -> RunConfig:
    tree: dict[str, Any] = record.config or {"name": record.name, "train": {"epochs": 1}}
    changes: dict[str, Any] = {"data.train": data, "data.eval": None}
    if tree.get("data", {}).get("chat_template", "model") != "none":
        changes["data.chat_template"] = "model"  # its own template lies with its tokenizer
    given = parse_overrides(overrides)
    if foreign := [key for key in given if key.partition(".")[0] != "data"]:
        raise ConfigError(
            f"an evaluation is not changed by {', '.join(foreign)}",
            "only data.* can be set: the model is what was published",
        )
    changes |= given
    anchored_changes = {key: anchored(value, Path.cwd(), key) for key, value in changes.items()}
    return validated(RunConfig, apply(tree, {**anchored_changes, "eval.patience": None}), "eval")


def _model_config(record: AdapterRecord) -> ModelConfig:
    if record.config:
        return validated(RunConfig, record.config, record.ref).model
    return ModelConfig(name=record.base.name, revision=record.base.revision)


def _adapter_config(record: AdapterRecord, folder: Path, base_folder: Path) -> LoraConfig:
    if record.config:
        adapter = validated(RunConfig, record.config, record.ref).adapter
        if isinstance(adapter, LoraConfig):
            return adapter
    return check_adapter(folder, base_folder)
