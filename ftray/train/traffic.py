"""What the workers of a run send one another in a step, by arithmetic alone (no torch)."""

from dataclasses import dataclass

from ftray.config.run import FullConfig, QloraConfig, RunConfig
from ftray.model.shape import ModelShape
from ftray.train.memory import Worker, bytes_per_element, trainable

# Bytes a second in one direction that one GPU has to the others, as the vendors state them.
LINKS = {"NVLink 4": 450e9, "InfiniBand NDR": 50e9, "100GbE": 12.5e9}


@dataclass(frozen=True)
class Traffic:
    """Bytes that one worker sends in one optimizer step; it receives as many.

    `gathered` (weights) and `scattered` (their gradients) cross the network while others are
    computed with; `summed` gradients cross once all are there, and nothing else is done meanwhile.
    """

    gathered: int
    scattered: int
    summed: int

    @property
    def total(self) -> int:
        """All bytes."""
        return self.gathered + self.scattered + self.summed

    def seconds(self) -> dict[str, float]:
        """What it takes over each of the usual links, one to a worker."""
        return {link: self.total / speed for link, speed in LINKS.items()}


def traffic(config: RunConfig, shape: ModelShape, worker: Worker, accumulation: int) -> Traffic:
    """Count what a step of `accumulation` micro-batches a worker sends, in rings.

    Over N workers an all-gather or a reduce-scatter of B bytes sends (N-1)/N · B from each, an
    all-reduce twice that (Patarasuk and Yuan 2009). Replicated weights (DDP): the gradients of
    what is trained, fp32, once a step. Sharded ones (FSDP2): each micro-batch gathers all weights
    for its forward pass and again for its backward pass; trained ones scatter fp32 gradients too.
    Nf4 weights are gathered in 4 bits, for their scales are whole on every worker.
    """
    share = (worker.count - 1) / worker.count
    gradients = trainable(config, shape) * 4
    if config.strategy == "ddp":
        return Traffic(0, 0, round(2 * share * gradients))
    passes = accumulation * share
    gathered = round(2 * passes * _sharded(config, shape, bytes_per_element(config, worker)))
    if isinstance(config.adapter, FullConfig):
        return Traffic(gathered, round(passes * gradients), 0)
    return Traffic(gathered, 0, round(2 * share * gradients))


def efficiency(sent: Traffic, computing: float, link: float) -> tuple[float, float]:
    """Predict the least and the most share of a step's time that is spent computing.

    `computing` in seconds, `link` in bytes a second: nothing of what can be hidden is, or all.
    """
    hidden, exposed = (sent.gathered + sent.scattered) / link, sent.summed / link
    return (
        computing / (computing + hidden + exposed),
        computing / (max(computing, hidden) + exposed),
    )


def _sharded(config: RunConfig, shape: ModelShape, element: int) -> float:
    """Bytes of the weights that sharding spreads, as they cross the network."""
    if not isinstance(config.adapter, QloraConfig):
        return shape.parameters * element
    linear = shape.layers * sum(wide * high for wide, high in shape.linear.values())
    return (shape.parameters - linear) * element + linear / 2
