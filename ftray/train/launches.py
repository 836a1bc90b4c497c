"""Whether it pays to capture a micro-batch as CUDA graphs, from shapes alone (no torch)."""

from ftray.config.run import FullConfig, RunConfig
from ftray.model.shape import ModelShape, flops_per_token
from ftray.train.memory import compiles

# A layer's launches in both passes, compiled, on slow hosts of H200s; another's may take half.
_LAYER_SECONDS = 2e-3
_ADAPTED_LAYER_SECONDS = 4e-3
_JOINT_LAYER_SECONDS = 6e-3
# What an H100 reaches. On a slower card launches matter less, and graphs bring less, for the same.
_FLOPS_PER_SECOND = 400e12


def graphs_pay(config: RunConfig, shape: ModelShape, micro: int) -> tuple[bool, str]:
    """Resolve `train.graphs` for a GPU, with the reason: whether launches outlast products.

    A GPU computes while the host launches, so a micro-batch takes as long as the longer of the two.
    """
    wanted, obstacle = config.train.graphs, config.graphs_obstacle
    if wanted != "auto":
        return wanted, "graphs, as the run says" if wanted else "no graphs, as the run says"
    if obstacle:
        return False, f"no graphs: {obstacle}"
    if not compiles(config.train, on_gpu=True):
        return False, "no graphs: layers are not compiled"
    is_full = isinstance(config.adapter, FullConfig)
    launches = shape.layers * (_LAYER_SECONDS if is_full else _ADAPTED_LAYER_SECONDS)
    products = product_seconds(config, shape, micro * config.data.max_length)
    numbers = (
        f"{shape.layers} layers' launches take about {launches * 1e3:.0f} ms a micro-batch, "
        f"products {products * 1e3:.0f}"
    )
    return launches > products, f"{'graphs' if launches > products else 'no graphs'}: {numbers}"


def product_seconds(config: RunConfig, shape: ModelShape, tokens: int) -> float:
    """How long a GPU is at the products of so many tokens, in rows of `data.max_length`."""
    frozen, length = not isinstance(config.adapter, FullConfig), config.data.max_length
    return tokens * flops_per_token(shape, length, frozen_base=frozen) / _FLOPS_PER_SECOND


def joint_launch_seconds(shape: ModelShape) -> float:
    """How long a host is at the launches of a micro-batch of packed trials.

    The layers' products are not compiled there: 28 layers of a 1.7B shape took 165 ms, for one
    trial of 512 tokens, on the slowest of the hosts of H200s that were tried.
    """
    return shape.layers * _JOINT_LAYER_SECONDS
