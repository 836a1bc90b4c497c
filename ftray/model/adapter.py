"""Turn a base model into one that trains: adapters beside its linear layers, or all its weights."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from ftray.config.run import AdapterConfig, FullConfig, LoraConfig, QloraConfig
from ftray.errors import ModelError, did_you_mean
from ftray.model.base import output_layer
from ftray.model.fp8 import Fp8Linear, check_products, fits_fp8, multiplies_fp8
from ftray.model.int8 import Int8Linear
from ftray.model.lora import Routing, Slot, StackedLoraLinear
from ftray.model.nf4 import Nf4Linear
from ftray.model.packed import PackedLinear

PEFT_PREFIX = "base_model.model."
_SEVERAL = 8  # names that an error lists
_LINEAR = (nn.Linear, Nf4Linear, Fp8Linear, Int8Linear, PackedLinear)


@dataclass(frozen=True)
class Attached:
    """A model with its adapters in place."""

    model: PreTrainedModel
    routing: Routing

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """What is trained, by name; asked anew each time, since sharding replaces parameters."""
        named = self.model.named_parameters()
        return {name: parameter for name, parameter in named if parameter.requires_grad}


def attach(
    model: PreTrainedModel, adapter: AdapterConfig, seed: int, device: torch.device | None = None
) -> Attached:
    """Prepare a base model for training, in place; a device is told where its own is not known yet.

    The adapter's start is a function of (seed, layer name): the same on every worker.
    """
    routing = Routing(device or model.device)
    match adapter:
        case LoraConfig():
            names = target_names(decoder_linears(model), adapter)
            freeze(model, adapter)
            _wrap(model, names, adapter, routing, seed)
        case FullConfig():
            model.requires_grad_(True)
    return Attached(model, routing)


def freeze(model: PreTrainedModel, adapter: LoraConfig, device: torch.device | None = None) -> None:
    """Make a loaded model the base of adapters, in the precision that they ask for.

    With a device it moves there layer by layer as it shrinks: it is never there in full precision.
    A model without its weights shrinks as well.
    """
    device = device or model.device
    model.requires_grad_(False)
    match adapter:
        case QloraConfig(double_quantization=doubled):
            _replace(model, device, lambda layer: Nf4Linear(layer, double_quantization=doubled))
        case LoraConfig(base_precision="fp8"):
            if not multiplies_fp8(device):
                raise ModelError(
                    f"adapter.base_precision=fp8: {_named(device)} does not multiply 8-bit floats",
                    "it takes an NVIDIA GPU of the Hopper generation or newer; elsewhere: "
                    "adapter.base_precision=same, or adapter.method=qlora to save memory",
                )
            _replace(model, device, _in_fp8)
    if device.type != "meta":  # where buffers would lose their values
        nn.Module.to(model, device)


def target_names(linears: Iterable[str], adapter: LoraConfig) -> list[str]:
    """Full names of the layers that get an adapter; a target is a name's end, as in PEFT."""
    names = list(linears)
    if adapter.target == "all-linear":
        return names
    unknown = [t for t in adapter.target if not any(_ends_with(name, t) for name in names)]
    if unknown:
        known = sorted({name.rpartition(".")[2] for name in names})
        hint = did_you_mean(unknown[0], known)
        raise ModelError(
            f"adapter.target: no linear layer is called '{unknown[0]}'", f"{hint} (or all-linear)"
        )
    return [name for name in names if any(_ends_with(name, t) for t in adapter.target)]


def decoder_linears(model: PreTrainedModel) -> dict[str, nn.Module]:
    """All linear layers but the output embedding, by full name."""
    head = output_layer(model)
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, _LINEAR) and layer is not head
    }


def lora_layers(model: nn.Module) -> list[StackedLoraLinear]:
    """All layers that hold adapters, in the model's order."""
    return [module for module in model.modules() if isinstance(module, StackedLoraLinear)]


