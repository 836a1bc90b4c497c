"""Where a run starts that goes on from a published version."""

from pathlib import Path

from ftray import registry, storage
from ftray.config.run import FullConfig, LoraConfig, RunConfig
from ftray.model.adapter import Attached
from ftray.model.export import load_adapter
from ftray.train.tuned import check_base


def starting_weights(config: RunConfig, folder: Path, root: str) -> Path:
    """The folder of the weights that a run starts with; `folder` is the base model's.

    Weights that are all trained may be those of a published version, by `adapter.init_from`.
    """
    match config.adapter:
        case FullConfig(init_from=str(ref)):
            return _published(ref, folder, root)
        case _:
            return folder


def start_adapter(config: RunConfig, attached: Attached, folder: Path, root: str) -> None:
    """Fill in the published adapter that `adapter.init_from` names, if it names one."""
    match config.adapter:
        case LoraConfig(init_from=str(ref)) as adapter:
            load_adapter(attached, adapter, _published(ref, folder, root))


def _published(ref: str, folder: Path, root: str) -> Path:
    record = registry.resolve(root, ref)
    check_base(record, folder)
    return registry.fetch_adapter(root, record, storage.local_cache(root))
