"""Micro-batches as CUDA graphs: what their layers launch is recorded once, then replayed.

Launched one by one, a layer's kernels cost the host milliseconds, however little there is to
compute; a graph is launched at once. Recorded are the passes through the layers, whose shapes come
again. The loss between them has as many rows as there are labels, and few kernels: it stays as it
is. Numbers are the same, whether a micro-batch is replayed or not.
"""

import gc
import logging
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ftray.config.run import RunConfig
from ftray.data.batching.collation import Batch
from ftray.errors import TrainError, first_line
from ftray.model.attention import DOCUMENTS, bounds_of, told_of
from ftray.model.base import length_rope
from ftray.model.loss import LanguageModel, told_states
from ftray.model.transfer import overwrite, to_device

logger = logging.getLogger(__name__)

_WARM = 2  # passes of a shape before it is captured: kernels are compiled and tuned in them
_MOST = 8  # shapes; rarer ones are launched kernel by kernel
_FEWEST = 16  # documents that there is room for


def is_captured(
    config: RunConfig, model: PreTrainedModel, *, compiled: bool, pays: bool, obstacle: str = ""
) -> tuple[bool, str]:
    """Resolve `train.graphs` on a worker, with the reason; `pays` is what the plan came to.

    `obstacle`: what is known to keep passes from being captured, besides what is found here.
    """
    wanted = config.train.graphs
    if wanted is False or (wanted == "auto" and not pays):
        return False, "as the run or its plan says"
    obstacle = obstacle or config.graphs_obstacle or _obstacle(model, compiled=compiled)
    if obstacle and wanted is True:
        raise TrainError(f"train.graphs=true: {obstacle}", "set train.graphs=auto")
    return not obstacle, obstacle or "layers are replayed, not launched kernel by kernel"


def _obstacle(model: PreTrainedModel, *, compiled: bool) -> str:
    if model.device.type != "cuda":
        return "no GPU"
    if not compiled:
        return "layers are not compiled"
    if model.config._attn_implementation != DOCUMENTS:
        return "its attention makes masks from what the GPU holds"
    if rope := length_rope(model):
        return f"its rotations ({rope}) depend on the longest row of a batch"
    return ""


class Recorder(Protocol):
    """Records what a piece of work launches."""

    def beside(self) -> AbstractContextManager[None]:
        """Run what is in the block where recordings are made and replayed."""

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record a work without doing it; returns what does it, on the same memory."""


class CudaRecorder:
    """Captures on a stream of its own, always the same, into one pool of memory.

    Recordings take each other's place there: of two only one may be between its first and its last
    replay.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Order the block after all that was launched before it, and before all that follows."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:  # a pass that ran out of memory may still be adding to gradients
            current.wait_stream(self._stream)

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        """Other threads may go on with what they do: a save, NCCL's watchdog."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            work()
        return graph.replay


@dataclass(frozen=True)
class Shape:
    """What one recording is good for."""

    rows: int
    length: int
    documents: int | None  # at most so many; None: each row is one

    @classmethod
    def of(cls, batch: Batch, bounds: Tensor | None) -> "Shape":
        """Round the number of documents up to a power of two: attention skips empty ones."""
        rows, length = batch.input_ids.shape
        if bounds is None:
            return cls(rows, length, None)
        return cls(rows, length, max(_FEWEST, 1 << (len(bounds) - 2).bit_length()))

    def __str__(self) -> str:
        within = "" if self.documents is None else f", up to {self.documents} documents"
        return f"{self.rows} × {self.length} tokens{within}"


Hold = Callable[[str, Tensor], Tensor]
"""Puts a tensor from the host, under a name, where the recordings of one shape read it."""


class Captures:
    """Passes over micro-batches: recorded at the third of a shape and kind, then replayed.

    `pull` is a backward pass: given the layers' states and the gradient of the loss with respect to
    them it adds up the gradients of what is trained, in the same memory each time.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        pull: Callable[[Tensor, Tensor], None],
        recorder: Recorder,
        precision: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._layers, self._recorder = _Layers(model, pull, precision), recorder
        self._passes: dict[Hashable, _Passes] = {}

    def run(
        self,
        batch: Batch,
        tell: Callable[[Hold], None],
        learn: Callable[[Tensor], Tensor],
        kind: Hashable = None,
    ) -> Tensor:
        """Go forward, have `learn` take the loss of the states and its gradient, go backward.

        `tell` says what else the layers are to know, in held tensors; of a kind, all of them have
        the same names and sizes. Returns what `learn` does. A GPU is waited for only when a shape
        is captured.
        """
        bounds = bounds_of(batch.position_ids)
        shape = Shape.of(batch, bounds)
        if (shape, kind) not in self._passes:
            self._passes[shape, kind] = _Passes(self._layers, shape)
        passes = self._passes[shape, kind]
        with self._recorder.beside():
            passes.take(batch, bounds)
            tell(passes.hold)  # before it is captured: what layers are told of is captured too
            if self._is_to_capture(passes):
                passes.capture(self._recorder)
            return passes.run(learn)

    def _is_to_capture(self, passes: "_Passes") -> bool:
        captured = sum(one.is_captured for one in self._passes.values())
        return not passes.is_captured and passes.runs >= _WARM and captured < _MOST


