"""Settings that are allowed but rarely meant."""

from glob import glob
from pathlib import Path

from ftray.config.data import SourceConfig, sources_of
from ftray.config.paths import is_path
from ftray.config.run import FullConfig, LoraConfig, RunConfig


def advice(config: RunConfig) -> tuple[str, ...]:
    """Return one sentence for each doubtful setting, with the setting to try."""
    about = (_about_model, _about_rates, _about_steps, _about_data)
    return tuple(sentence for look in about for sentence in look(config))


def _about_model(config: RunConfig) -> list[str]:
    name = config.model.name
    is_gone = is_path(name) and not Path(name).expanduser().is_dir()
    return [f"model.name: no folder at {name}"] if is_gone else []


def _about_rates(config: RunConfig) -> list[str]:
    rate, size = config.train.learning_rate, config.train.global_batch_size
    found = []
    match config.adapter:
        case FullConfig() if rate >= 1e-4:
            found.append(f"train.learning_rate={rate:g} is high for full fine-tuning: try 1e-5")
        case LoraConfig() if rate < 2e-5:
            found.append(f"train.learning_rate={rate:g} is low for an adapter: try 2e-4")
        case LoraConfig() if size > 32:
            # Schulman et al. 2025, "LoRA Without Regret": the loss falls behind full fine-tuning's
            # as batches grow, at any rank.
            found.append(f"train.global_batch_size={size} is large for an adapter: try 32 or less")
    return found


def _about_steps(config: RunConfig) -> list[str]:
    steps = config.train.max_steps
    if steps is None:
        return []
    found = []
    if config.train.warmup_steps > steps // 2:
        found.append(
            f"train.warmup_steps={config.train.warmup_steps} is over half of {steps} steps"
        )
    if config.checkpoint.every_steps > steps:
        every = config.checkpoint.every_steps
        found.append(f"checkpoint.every_steps={every}: {steps} steps are saved at the end only")
    if config.eval.every_steps is not None and config.eval.every_steps > steps:
        found.append(f"eval.every_steps={config.eval.every_steps}: only the end is measured")
    return found


def _about_data(config: RunConfig) -> list[str]:
    found = []
    for key, paths in (("data.train", config.data.train), ("data.eval", config.data.eval)):
        gone = [source.name for source in sources_of(paths) if not _exists(source)]
        found += [f"{key}: nothing at {path}" for path in gone]
    template = config.data.chat_template
    if template not in ("model", "none") and not Path(template).is_file():
        found.append(f"data.chat_template: no file at {template}")
    if config.data.eval is None and config.data.eval_fraction is None:
        found.append("data.eval is not set: overfitting will not be seen")
    if config.model.trust_remote_code:
        found.append(f"model.trust_remote_code: Python code of '{config.model.name}' will run here")
    return found


def _exists(source: SourceConfig) -> bool:
    path = source.path
    if path is None or "://" in path:
        return True  # not asked over the network
    return Path(path).exists() or bool(glob(path, recursive=True))
