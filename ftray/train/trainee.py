"""The model in training on one worker: base, adapter, sharding, precision."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from ftray.config.run import FullConfig, ModelConfig, RunConfig
from ftray.model import loss
from ftray.model.adapter import Attached, attach
from ftray.model.base import load_base, resolve_dtype
from ftray.model.loss import LanguageModel
from ftray.train.parallel import Place, replicate, shard

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trainee:
    """The model as the loop sees it: its loss, what is trained, and who sums the gradients.

    Weights that are trained are fp32; where `dtype` is less, they are computed with under autocast.
    """

    model: LanguageModel
    attached: Attached
    sums_own_gradients: bool  # FSDP2 does, for the weights that it shards
    dtype: torch.dtype = torch.float32

    @contextmanager
    def precision(self) -> Iterator[None]:
        """Compute in `dtype` inside the block."""
        device = self.attached.model.device.type
        is_mixed = next(self.model.parameters()).dtype != self.dtype
        is_ours = is_mixed and not self.sums_own_gradients  # FSDP2 gathers weights in `dtype`
        with torch.autocast(device, dtype=self.dtype, enabled=is_ours):
            yield


def build_trainee(config: RunConfig, folder: Path, place: Place, root: str) -> Trainee:
    """Load the base model from `folder`, attach the adapter, and spread both over the workers."""
    attached = load_for_training(config, folder, place.device)
    if config.adapter.init_from:
        from ftray.train.start import start_from

        start_from(config.adapter.init_from, config, attached, folder, root)
    if config.train.activation_checkpointing:
        recompute = {"use_reentrant": False}
        attached.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=recompute)
    model = LanguageModel(attached.model, attached.routing)
    if config.train.compile:
        for layer in model.layers:
            layer.compile()
    replicate(attached.trainable.values())
    full = isinstance(config.adapter, FullConfig)
    is_sharded = config.strategy == "fsdp"
    dtype = resolve_dtype(config.model, place.device)
    if place.is_first:
        reason = "weights are sharded" if is_sharded else "each worker holds the whole model"
        logger.info("scaling.strategy=%s: %s", config.strategy, reason)
        logger.info("model.dtype=%s on %s", str(dtype).removeprefix("torch."), place.device)
    if is_sharded:
        shard(model, attached.trainable, compute=dtype if full else None)
    model.train()
    return Trainee(model, attached, sums_own_gradients=is_sharded and full, dtype=dtype)


def load_for_training(config: RunConfig, folder: Path, device: torch.device) -> Attached:
    """Load and check the base model, and attach a fresh adapter.

    Full fine-tuning keeps its weights in fp32: steps of 1e-5 would vanish in bf16's 8 bits.
    """
    model = config.model
    if isinstance(config.adapter, FullConfig):
        model = ModelConfig.model_validate({**model.model_dump(), "dtype": "float32"})
    base = load_base(folder, model, device)
    loss.check(base)
    return attach(base, config.adapter, config.train.seed)


def random_state(seed: int, step: int, rank: int) -> None:
    """Seed every generator for one step: a function of (seed, step, rank), so nothing is saved."""
    torch.manual_seed(((seed * 1_000_003 + step) * 1_000_003 + rank) % 2**63)