class Graphs:
    """A training run's passes, and the gradients that they add up to.

    What is trained has its gradients in the same memory at all steps.
    """

    def __init__(
        self,
        model: LanguageModel,
        trainable: Iterable[nn.Parameter],
        precision: Callable[[], AbstractContextManager[None]],
        recorder: Recorder,
    ) -> None:
        self._model, self._precision = model, precision
        self._trainable = list(trainable)
        self._gradients = [torch.zeros_like(one) for one in self._trainable]
        self._captures = Captures(model.model, self._pull, recorder, precision)

    def begin(self) -> None:
        """Begin a step: what is trained has zeros for gradients."""
        torch._foreach_zero_(self._gradients)
        for parameter, gradient in zip(self._trainable, self._gradients, strict=True):
            parameter.grad = gradient

    def learn(self, batch: Batch, seeds: Sequence[int], label_tokens: int) -> Tensor:
        """Add the gradient of a micro-batch's summed loss / label_tokens, and return that loss. []

        A GPU is waited for only when a shape is captured.
        """

        def tell(hold: Hold) -> None:
            self._model.routing.row_seeds = hold("seeds", torch.tensor(seeds, dtype=torch.int64))

        def learn(hidden: Tensor) -> Tensor:
            with self._precision():
                loss = self._model.loss_of(hidden, batch.labels) / max(1, label_tokens)
            loss.backward()
            return loss.detach()

        return self._captures.run(batch, tell, learn)

    def _pull(self, states: Tensor, of_states: Tensor) -> None:
        """Sums are added to at the end, all at once: one by one that is a launch for each."""
        found = torch.autograd.grad(states, self._trainable, of_states, allow_unused=True)
        pairs = zip(self._gradients, found, strict=True)
        reached = [(total, one) for total, one in pairs if one is not None]
        torch._foreach_add_([total for total, _ in reached], [one for _, one in reached])


@dataclass(frozen=True)
class _Layers:
    """What the passes of all shapes go through, and back."""

    model: PreTrainedModel
    pull: Callable[[Tensor, Tensor], None]
    precision: Callable[[], AbstractContextManager[None]]
    # by rows and length, for all passes: one at a time is between its forward and its backward
    between: dict[tuple[int, int], "_Between"] = field(default_factory=dict)


@dataclass(frozen=True)
class _Between:
    """Where a forward pass leaves its states, and the backward pass finds their gradient."""

    states: Tensor  # [rows, length, width]
    gradient: Tensor


class _Passes:
    """Forward and backward through the layers for one shape, from and to the same memory."""

    def __init__(self, layers: _Layers, shape: Shape) -> None:
        self._layers, self._shape = layers, shape
        self._held: dict[str, Tensor] = {}
        self._states = torch.empty(0)  # of the forward pass, until the backward pass has been
        self._forward, self._backward = self._run_forward, self._run_backward
        self.runs, self.is_captured = 0, False

    def hold(self, name: str, values: Tensor) -> Tensor:
        """Return where the values are now: at the same place as those before them."""
        if name in self._held:
            overwrite(self._held[name], values)
        else:
            self._held[name] = to_device(values, self._layers.model.device)
        return self._held[name]

    def take(self, batch: Batch, bounds: Tensor | None) -> None:
        """Put in the tokens of the next run."""
        self.hold("ids", batch.input_ids)
        self.hold("positions", batch.position_ids)
        if bounds is not None and self._shape.documents is not None:
            empty = bounds[-1:].expand(self._shape.documents + 1 - len(bounds))
            self.hold("bounds", torch.cat([bounds, empty]))

    def run(self, learn: Callable[[Tensor], Tensor]) -> Tensor:
        """Go forward, learn from the layers' states, and go backward."""
        self.runs += 1
        self._forward()
        hidden = self._between.states.detach().requires_grad_()
        hidden.grad = self._between.gradient.zero_()  # the loss adds to it, and backward reads it
        found = learn(hidden)
        self._backward()
        return found

    def capture(self, recorder: Recorder) -> None:
        """Record both passes: from now on they are replayed."""
        began = time.monotonic()
        gc.collect()  # else what earlier passes left in cycles may be freed amid a recording
        try:
            self._forward = recorder(self._run_forward)
            self._backward = recorder(self._run_backward)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise TrainError(
                f"micro-batches of {self._shape} cannot be captured as CUDA graphs:"
                f" {first_line(error)}",
                "set train.graphs=false",
            ) from error
        self.is_captured = True
        logger.info("captured: micro-batches of %s, %.1f s", self._shape, time.monotonic() - began)

    def _run_forward(self) -> None:
        held = self._held
        apart = told_of(held["bounds"], self._shape.length) if "bounds" in held else {}
        with self._layers.precision():
            self._states = told_states(self._layers.model, held["ids"], held["positions"], apart)
        between, size = self._layers.between, (self._shape.rows, self._shape.length)
        if size not in between:
            between[size] = _Between(*map(torch.empty_like, (self._states, self._states)))
        with torch.no_grad():
            between[size].states.copy_(self._states)

    @property
    def _between(self) -> _Between:
        return self._layers.between[self._shape.rows, self._shape.length]

    def _run_backward(self) -> None:
        self._layers.pull(self._states, self._between.gradient)
        self._states = torch.empty(0)  # what it was made of is free now
