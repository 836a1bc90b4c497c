"""Base models: from a name to a local folder, and from there to a model that is ready to train."""

import hashlib
import inspect
import logging
import os
import re
from pathlib import Path

import torch
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from ftray.config.paths import is_path
from ftray.config.run import BUILTIN_MODEL, ModelConfig
from ftray.errors import ModelError, did_you_mean, first_line
from ftray.model.builtin import builtin_folder
from ftray.storage import local_cache, sha256

logger = logging.getLogger(__name__)

_WANTED = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def fetch(model: ModelConfig, root: str) -> Path:
    """Turn a model's name into a local folder with config, safetensors and tokenizer.

    A Hugging Face id goes to its own cache, the built-in model is unpacked once below `root`.
    """
    if model.name == BUILTIN_MODEL:
        return builtin_folder(local_cache(root))
    if is_path(model.name):
        return _checked(Path(model.name).expanduser(), model.name)
    return _checked(_downloaded(model), model.name)


def fingerprint(folder: Path) -> str:
    """SHA-256 over the digests of a model's weights and config: the same for the same content.

    Files in Hugging Face's cache are links to blobs that are named by their SHA-256. Others are
    read once, and remembered by path, size and time in the user's cache where it can be written.
    """
    files = sorted([*folder.glob("*.safetensors"), folder / "config.json"])
    digests = "".join(f"{file.name} {_digest(file)}\n" for file in files)
    return hashlib.sha256(digests.encode()).hexdigest()


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer that lies beside the weights."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder}: the tokenizer cannot be loaded: {first_line(error)}") from None
    return tokenizer


def tokenizer_digest(folder: Path) -> str:
    """SHA-256 over the files that turn text into ids, chat template included."""
    names = ("tokenizer*", "special_tokens*", "added_tokens*", "chat_template*", "vocab*")
    files = sorted({file for name in names for file in folder.glob(name)})
    digests = "".join(f"{file.name} {sha256(file)}\n" for file in files if file.is_file())
    return hashlib.sha256(digests.encode()).hexdigest()


def load_base(folder: Path, model: ModelConfig, device: torch.device) -> PreTrainedModel:
    """Load the weights onto `device` in the run's precision, ready for packed training.

    Safetensors only. A model whose attention cannot keep packed sequences apart is refused here
    where its signature shows it, and by `loss.check` where only its numbers do.
    """
    disable_progress_bar()
    dtype = resolve_dtype(model, device)
    try:
        loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=model.attention,
            use_safetensors=True,
            trust_remote_code=model.trust_remote_code,
            local_files_only=True,
            device_map={"": device} if device.type == "cuda" else None,
        )
    except SafetensorError as error:
        hint = "the file is damaged or cut off: copy or download it again"
        raise ModelError(f"{folder}: cannot be loaded: {first_line(error)}", hint) from None
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"{folder}: cannot be loaded: {first_line(error)}") from None
    if "position_ids" not in inspect.signature(decoder(loaded).forward).parameters:
        raise ModelError(
            f"{model.name}: {type(loaded).__name__} takes no position ids, so packed sequences"
            " would see one another",
            "choose a decoder with rotary positions, such as Llama, Qwen, Mistral or SmolLM",
        )
    loaded.config.use_cache = False
    nn.Module.to(loaded, device)
    return loaded


def decoder(model: PreTrainedModel) -> nn.Module:
    """The model without its output layer: token ids to hidden states."""
    found: nn.Module = model.get_decoder()
    return found


def output_layer(model: PreTrainedModel) -> nn.Linear:
    """The layer from hidden states to logits."""
    found: nn.Linear = model.get_output_embeddings()
    return found


def resolve_dtype(model: ModelConfig, device: torch.device) -> torch.dtype:
    """The precision that is computed in; auto: bf16 where the device multiplies in it."""
    if model.dtype != "auto":
        return _DTYPES[model.dtype]
    on_gpu = device.type == "cuda"
    has_bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_bf16 else torch.float32


def _downloaded(model: ModelConfig) -> Path:
    patterns = [*_WANTED, "*.py"] if model.trust_remote_code else _WANTED
    try:
        folder = snapshot_download(
            model.name,
            revision=model.revision,
            allow_patterns=patterns,
            ignore_patterns=["*/*"],  # other formats' copies of the weights
        )
    except GatedRepoError:
        hint = f"ask for access at https://huggingface.co/{model.name}, then: hf auth login"
        raise ModelError(f"model.name: '{model.name}' is gated", hint) from None
    except (RepositoryNotFoundError, HFValidationError):
        hint = f"a folder starts with '/', '.' or '~'; the built-in model is {BUILTIN_MODEL}"
        raise ModelError(
            f"model.name: there is no '{model.name}' on the Hugging Face hub, or it is private",
            hint,
        ) from None
    except RevisionNotFoundError:
        raise ModelError(f"model.revision: '{model.name}' has no '{model.revision}'") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else first_line(error)
        without = f"with network: hf download {model.name}; without: model.name={BUILTIN_MODEL}"
        if Path(model.name).is_dir():
            without = f"a folder starts with '/', '.' or '~': ./{model.name}"
        raise ModelError(
            f"model.name: '{model.name}' is not in the local cache, and the Hugging Face hub cannot"
            f" be reached: {reason}",
            did_you_mean(model.name, [BUILTIN_MODEL], otherwise=without),
        ) from None
    return Path(folder)


def _checked(folder: Path, name: str) -> Path:
    if not folder.is_dir():
        raise ModelError(f"model.name: no folder {folder}")
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"model.name: '{name}' has no config.json, so it is not a transformers model"
        )
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"model.name: '{name}' has no safetensors; other formats can run code when read",
            "convert it: AutoModelForCausalLM.from_pretrained(...).save_pretrained(folder)",
        )
    return folder


def _digest(file: Path) -> str:
    blob = file.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return blob.name
    stat = blob.stat()
    key = hashlib.sha256(f"{blob} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()
    note = local_cache("user://") / "digests" / key
    try:
        return note.read_text()
    except OSError:
        digest = sha256(file)
    _remember(note, digest)
    return digest


def _remember(note: Path, digest: str) -> None:
    temporary = note.with_suffix(f".{os.getpid()}")
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(digest)
        temporary.replace(note)
    except OSError as error:
        logger.debug("digest not remembered: %s", error)
