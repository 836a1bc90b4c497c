"""What the engine is to be asked for."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ftray.serve.openai.service import Resolved
from ftray.serve.openai.tools import CallStyle
from ftray.serve.protocol import EngineInfo, Generation, Sampling


@dataclass(frozen=True)
class Plan:
    """A request in the words of the model that was chosen for it."""

    prompts: list[tuple[int, ...]]
    sampling: Sampling
    n: int
    max_tokens: int | None  # None: what is left
    stop: tuple[str, ...]
    stop_ids: tuple[int, ...] | None
    logprobs: int | None
    grammar: str | None = None
    calls: CallStyle | None = None  # how the answer's tool calls are written
    echoes: tuple[str, ...] = ()  # the texts that answers begin with

    def generations(
        self, id: str, resolved: Resolved, rooms: list[int], owner: str, seconds: float
    ) -> list[Generation]:
        """Return one generation for each prompt; `rooms` are their answers' longest lengths."""
        return [
            Generation(
                id=f"{id}-{number}",
                prompt=prompt,
                adapter=resolved.digest or None,
                max_tokens=room,
                sampling=self.sampling,
                n=self.n,
                stop=self.stop,
                stop_ids=self.stop_ids,
                logprobs=self.logprobs,
                grammar=self.grammar,
                owner=owner,
                deadline_seconds=seconds,
            )
            for number, (prompt, room) in enumerate(zip(self.prompts, rooms, strict=True))
        ]


MakePlan = Callable[[Resolved, EngineInfo], Awaitable[Plan]]
