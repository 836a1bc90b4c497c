"""What differs between two configs of one run, as far as it changes the result."""

import json
from collections.abc import Mapping
from typing import Any

from ftray.config.run import RunConfig

# These say where, and in which portions, the same steps are computed.
_WITHOUT_EFFECT = (
    "scaling.",
    "checkpoint.",
    "publish.",
    "tracking",
    "storage",
    "eval.samples",
    "eval.sample_tokens",
    "train.micro_batch_size",
    "train.activation_checkpointing",
    "train.compile",
    "train.objective",
)


def changes(before: RunConfig, now: RunConfig) -> list[str]:
    """Return a line for each dotted key that changes the result and has another value now."""
    old, new = _flat(before.model_dump(mode="json")), _flat(now.model_dump(mode="json"))
    return [
        f"{key}: was {_shown(old, key)}, is {_shown(new, key)} now"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key) and not key.startswith(_WITHOUT_EFFECT)
    ]


def _flat(tree: Mapping[str, Any], start: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        inner = _flat(value, f"{start}{key}.") if isinstance(value, dict) else {start + key: value}
        flat |= inner
    return flat


def _shown(flat: Mapping[str, Any], key: str) -> str:
    return json.dumps(flat[key], ensure_ascii=False) if key in flat else "not set"
