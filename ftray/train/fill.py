"""From the files of a base model to the shards of its weights, without a whole copy anywhere."""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ftray.model.blank import Blank
from ftray.model.loss import LanguageModel
from ftray.model.nf4 import Nf4Linear


@torch.no_grad()
def fill(model: LanguageModel, blank: Blank) -> None:
    """Give each worker its own rows of every weight of a model that was sharded without weights.

    A worker reads these rows alone. What is kept in 4 bits is put together from all workers' rows,
    one weight at a time, and quantized as a whole: so it is the same for any number of workers. All
    of them must call together.
    """
    device = model.routing.row_seeds.device
    filled: dict[Tensor, nn.Parameter] = {}
    for path, module in model.model.named_modules():
        for part, parameter in list(module.named_parameters(recurse=False)):
            if not isinstance(parameter, DTensor):  # adapters are whole, and there
                continue
            if parameter not in filled:  # else it is tied to one before it
                start, stop = _own_rows(parameter)
                rows = blank.weights.rows(blank.tensor_of(path, part), start, stop)
                if isinstance(module, Nf4Linear) and part == "weight":
                    shape = (module.out_features, module.in_features)
                    dense = _sharded(rows.to(device, blank.dtype), parameter, shape).full_tensor()
                    local = module.quantize(dense)[start:stop].clone()
                else:
                    local = torch.empty_like(rows, device=device, dtype=parameter.dtype)
                    local.copy_(rows)
                made = _sharded(local, parameter, tuple(parameter.shape))
                filled[parameter] = nn.Parameter(made, requires_grad=parameter.requires_grad)
            setattr(module, part, filled[parameter])


def _own_rows(parameter: DTensor) -> tuple[int, int]:
    """Where this worker's rows lie: each but the last workers has the same number."""
    most = -(-len(parameter) // parameter.device_mesh.size())
    start = min(parameter.device_mesh.get_local_rank() * most, len(parameter))
    return start, start + len(parameter.to_local())


def _sharded(local: Tensor, like: DTensor, shape: tuple[int, ...]) -> DTensor:
    """Rows of this worker as its shard of a tensor of `shape`, spread as `like` is."""
    whole = torch.empty(shape, device="meta")
    return DTensor.from_local(
        local,
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=whole.shape,
        stride=whole.stride(),
    )
