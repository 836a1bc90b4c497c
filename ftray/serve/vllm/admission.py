"""What is refused before vLLM is asked."""

from dataclasses import dataclass

from ftray.serve.protocol import Generation, RefusedError


@dataclass(frozen=True)
class Admission:
    """A server's bounds."""

    max_length: int
    vocabulary: int
    most: int  # generations at once, waiting ones too

    def check(self, generation: Generation, open: int) -> None:
        """Raise RefusedError for what can never run, and for what is too much now."""
        wish = generation
        if open >= self.most:
            raise RefusedError(f"{open} generations run and wait", code="queue_full")
        if not wish.prompt:
            raise RefusedError("the prompt has no tokens", code="context_length")
        if len(wish.prompt) + max(wish.max_tokens, 0) > self.max_length:
            raise RefusedError(
                f"prompt ({len(wish.prompt)} tokens) and answer ({wish.max_tokens}) are longer than"
                f" the {self.max_length} tokens of the model",
                code="context_length",
            )
        ids = (*wish.prompt, *wish.sampling.logit_bias)
        if unknown := [id for id in ids if not 0 <= id < self.vocabulary]:
            reason = f"there is no token {unknown[0]}: the model has {self.vocabulary}"
            raise RefusedError(reason, code="context_length")
