"""What a search varies: run keys, the distribution that each is drawn from, and when it counts."""

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from ftray.config.base import Config

Value = Any  # of a run key, as YAML holds it
Values = dict[str, Value]
Label = str | float | int | bool | None
Kind = Literal["choice", "grid", "uniform", "loguniform", "int"]
_WITHIN = 0.381966  # of a range: a number that is surely not whole
_KINDS: tuple[Kind, ...] = ("choice", "grid", "uniform", "loguniform", "int")

Numbers = Annotated[list[float], Field(min_length=2, max_length=2)]
Bounds = Annotated[list[int], Field(min_length=2, max_length=2)]


class DrawConfig(Config):
    """Where the values of one run key come from: exactly one of five distributions."""

    choice: Annotated[list[Value], Field(min_length=1)] | None = None
    """One of these, each as likely."""
    grid: Annotated[list[Value], Field(min_length=1)] | None = None
    """All of these, each with all of the other grids; only for searcher random."""
    uniform: Numbers | None = None
    """A number from the first to the second."""
    loguniform: Numbers | None = None
    """The same, with each power of ten as likely: for rates that span several."""
    int: Bounds | None = None
    """A whole number from the first to the second, both included."""
    when: dict[str, Value] | None = None
    """Only counts where keys above have this value, or one of these; else the run's own holds."""

    @property
    def kind(self) -> Kind:
        """Which distribution it is."""
        return next(kind for kind in _KINDS if self.model_dump()[kind] is not None)

    @property
    def options(self) -> list[Value] | None:
        """Every value that it can have, None where it is from a range."""
        return self.choice if self.choice is not None else self.grid

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the greatest number of a range."""
        low, high = self.uniform or self.loguniform or self.int or [math.nan, math.nan]
        return low, high

    @property
    def ends(self) -> list[Value]:
        """Values at which a mistake shows: every option, or a range's ends and one between."""
        if self.options is not None:
            return self.options
        low, high = self.bounds
        return self.int or [low, high, low + (high - low) * _WITHIN]

    @property
    def labels(self) -> list[Label]:
        """The options as searchers know them: a list, as of layers, is its JSON text."""
        return [_label(option) for option in self.options or []]

    def value_of(self, label: Value) -> Value:
        """Return the option that a label stands for; a number of a range is itself."""
        return next((one for one in self.options or [] if _label(one) == label), label)

    @model_validator(mode="before")
    @classmethod
    def _is_a_mapping(cls, tree: Any) -> Any:
        if tree is None or not isinstance(tree, dict | DrawConfig):
            raise ValueError(
                f"expected a distribution as in {{choice: [4, 8, 16]}}, found {json.dumps(tree)}"
            )
        return tree

    @model_validator(mode="after")
    def _is_one_distribution(self) -> Self:
        given = [kind for kind in _KINDS if self.model_dump()[kind] is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"expected exactly one of {', '.join(_KINDS)}, found {found}")
        if self.options is None:
            self._check_range()
        if self.grid is not None and self.when is not None:
            raise ValueError("a grid cannot depend on other keys: use choice")
        return self

    def _check_range(self) -> None:
        low, high = self.bounds
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"{self.kind} needs a lower and a higher number, found {low}, {high}")
        if self.loguniform is not None and low <= 0:
            raise ValueError(f"loguniform needs numbers above 0, found {low}")

    @field_validator("choice", "grid")
    @classmethod
    def _all_differ(cls, options: list[Value] | None) -> list[Value] | None:
        labels = [repr(_label(option)) for option in options or []]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} is given twice")
        return options


Space = dict[str, DrawConfig]


def drawn(space: Space, labels: Mapping[str, Value]) -> Values:
    """Return the values of one draw by run key; those whose condition is not met are left out."""
    values: Values = {}
    for key, draw in space.items():
        if key in labels and is_met(draw, values):
            values[key] = draw.value_of(labels[key])
    return values


def is_met(draw: DrawConfig, values: Mapping[str, Value]) -> bool:
    """Say whether the values of the keys above let this one count."""
    when = draw.when or {}
    return all(key in values and values[key] in wanted(one) for key, one in when.items())


def wanted(condition: Value) -> list[Value]:
    """Return the values that a condition names: one, or any of several."""
    return condition if isinstance(condition, list) else [condition]


def _label(option: Value) -> Label:
    if isinstance(option, list | dict):
        return json.dumps(option)
    return option  # type: ignore[no-any-return]  # what YAML holds else is a scalar
