"""The model in training on one worker: base, adapter, sharding, precision, kernels."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel

from ftray.config.run import (
    ActivationPolicy,
    FullConfig,
    LoraConfig,
    QloraConfig,
    RunConfig,
    TrainConfig,
)
from ftray.model import loss
from ftray.model.adapter import Attached, attach, freeze
from ftray.model.attention import DOCUMENTS, set_attention, takes_documents
from ftray.model.base import input_layer, load_base, output_layer, resolve_dtype
from ftray.model.blank import Blank, Whole, blank_base
from ftray.model.fp8 import uncast
from ftray.model.loss import LanguageModel
from ftray.model.transfer import kept_on_host
from ftray.train.capture import CudaRecorder, Graphs, Recorder, is_captured
from ftray.train.fill import fill
from ftray.train.memory import compiles, keeps_table_on_host
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
    row_length: int | None = None  # shorter rows are padded: compiled kernels are for one length
    graphs: Graphs | None = None  # through which micro-batches go

    @contextmanager
    def precision(self) -> Iterator[None]:
        """Compute in `dtype` inside the block."""
        device = self.attached.model.device.type
        is_mixed = next(self.model.parameters()).dtype != self.dtype
        is_ours = is_mixed and not self.sums_own_gradients  # FSDP2 gathers weights in `dtype`
        with torch.autocast(device, dtype=self.dtype, enabled=is_ours):
            yield


def build_trainee(
    config: RunConfig, folder: Path, place: Place, root: str, *, graphs_pay: bool = False
) -> Trainee:
    """Load the base model from `folder`, attach the adapter, and spread both over the workers.

    Where weights are sharded each worker reads its own, if the files are such that it can. With
    `graphs_pay` the plan would have passes captured, if that can be.
    """
    dtype, full = resolve_dtype(config.model, place.device), isinstance(config.adapter, FullConfig)
    weights, is_sharded = _weights(config, folder, root), config.strategy == "fsdp"
    base = _blank(config, weights, place, dtype) if is_sharded else None
    if isinstance(base, Blank):
        attached = attach(base.model, config.adapter, config.train.seed, place.device)
    else:
        attached = load_for_training(config, weights, place.device)
        attend_to_documents(attached.model, config, dtype)
    _start_adapter(config, attached, folder, root)
    model = LanguageModel(attached.model, attached.routing)
    compiled, why = is_compiled(config.train, place.device)
    captured, reason = is_captured(config, attached.model, compiled=compiled, pays=graphs_pay)
    model.keep(activations(config.train), compiled=compiled)
    if place.is_first:
        _tell(config, base, f"{str(dtype).removeprefix('torch.')} on {place.device}")
        logger.info("train.compile=%s: %s", str(compiled).lower(), why)
        logger.info("train.graphs=%s: %s", str(captured).lower(), reason)
    replicate(attached.trainable.values())
    if is_sharded:
        shard(model, attached.trainable, compute=dtype if full else None)
    if isinstance(base, Blank):
        _fill(model, base, config, dtype)
    trainee = Trainee(
        model.train(),
        attached,
        sums_own_gradients=is_sharded and full,
        dtype=dtype,
        row_length=config.data.max_length if compiled and config.data.packing else None,
    )
    return with_graphs(trainee, CudaRecorder(place.device)) if captured else trainee


def with_graphs(trainee: Trainee, recorder: Recorder) -> Trainee:
    """Have the passes of a model recorded."""
    trained = trainee.attached.trainable.values()
    return replace(trainee, graphs=Graphs(trainee.model, trained, trainee.precision, recorder))


def _fill(model: LanguageModel, base: Blank, config: RunConfig, dtype: torch.dtype) -> None:
    fill(model, base)
    model.check(dtype)
    if _set_documents(base.model, config, dtype):
        model.check(dtype)


def _blank(config: RunConfig, folder: Path, place: Place, dtype: torch.dtype) -> Blank | Whole:
    kept = torch.float32 if isinstance(config.adapter, FullConfig) else dtype
    return blank_base(folder, config.model, kept, place.device)


def _weights(config: RunConfig, folder: Path, root: str) -> Path:
    if not config.adapter.init_from:
        return folder
    from ftray.train.start import starting_weights

    return starting_weights(config, folder, root)


def _start_adapter(config: RunConfig, attached: Attached, folder: Path, root: str) -> None:
    if config.adapter.init_from:
        from ftray.train.start import start_adapter

        start_adapter(config, attached, folder, root)


def _tell(config: RunConfig, base: Blank | Whole | None, precision: str) -> None:
    match base:
        case Blank():
            reason = "weights are sharded, each worker reads its own"
        case Whole(why):
            reason = f"weights are sharded, after each worker has read all of them: {why}"
        case None:
            reason = "each worker holds the whole model"
    logger.info("scaling.strategy=%s: %s", config.strategy, reason)
    logger.info("model.dtype=%s", precision)


def attend_to_documents(model: PreTrainedModel, config: RunConfig, dtype: torch.dtype) -> None:
    """Have a model attend to packed documents one by one where a kernel does so, and try it."""
    if _set_documents(model, config, dtype):
        _check(model, dtype)


def _set_documents(model: PreTrainedModel, config: RunConfig, dtype: torch.dtype) -> bool:
    wants = config.model.attention == "sdpa"
    does = wants and takes_documents(model, dtype, config.data.max_length)
    if does:
        set_attention(model, DOCUMENTS)
    return does


def activations(train: TrainConfig) -> ActivationPolicy:
    """What layers keep; `auto` has been settled where it can be, and keeps all where not."""
    policy = train.activation_checkpointing
    return "none" if policy == "auto" else policy


def is_compiled(train: TrainConfig, device: torch.device) -> tuple[bool, str]:
    """Resolve `train.compile` on a worker, with the reason."""
    if train.compile != "auto":
        return train.compile, "the run says so"
    if device.type != "cuda":
        return False, "no GPU"
    if not compiles(train, on_gpu=True):
        return False, f"{train.max_steps} steps would not earn the time back"
    if find_spec("triton") is None or not (shutil.which("cc") or shutil.which("gcc")):
        return False, "triton or a C compiler is missing here"
    return True, "layers and loss become fused kernels, at the first step"


def load_for_training(config: RunConfig, folder: Path, device: torch.device) -> Attached:
    """Load and check the base model, and attach a fresh adapter.

    Full fine-tuning keeps its weights in fp32: steps of 1e-5 would vanish in bf16's 8 bits. A base
    that shrinks is loaded on the CPU, and never whole on the device.
    """
    model, adapter = config.model, config.adapter
    match adapter:
        case QloraConfig() | LoraConfig(base_precision="fp8"):
            dtype = str(resolve_dtype(model, device)).removeprefix("torch.")
            base = load_base(folder, model.model_copy(update={"dtype": dtype}), torch.device("cpu"))
            freeze(base, adapter, device)
        case FullConfig():
            base = load_base(folder, model.model_copy(update={"dtype": "float32"}), device)
        case _:
            base = load_base(folder, model, device)
    leave_table_on_host(base, config)
    _check(base)
    return attach(base, adapter, config.train.seed)


def leave_table_on_host(base: PreTrainedModel, config: RunConfig) -> None:
    """Move the input embeddings to the host's memory, where the memory plan has them there."""
    table, head = input_layer(base).weight, output_layer(base).weight
    kind: Literal["cpu", "gpu"] = "gpu" if base.device.type == "cuda" else "cpu"
    if keeps_table_on_host(config, kind, tied=table is head):
        table.data = kept_on_host(table, base.device)


def _check(model: PreTrainedModel, dtype: torch.dtype | None = None) -> None:
    with uncast(model):
        loss.check(model, dtype)


def random_state(seed: int, step: int, rank: int) -> None:
    """Seed every generator for one step: a function of (seed, step, rank), so nothing is saved."""
    torch.manual_seed(((seed * 1_000_003 + step) * 1_000_003 + rank) % 2**63)
