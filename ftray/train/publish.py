"""From the best checkpoint of a run to an immutable version in the registry, verified."""

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from ftray import registry, runs, storage
from ftray.config.paths import anchored
from ftray.config.run import BUILTIN_MODEL, FullConfig, LoraConfig, ModelConfig, RunConfig
from ftray.data.rendering.template import ChatTemplate
from ftray.errors import TrainError
from ftray.model.adapter import Attached, attach
from ftray.model.base import load_tokenizer, resolve_dtype
from ftray.model.blank import Blank, blank_base
from ftray.model.export import (
    BaseName,
    export_adapter,
    export_full,
    verify_adapter,
    verify_full,
    verify_streamed,
)
from ftray.model.folder import fetch, fingerprint, tokenizer_digest
from ftray.model.foreign import check_adapter
from ftray.model.merge import merge
from ftray.registry import AdapterRecord, BaseModel, FoundBy
from ftray.runs import CheckpointRecord, Run
from ftray.storage.patience import patient
from ftray.train import checkpoint
from ftray.train.trainee import load_for_training

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Learned:
    """A model that has learned, and what its version's record says of it.

    `base` is the folder of the base model's files, `blank` that model if the attached one has no
    weights; `template` is the chat template if the run brought its own; `search` is set where a
    search found it, `checkpoint` where it is no result.
    """

    config: RunConfig
    attached: Attached
    base: Path
    template: str | None
    metrics: dict[str, float | None]
    search: FoundBy | None = None
    checkpoint: int | None = None
    blank: Blank | None = None


def publish_run(config: RunConfig, run: Run, template: str | None) -> AdapterRecord:
    """Export a run's result, load it back, compare, and publish it; the same weights only once.

    The best checkpoint by eval loss is taken, the newest where there was no evaluation. `template`
    is the chat template if the run brought its own. It takes the memory of two base models: ours,
    and the one that the export is loaded onto; of a base that was sharded under an adapter, that of
    one block. With `publish.checkpoints` the others come first.
    """
    sound = _sound(run)
    chosen = _chosen(sound)
    folder = fetch(config.model, run.root)
    blank, device = _blank(config, folder), _device()
    if blank:
        attached = attach(blank.copy().model, config.adapter, config.train.seed, device)
    else:
        attached = load_for_training(config, folder, device)

    def published(record: CheckpointRecord, *, is_result: bool) -> AdapterRecord:
        with patient():
            checkpoint.load(run, record, attached.trainable)
            metrics = {"step": float(record.step), **record.metrics}
            step = None if is_result else record.step
            learned = Learned(
                config, attached, folder, template, metrics, checkpoint=step, blank=blank
            )
            return publish_learned(run.root, run.name, learned)

    others = {record.step: record for record in reversed(sound) if record.step != chosen.step}
    for record in others.values() if config.publish.checkpoints else ():
        published(record, is_result=False)
    return published(chosen, is_result=True)


def publish_learned(root: str, name: str, learned: Learned) -> AdapterRecord:
    """Export what was learned, load it back, compare, and publish it, unless it is there already.

    It takes the memory of another base model, which the export is loaded onto.
    """
    with tempfile.TemporaryDirectory() as made, patient():
        out = Path(made)
        _export(learned, out)
        return _published(root, name, learned, out)


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


def _blank(config: RunConfig, folder: Path) -> Blank | None:
    """The base without weights where it may be too large for one worker, if its files allow it."""
    if config.strategy == "ddp" or isinstance(config.adapter, FullConfig):
        return None
    device = _device()
    base = blank_base(folder, config.model, resolve_dtype(config.model, device), device)
    return base if isinstance(base, Blank) else None


def _sound(run: Run) -> list[CheckpointRecord]:
    """Return the checkpoints that can be loaded, the furthest first."""
    records = [record for record in runs.checkpoints(run) if not runs.verify(run, record)]
    if not records:
        raise TrainError(f"run '{run.name}' has no sound checkpoint", "train it again")
    return records


def _chosen(records: list[CheckpointRecord]) -> CheckpointRecord:
    best = [record for record in records if record.best]
    return (best or records)[0]


def _export(learned: Learned, out: Path) -> None:
    model, attached = learned.config.model, learned.attached
    tokenizer = load_tokenizer(learned.base, trust_remote_code=model.trust_remote_code)
    if learned.template is not None:
        tokenizer.chat_template = learned.template
    match learned.config.adapter:
        case LoraConfig() as adapter:
            export_adapter(attached, adapter, BaseName(model.name, model.revision), out)
            tokenizer.save_pretrained(out)
            if learned.blank:
                verify_streamed(attached, learned.blank, out)
            else:
                verify_adapter(attached, out, learned.base, model)
        case FullConfig():
            export_full(attached.model, tokenizer, out)
            verify_full(attached.model, out, model)
    how = " block by block" if learned.blank else ""
    logger.info("verified%s: loaded back, it gives the same logits", how)


def _published(root: str, name: str, learned: Learned, out: Path) -> AdapterRecord:
    files = {file.name: storage.sha256(file) for file in out.iterdir()}
    for record in reversed(registry.versions(root, name)):
        is_same = (record.files, record.checkpoint) == (files, learned.checkpoint)
        if is_same:  # an earlier attempt was stopped right after publishing
            return record
    model, adapter = learned.config.model, learned.config.adapter
    print_of_base = fingerprint(learned.base)
    draft = AdapterRecord(
        name=name,
        kind="full" if isinstance(adapter, FullConfig) else "adapter",
        base=BaseModel(name=model.name, revision=model.revision, fingerprint=print_of_base),
        method=adapter.method,
        rank=None if isinstance(adapter, FullConfig) else adapter.rank,
        tokenizer_digest=tokenizer_digest(out),
        template_digest=_template_digest(out),
        metrics=learned.metrics,
        config=learned.config.model_dump(mode="json"),
        search=learned.search,
        project=learned.config.publish.project,
        model=learned.config.publish.model,
        checkpoint=learned.checkpoint,
    )
    return registry.publish(root, out, draft)


def _template_digest(folder: Path) -> str:
    return ChatTemplate(str(load_tokenizer(folder).chat_template or ""), {}).digest


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
