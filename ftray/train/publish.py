"""From the best checkpoint of a run to an immutable version in the registry, verified."""

import logging
import tempfile
from pathlib import Path

import torch

from ftray import registry, runs, storage
from ftray.config.paths import anchored
from ftray.config.run import BUILTIN_MODEL, FullConfig, LoraConfig, ModelConfig, RunConfig
from ftray.data.rendering.template import ChatTemplate
from ftray.errors import TrainError
from ftray.model.adapter import Attached
from ftray.model.base import fetch, fingerprint, load_tokenizer, tokenizer_digest
from ftray.model.export import (
    BaseName,
    export_adapter,
    export_full,
    verify_adapter,
    verify_full,
)
from ftray.model.foreign import check_adapter
from ftray.model.merge import merge
from ftray.registry import AdapterRecord, BaseModel
from ftray.runs import CheckpointRecord, Run
from ftray.storage.patience import patient
from ftray.train import checkpoint
from ftray.train.trainee import load_for_training

logger = logging.getLogger(__name__)


def publish_run(config: RunConfig, run: Run, template: str | None) -> AdapterRecord:
    """Export a run's result, load it back, compare, and publish it; the same weights only once.

    The best checkpoint by eval loss is taken, the newest where there was no evaluation. `template`
    is the chat template if the run brought its own. It takes the memory of two base models: ours,
    and the one that the export is loaded onto.
    """
    chosen = _chosen(run)
    folder = fetch(config.model, run.root)
    attached = load_for_training(config, folder, _device())
    with tempfile.TemporaryDirectory() as made, patient():
        checkpoint.load(run, chosen, attached.trainable)
        out = Path(made)
        _export(config, attached, folder, out, template)
        return _published(config, run, chosen, folder, out)


def publish_foreign(root: str, name: str, folder: Path, base: str | None) -> AdapterRecord:
    """Check a PEFT folder that was made elsewhere against its base, and publish it."""
    registry.check_adapter_name(name)
    model = ModelConfig(name=anchored(base or BUILTIN_MODEL, Path.cwd(), "model.name"))
    base_folder = fetch(model, root)
    adapter = check_adapter(folder, base_folder)
    tokenizer = load_tokenizer(base_folder)
    with tempfile.TemporaryDirectory() as made:
        out = Path(made)
        for file in sorted(folder.iterdir()):
            if file.is_file():
                (out / file.name).write_bytes(file.read_bytes())
        if not (out / "tokenizer_config.json").exists():
            tokenizer.save_pretrained(out)
        draft = AdapterRecord(
            name=name,
            kind="adapter",
            base=BaseModel(name=model.name, revision=None, fingerprint=fingerprint(base_folder)),
            method="lora",
            rank=adapter.rank,
            tokenizer_digest=tokenizer_digest(out),
            template_digest=_template_digest(out),
        )
        return registry.publish(root, out, draft)


def merge_published(root: str, ref: str, out: Path, dtype: str) -> float:
    """Merge a published adapter into its base; returns the largest relative change of a logit."""
    record = registry.resolve(root, ref)
    if record.kind == "full":
        raise TrainError(
            f"{record.ref} is a whole model: there is nothing to merge",
            f"its folder is {registry.adapter_folder(root, record)}",
        )
    changes = {"name": record.base.name, "revision": record.base.revision, "dtype": dtype}
    model = ModelConfig.model_validate(changes)
    adapter = registry.fetch_adapter(root, record, storage.local_cache(root))
    return merge(adapter, fetch(model, root), out, model)


def _chosen(run: Run) -> CheckpointRecord:
    records = [record for record in runs.checkpoints(run) if not runs.verify(run, record)]
    best = [record for record in records if record.best]
    if not records:
        raise TrainError(f"run '{run.name}' has no sound checkpoint", "train it again")
    return (best or records)[0]


def _export(
    config: RunConfig, attached: Attached, folder: Path, out: Path, template: str | None
) -> None:
    tokenizer = load_tokenizer(folder, trust_remote_code=config.model.trust_remote_code)
    if template is not None:
        tokenizer.chat_template = template
    match config.adapter:
        case LoraConfig() as adapter:
            base = BaseName(config.model.name, config.model.revision)
            export_adapter(attached, adapter, base, out)
            tokenizer.save_pretrained(out)
            verify_adapter(attached, out, folder, config.model)
        case FullConfig():
            export_full(attached.model, tokenizer, out)
            verify_full(attached.model, out, config.model)
    logger.info("verified: loaded back, it gives the same logits")


def _published(
    config: RunConfig, run: Run, chosen: CheckpointRecord, folder: Path, out: Path
) -> AdapterRecord:
    files = {file.name: storage.sha256(file) for file in out.iterdir()}
    for record in reversed(registry.versions(run.root, run.name)):
        if record.files == files:  # an earlier attempt was stopped right after publishing
            return record
    model, adapter = config.model, config.adapter
    print_of_base = fingerprint(folder)
    draft = AdapterRecord(
        name=run.name,
        kind="full" if isinstance(adapter, FullConfig) else "adapter",
        base=BaseModel(name=model.name, revision=model.revision, fingerprint=print_of_base),
        method=adapter.method,
        rank=None if isinstance(adapter, FullConfig) else adapter.rank,
        tokenizer_digest=tokenizer_digest(out),
        template_digest=_template_digest(out),
        metrics={"step": float(chosen.step), **chosen.metrics},
        config=config.model_dump(mode="json"),
    )
    return registry.publish(run.root, out, draft)


def _template_digest(folder: Path) -> str:
    return ChatTemplate(str(load_tokenizer(folder).chat_template or ""), {}).digest


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