def adapter_state(model: nn.Module, slot: int = 0) -> dict[str, Tensor]:
    """One adapter's weights in fp32 under PEFT's names: A [rank, in], B [out, rank].

    Of a sharded model all workers must ask together.
    """
    state = {}
    for layer in lora_layers(model):
        rank = layer.slots[slot].rank
        a, b = _whole(layer.lora_A)[slot, :rank], _whole(layer.lora_B)[slot, :, :rank]
        state[f"{PEFT_PREFIX}{layer.name}.lora_A.weight"] = a.float().clone(
            memory_format=torch.contiguous_format
        )
        state[f"{PEFT_PREFIX}{layer.name}.lora_B.weight"] = b.float().clone(
            memory_format=torch.contiguous_format
        )
    return state


@torch.no_grad()
def load_adapter_state(model: nn.Module, state: Mapping[str, Tensor], slot: int = 0) -> None:
    """Set one adapter's weights from what `adapter_state` returned, or from a PEFT file."""
    expected = adapter_shapes(model, slot)
    _check_state(expected, {name: tuple(values.shape) for name, values in state.items()})
    for layer in lora_layers(model):
        rank = layer.slots[slot].rank
        for parameter, part in ((layer.lora_A, "lora_A"), (layer.lora_B, "lora_B")):
            values = state[f"{PEFT_PREFIX}{layer.name}.{part}.weight"]
            whole = _whole(parameter)
            room = whole[slot, :rank] if part == "lora_A" else whole[slot, :, :rank]
            room.copy_(values)
            if isinstance(parameter, DTensor):
                parameter.copy_(
                    distribute_tensor(whole, parameter.device_mesh, parameter.placements)
                )


def adapter_shapes(model: nn.Module, slot: int = 0) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that one adapter of this model consists of."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in lora_layers(model):
        rank, name = layer.slots[slot].rank, f"{PEFT_PREFIX}{layer.name}"
        shapes[f"{name}.lora_A.weight"] = (rank, layer.in_features)
        shapes[f"{name}.lora_B.weight"] = (layer.out_features, rank)
    return shapes


def _check_state(expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> None:
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or extra:
        what = f"it lacks {_some(missing)}" if missing else f"it has also {_some(extra)}"
        raise ModelError(
            f"the adapter covers other layers than adapter.target names: {what}",
            "set adapter.target as it was when that adapter was trained",
        )
    name = next((name for name in expected if expected[name] != found[name]), None)
    if name is None:
        return
    rank, wanted = min(found[name]), min(expected[name])
    if rank != wanted:
        raise ModelError(
            f"the adapter has rank {rank}, the run asks for adapter.rank={wanted}",
            f"set adapter.rank={rank}",
        )
    raise ModelError(f"the adapter's {name} is {found[name]}, the model needs {expected[name]}")


def _some(names: list[str]) -> str:
    shown = ", ".join(name.removeprefix(PEFT_PREFIX) for name in names[:_SEVERAL])
    return shown + (f" and {len(names) - _SEVERAL} more" if len(names) > _SEVERAL else "")


def _wrap(
    model: PreTrainedModel, names: list[str], adapter: LoraConfig, routing: Routing, seed: int
) -> None:
    slots = [Slot(adapter.rank, adapter.scaling, adapter.dropout)]
    for name in names:
        base = model.get_submodule(name)
        model.set_submodule(name, StackedLoraLinear(base, name, slots, routing, seed))


def _replace(
    model: PreTrainedModel, device: torch.device, made: Callable[[nn.Linear], nn.Module]
) -> None:
    for name, linear in decoder_linears(model).items():
        if isinstance(linear, nn.Linear):
            model.set_submodule(name, made(linear.to(device)))


def _in_fp8(linear: nn.Linear) -> nn.Module:
    if not fits_fp8(linear):
        return linear
    made = Fp8Linear(linear)
    check_products(made)
    return made


def _named(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"


def _ends_with(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _whole(parameter: nn.Parameter) -> Tensor:
    """The parameter's values, gathered from all workers if it is sharded."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter.detach()
