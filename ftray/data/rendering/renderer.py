"""The renderer of a model folder.

Apart from its class, since the auto classes import torch: a second and 200 MB in each task's
process, which is handed a finished renderer.
"""

from pathlib import Path

from transformers import AutoTokenizer

from ftray.config.data import DataConfig
from ftray.data.rendering.chat import Renderer
from ftray.errors import DataError, first_line


def load_renderer(folder: Path, data: DataConfig, *, trust_remote_code: bool) -> Renderer:
    """Build the renderer of a model folder's tokenizer."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: no tokenizer can be loaded: {first_line(error)}") from None
    return Renderer(tokenizer, data)
