"""A base model's folder: from a name to it, and digests of what it holds; without torch."""

import hashlib
import logging
import os
import re
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ftray.config.paths import is_path
from ftray.config.run import BUILTIN_MODEL, ModelConfig
from ftray.errors import ModelError, did_you_mean, first_line
from ftray.model.builtin import builtin_folder
from ftray.storage import local_cache, sha256

logger = logging.getLogger(__name__)

_WANTED = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]


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


def tokenizer_digest(folder: Path) -> str:
    """SHA-256 over the files that turn text into ids, chat template included."""
    names = ("tokenizer*", "special_tokens*", "added_tokens*", "chat_template*", "vocab*")
    files = sorted({file for name in names for file in folder.glob(name)})
    digests = "".join(f"{file.name} {sha256(file)}\n" for file in files if file.is_file())
    return hashlib.sha256(digests.encode()).hexdigest()


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
