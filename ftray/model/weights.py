"""A model's safetensors files as what they are: tensors by name, read by rows."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ftray.errors import ModelError, first_line

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_AGAIN = "copy or download it again"


class Weights:
    """The tensors of a model's folder, on the CPU, in the precision of its files.

    Files are mapped into memory: what is not asked for is not read. ModelError where one is missing
    or damaged, or lacks what the index says it holds.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        if (folder / _WHOLE).is_file():  # as transformers looks for them
            self._files = {_WHOLE: _opened(folder / _WHOLE)}
            self._file_of = dict.fromkeys(self._files[_WHOLE].keys(), _WHOLE)
        else:
            self._file_of = _index(folder)
            names = sorted(set(self._file_of.values()))
            self._files = {name: _opened(folder / name) for name in names}

    @property
    def names(self) -> set[str]:
        """The names of all tensors."""
        return set(self._file_of)

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Compare the shapes of tensors with what the model's config makes of them."""
        for name, expected in shapes.items():
            found = tuple(self._slice(name).get_shape())
            if found != expected:
                raise ModelError(
                    f"{self._path(name)}: {name} has shape {list(found)}, by config.json it is"
                    f" {list(expected)}",
                    "weights and config.json are not of one model: copy or download both again",
                )

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Read the rows [start, stop) of a tensor."""
        found: Tensor = self._slice(name)[start:stop]
        return found

    def whole(self, name: str) -> Tensor:
        """Read a tensor."""
        found: Tensor = self._slice(name)[...]
        return found

    def _slice(self, name: str) -> Any:
        try:
            return self._files[self._file_of[name]].get_slice(name)
        except SafetensorError as error:
            path = self._path(name)
            raise ModelError(f"{path}: no usable {name}: {first_line(error)}", _AGAIN) from None

    def _path(self, name: str) -> Path:
        return self._folder / self._file_of[name]


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file, but {_INDEX} names it", _AGAIN) from None
    except (OSError, SafetensorError) as error:
        hint = f"the file is damaged or cut off: {_AGAIN}"
        raise ModelError(f"{path}: cannot be loaded: {first_line(error)}", hint) from None


def _index(folder: Path) -> dict[str, str]:
    try:
        return dict(json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"])
    except FileNotFoundError:
        raise ModelError(f"{folder}: there is neither {_WHOLE} nor {_INDEX}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder / _INDEX}: cannot be read: {first_line(error)}", _AGAIN
        ) from None
