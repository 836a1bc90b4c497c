"""A tally: counts that one thread adds to, while another carries them to the database."""

import threading
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Count:
    """Requests and the tokens of their prompts and answers; negative where something is undone."""

    requests: int = 0
    prompt: int = 0
    answer: int = 0

    def __add__(self, other: "Count") -> "Count":
        return Count(
            self.requests + other.requests, self.prompt + other.prompt, self.answer + other.answer
        )

    @property
    def tokens(self) -> int:
        """Of prompts and answers."""
        return self.prompt + self.answer


class Tally(Generic[Name]):
    """Counts by name. Those under way to the database still count, until they have arrived."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[Name, Count] = {}
        self._under_way: dict[Name, Count] = {}

    def add(self, name: Name, count: Count) -> None:
        """Count."""
        with self._lock:
            self._waiting[name] = self._waiting.get(name, Count()) + count

    def count(self, name: Name) -> Count:
        """Return what the database does not have yet."""
        with self._lock:
            return self._waiting.get(name, Count()) + self._under_way.get(name, Count())

    def take(self) -> Mapping[Name, Count]:
        """Send off all counts; `arrived` or `returned` has to follow."""
        with self._lock:
            self._under_way, self._waiting = self._waiting, {}
            return self._under_way

    def arrived(self) -> None:
        """The database has what was taken."""
        with self._lock:
            self._under_way = {}

    def returned(self) -> None:
        """The database could not be reached: they wait again."""
        with self._lock:
            for name, count in self._under_way.items():
                self._waiting[name] = self._waiting.get(name, Count()) + count
            self._under_way = {}
