"""Where a run starts that goes on from a published version."""

from pathlib import Path

from ftray import registry, storage
from ftray.config.run import FullConfig, LoraConfig, RunConfig
from ftray.model.adapter import Attached
from ftray.model.base import load_base
from ftray.model.export import load_adapter
from ftray.train.tuned import check_base


def start_from(ref: str, config: RunConfig, attached: Attached, folder: Path, root: str) -> None:
    """Fill in the weights of the published version that `adapter.init_from` names."""
    record = registry.resolve(root, ref)
    check_base(record, folder)
    published = registry.fetch_adapter(root, record, storage.local_cache(root))
    match config.adapter:
        case LoraConfig() as adapter:
            load_adapter(attached, adapter, published)
        case FullConfig():
            start = load_base(published, config.model, attached.model.device)
            attached.model.load_state_dict(start.state_dict())
