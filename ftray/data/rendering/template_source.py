"""Where a chat template is from: the tokenizer, or a file."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ftray.config.data import DataConfig
from ftray.data.rendering.template import ChatTemplate
from ftray.errors import DataError


def load_template(tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> ChatTemplate:
    """Return the configured template, an empty one where rows are raw text."""
    special_tokens = dict(tokenizer.special_tokens_map)
    hides = data.reasoning == "mask"
    match data.chat_template:
        case "none":
            return ChatTemplate("", {})
        case "model":
            return ChatTemplate(_own_template(tokenizer), special_tokens, hides_reasoning=hides)
        case path:
            return ChatTemplate(_read_template(path), special_tokens, hides_reasoning=hides)


def _own_template(tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        return str(tokenizer.get_chat_template())
    except ValueError:
        raise DataError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template",
            "data.chat_template=PATH of a jinja template, or data.chat_template=none for raw text",
        ) from None


def _read_template(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        hint = "data.chat_template is 'model', 'none' or the path of a jinja template"
        raise DataError(f"{path}: {error.strerror}", hint) from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text") from None
