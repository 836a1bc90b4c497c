"""Models that need not fit anywhere: a block's weights are read when it computes, and dropped."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ftray.model.base import decoder
from ftray.model.blank import Blank
from ftray.model.nf4 import Nf4Linear

Change = Callable[[Tensor], Tensor]  # of a weight as it is read


@contextmanager
def streamed(
    blank: Blank, device: torch.device, changes: Mapping[str, Change] | None = None
) -> Iterator[None]:
    """Inside the block the model computes on `device`, and holds one decoder block at a time.

    Beside it, embeddings and output layer. What is changed as it is read goes by the tensor's name.
    """
    reader = _Reader(blank, device, changes or {})
    paths = {module: path for path, module in blank.model.named_modules()}
    outside, hooks = dict(paths), []
    for layer in decoder(blank.model).layers:  # type: ignore[union-attr]  # a module's attribute
        inside = {module: outside.pop(module) for module in layer.modules()}
        hooks.append(layer.register_forward_pre_hook(lambda *_, own=inside: reader.read(own)))
        hooks.append(layer.register_forward_hook(lambda *_, own=inside: reader.drop(own)))
    reader.read(outside)
    yield
    reader.drop(outside)
    for hook in hooks:
        hook.remove()


@contextmanager
def standing_in(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside the block weights that are not there are zeros on the device, which take no memory.

    PEFT puts an adapter where the layer that it wraps has its weight.
    """
    empties = [
        (module, part, empty)
        for module in model.modules()
        for part, empty in module.named_parameters(recurse=False)
        if empty.is_meta
    ]
    for module, part, empty in empties:
        zeros = torch.zeros((), dtype=empty.dtype, device=device).expand(empty.shape)
        setattr(module, part, nn.Parameter(zeros, requires_grad=False))
    yield
    for module, part, empty in empties:
        setattr(module, part, empty)


class _Reader:
    """Gives modules their weights, and takes them away."""

    def __init__(self, blank: Blank, device: torch.device, changes: Mapping[str, Change]) -> None:
        self._blank, self._device, self._changes = blank, device, changes
        self._empty: dict[nn.Module, dict[str, nn.Parameter]] = {}

    def read(self, paths: Mapping[nn.Module, str]) -> None:
        made: dict[Tensor, nn.Parameter] = {}
        for module, path in paths.items():
            parts = module.named_parameters(recurse=False)
            self._empty[module] = {part: empty for part, empty in parts if empty.is_meta}
            for part, empty in self._empty[module].items():
                if empty not in made:  # else it is tied to one before it
                    values = self._values(module, part, self._blank.tensor_of(path, part))
                    made[empty] = nn.Parameter(values, requires_grad=False)
                setattr(module, part, made[empty])

    def drop(self, paths: Mapping[nn.Module, str]) -> None:
        for module in paths:
            for part, empty in self._empty.pop(module).items():
                setattr(module, part, empty)

    def _values(self, module: nn.Module, part: str, tensor: str) -> Tensor:
        dense = self._blank.weights.whole(tensor).to(self._device, self._blank.dtype)
        if isinstance(module, Nf4Linear) and part == "weight":
            return module.quantize(dense)
        return self._changes[tensor](dense) if tensor in self._changes else dense
