"""Relative paths of a run file, counted from the right folder."""

import os
import re
from pathlib import Path
from typing import Any

PATH_KEYS = (
    "data.train",
    "data.train.path",
    "data.train.hub",
    "data.eval",
    "data.eval.path",
    "data.eval.hub",
    "data.chat_template",
    "storage",
    "model.name",
)


def anchored(value: Any, folder: Path, key: str = "") -> Any:
    """Return the tree under the dotted `key` with its relative paths made absolute from `folder`.

    URIs, Hugging Face ids and the words that `data.chat_template` knows stay as they are.
    """
    if isinstance(value, dict):
        return {k: anchored(v, folder, f"{key}.{k}" if key else str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [anchored(item, folder, key) for item in value]
    if isinstance(value, str) and key in PATH_KEYS and _is_relative_path(key, value):
        return os.path.normpath(folder / Path(value).expanduser())
    return value


def is_path(name: str) -> bool:
    """Say whether a model's name is a folder; else it is a hub id or the built-in model."""
    return re.match(r"[.~/]", name) is not None


def _is_relative_path(key: str, value: str) -> bool:
    match key:
        case "model.name" | "data.train.hub" | "data.eval.hub":
            return is_path(value)
        case "data.chat_template":
            return value not in ("", "model", "none")
        case _:
            return value != "" and "://" not in value
