"""Joint micro-batches as CUDA graphs, recorded anew when trials have come or gone."""

import gc
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ftray.config.run import RunConfig
from ftray.data.batching.collation import Batch
from ftray.model.shape import ModelShape
from ftray.train.capture import Captures, CudaRecorder, Hold, Recorder, is_captured
from ftray.train.launches import joint_launch_seconds, product_seconds
from ftray.tune.packed.bank import Bank
from ftray.tune.packed.memory import joint_obstacle
from ftray.tune.packed.stack import Adapter


class JointGraphs:
    """The passes of all trials that are there, on rows that are padded to one length.

    Adapters that come or go have the others' weights move, so that what was recorded is of no use.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        bank: Bank,
        config: RunConfig,
        shape: ModelShape | None,
        recorder: Callable[[], Recorder],
    ) -> None:
        self._model, self._bank, self._recorder = model, bank, recorder
        self._config, self._shape = config, shape
        self._captures: Captures | None = None
        bank.before_change = self.drop

    def row_length(self, lengths: Sequence[int], most_tokens: int) -> int | None:
        """Return what rows of these lengths are to be padded to; None: better not replayed.

        Padded or not, they come in micro-batches of at most so many tokens.
        """
        length = self._config.data.max_length
        if not lengths or max(lengths) > length:
            return None
        return length if self.is_wanted or self._pays(lengths, most_tokens) else None

    def _pays(self, lengths: Sequence[int], most_tokens: int) -> bool:
        if self._shape is None:
            return False
        launches = -(-sum(lengths) // most_tokens) * joint_launch_seconds(self._shape)
        padded = len(lengths) * self._config.data.max_length
        return launches > product_seconds(self._config, self._shape, padded)

    @property
    def is_wanted(self) -> bool:
        """Whether the run insists, so that what cannot be recorded is an error."""
        return self._config.train.graphs is True

    def learn(
        self,
        batch: Batch,
        owners: Sequence[Adapter],
        seeds: Sequence[int],
        of_states: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Add up the adapters' gradients; `of_states` takes the loss, see `Captures.run`."""
        if self._captures is None:
            self._captures = Captures(self._model, _pull, self._recorder())

        def tell(hold: Hold) -> None:
            self._bank.route(owners, seeds, hold)

        return self._captures.run(batch, tell, of_states, self._bank.kind(owners))

    def drop(self) -> None:
        """Let recordings go, and the memory that they hold."""
        if self._captures is None:
            return
        self._captures = None
        gc.collect()
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()


def cuda_graphs(
    config: RunConfig,
    model: PreTrainedModel,
    bank: Bank,
    shape: ModelShape | None,
    *,
    compiled: bool,
) -> tuple[JointGraphs | None, str]:
    """Return what records on the model's GPU, with the reason; None: nothing is to be recorded."""
    obstacle = joint_obstacle(config)
    captured, why = is_captured(config, model, compiled=compiled, pays=True, obstacle=obstacle)
    if not captured:
        return None, why
    # a recorder for each set of trials: memory that was let go cannot be recorded into again
    graphs = JointGraphs(model, bank, config, shape, lambda: CudaRecorder(model.device))
    if graphs.is_wanted:
        return graphs, why
    return graphs, "joint micro-batches are replayed where launches outlast products"


def _pull(states: Tensor, of_states: Tensor) -> None:
    states.backward(of_states)
