"""What is handed to a packed trainer, and what comes back when a trial fails; no torch here."""

from dataclasses import dataclass

from ftray.config.run import LoraConfig, RunConfig
from ftray.errors import ConfigError, TrainError

# Of the data section, what decides how finished tokens are read, and not which they are.
_READING = {"packing", "max_length", "overflow", "duplicates", "cache_gb"}


@dataclass(frozen=True)
class Trial:
    """One trial: a whole run's config with this trial's values."""

    id: str
    config: RunConfig


@dataclass(frozen=True)
class Capacity:
    """How much a host may hold at once.

    `tokens` bounds a joint micro-batch, padding included; `memory` is what the process may take in
    bytes, None where that is unknown. `graphs`: whether it may hold recordings beside that.
    """

    slots: int
    tokens: int
    memory: int | None = None
    graphs: bool = True


class TrialError(TrainError):
    """One trial cannot go on; the others on its host can."""


def adapter_of(config: RunConfig) -> LoraConfig:
    """Return the trial's adapter; ConfigError where all weights are trained."""
    if not isinstance(config.adapter, LoraConfig):
        raise ConfigError(
            f"adapter.method={config.adapter.method}: a trial that trains every weight cannot"
            " share a base",
            "set adapter.method to lora or qlora",
        )
    return config.adapter


def check_shares(base: RunConfig, trial: Trial) -> None:
    """Raise ConfigError, naming the key, where a trial cannot be trained on the base's copy."""
    config = trial.config
    if differing := _differing(base, config):
        raise ConfigError(
            f"trial {trial.id} cannot share the base model and tokens of this search: it differs in"
            f" {', '.join(differing)}",
            "vary adapter.* and train.*, or search with a base for each trial",
        )
    adapter = adapter_of(config)
    if adapter.init_from is not None:
        raise ConfigError(
            f"trial {trial.id}: adapter.init_from is not supported where trials share a base",
            "search with a base for each trial",
        )
    if config.train.optimizer != "adamw":
        raise ConfigError(
            f"trial {trial.id}: train.optimizer={config.train.optimizer} is not supported where"
            " trials share a base",
            "set train.optimizer=adamw",
        )
    if (policy := base.train.activation_checkpointing) in ("pointwise", "mlp", "offload"):
        raise ConfigError(
            f"train.activation_checkpointing={policy} is not supported where trials share a base",
            "set train.activation_checkpointing to none or layer",
        )


def _differing(base: RunConfig, config: RunConfig) -> list[str]:
    ours, theirs = _fixed(base), _fixed(config)
    return [key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)]


def _fixed(config: RunConfig) -> dict[str, object]:
    """What all trials of a base have in common, by dotted key."""
    sections = {
        "model": config.model.model_dump(),
        "data": config.data.model_dump(exclude=_READING),
        "adapter": config.adapter.model_dump(
            include={"method", "base_precision", "double_quantization"}
        ),
    }
    return {
        f"{name}.{key}": value for name, tree in sections.items() for key, value in tree.items()
    }
