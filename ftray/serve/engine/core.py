"""What an engine is made of once its base model is loaded."""

from collections.abc import Callable
from dataclasses import dataclass

from ftray.serve.engine.base import ServedBase
from ftray.serve.engine.batch import Batch
from ftray.serve.engine.grammar import Vocabulary
from ftray.serve.engine.layers import AdapterLayers
from ftray.serve.engine.limits import EngineLimits
from ftray.serve.engine.probe import choose_batch
from ftray.serve.engine.stepper import Stepper
from ftray.serve.protocol import Generation, Piece, RefusedError


@dataclass(frozen=True)
class Core:
    """The parts, and what they can do at most."""

    base: ServedBase
    layers: AdapterLayers
    vocabulary: Vocabulary
    batch: Batch
    stepper: Stepper
    notes: tuple[str, ...]

    def check(self, generation: Generation, max_length: int) -> None:
        """Refuse a generation that can never be computed."""
        wish, size = generation, self.base.vocabulary
        length = len(wish.prompt) + max(wish.max_tokens, 0)
        if not wish.prompt:
            raise RefusedError("the prompt has no tokens", code="context_length")
        if length > max_length:
            raise RefusedError(
                f"prompt ({len(wish.prompt)} tokens) and answer ({wish.max_tokens}) are longer than"
                f" the {max_length} tokens of the model",
                code="context_length",
            )
        if not self.batch.fits([length]):
            reason = f"{length} tokens do not fit into the memory for keys and values"
            raise RefusedError(reason, "raise kv_bytes", code="context_length")
        unknown = [id for id in (*wish.prompt, *wish.sampling.logit_bias) if not 0 <= id < size]
        if unknown:
            reason = f"there is no token {unknown[0]}: the model has {size}"
            raise RefusedError(reason, code="context_length")


def build_core(
    base: ServedBase, limits: EngineLimits, publish: Callable[[list[Piece]], None]
) -> Core:
    """Put the adapters' layers in and find out how rows can be batched; computes a few tokens."""
    layers = AdapterLayers(base.model, limits.rows)
    vocabulary = Vocabulary(base.tokenizer, base.vocabulary, base.ends)
    chosen = choose_batch(base.model, layers, limits)
    stepper = Stepper(chosen.batch, vocabulary, limits, publish)
    return Core(base, layers, vocabulary, chosen.batch, stepper, chosen.notes)
