"""Which run keys a search may vary, and whether every value that it may draw is a possible one."""

import random
from collections.abc import Iterator, Mapping

from ftray.config.base import Config, override
from ftray.config.data import DataConfig
from ftray.config.run import (
    CheckpointConfig,
    EvalConfig,
    FullConfig,
    ModelConfig,
    QloraConfig,
    RunConfig,
    ScalingConfig,
    TrainConfig,
)
from ftray.config.space import DrawConfig, Space, Value, Values, drawn, wanted
from ftray.errors import ConfigError, did_you_mean

_SECTIONS: dict[str, type[Config]] = {
    "model": ModelConfig,
    "adapter": QloraConfig,  # has every key of the others
    "train": TrainConfig,
    "data": DataConfig,
    "eval": EvalConfig,
    "scaling": ScalingConfig,
    "checkpoint": CheckpointConfig,
}
_MAY_VARY = {"model", "adapter", "train"}
_READING = {"data.packing", "data.max_length", "data.overflow"}  # the tokens stay the same
_WITHOUT_EFFECT = {
    "train.micro_batch_size",
    "train.activation_checkpointing",
    "train.compile",
    "train.objective",
    "model.trust_remote_code",
}
_OWN_BASE = {
    "adapter",
    "adapter.method",
    "adapter.base_precision",
    "adapter.double_quantization",
    "adapter.init_from",
    "train.optimizer",
}
_COMBINATIONS = 20  # that are tried of all that could be drawn


def checked_space(space: Space, run: RunConfig, source: str) -> Space:
    """Check each key and the ends of its distribution; ConfigError names all mistakes at once.

    Options come back as the run's schema reads them: `1e-4`, which is text in YAML, is a number.
    """
    problems = [problem for key in space for problem in _of_key(key, space)]
    if not problems:
        problems = [problem for key in space for problem in _of_values(key, space, run)]
    if not problems:
        space = {key: _as_read(key, draw, space, run) for key, draw in space.items()}
        problems = list(_of_combinations(space, run))
    if len(problems) == 1:
        raise ConfigError(f"{source}: {problems[0]}")
    if problems:
        raise ConfigError("\n  ".join([f"{source}: {len(problems)} problems", *problems]))
    return space


def needs_ordinary(space: Space, run: RunConfig) -> str:
    """Say why trials of this space cannot share one base; empty where they can."""
    for key in space:
        if key in _OWN_BASE or key == "model" or key.startswith("model."):
            return f"space.{key}: packed trials share one base model, and have that in common"
    if isinstance(run.adapter, FullConfig):
        return "adapter.method=full trains the base itself, which packed trials share"
    if run.adapter.init_from is not None:
        return "adapter.init_from: packed trials start with fresh adapters"
    if run.train.optimizer != "adamw":
        return f"train.optimizer={run.train.optimizer}: packed trials have adamw alone"
    if run.scaling.most_workers > 1:
        return f"scaling.num_workers={run.scaling.most_workers}: packed trials have one worker"
    return ""


def _of_key(key: str, space: Space) -> Iterator[str]:
    section = key.partition(".")[0]
    if key not in _known():
        yield f"space.{key}: unknown key; {did_you_mean(key, _known())}"
    elif key in _WITHOUT_EFFECT:
        yield f"space.{key}: does not change what a trial learns; set it in the run"
    elif section == "data" and key not in _READING:
        yield f"space.{key}: trials with other rows could not be compared; set it in the run"
    elif section not in _MAY_VARY and section != "data":
        yield f"space.{key}: is the same for all trials; set it in the run"
    above = list(space)[: list(space).index(key)]
    for name, condition in (space[key].when or {}).items():
        if name not in above:
            where = "is not above it in the space" if name in space else "is not in the space"
            hint = did_you_mean(name, above, otherwise="conditions look at keys above")
            yield f"space.{key}.when: {name} {where}; {hint}"
            continue
        yield from _of_condition(f"space.{key}.when.{name}", condition, space[name])


def _of_condition(where: str, condition: Value, draw: DrawConfig) -> Iterator[str]:
    if draw.options is None:
        yield f"{where}: {draw.kind} has no single values: conditions need choice or grid"
        return
    for value in wanted(condition):
        if value not in draw.options:
            known = ", ".join(map(str, draw.options))
            yield f"{where}: {value} is never drawn; expected one of: {known}"


def _of_values(key: str, space: Space, run: RunConfig) -> Iterator[str]:
    if not _fits(run, conditions := _conditions(key, space)):
        return  # the mistake is told where those values are given
    for value in space[key].ends:
        try:
            override(run, {**conditions, key: value})
        except ConfigError as error:
            yield f"space.{_told(error, key, value)}"


def _told(error: ConfigError, key: str, value: Value) -> str:
    """Name the space's key and value where the schema's message does not."""
    said = error.message.removeprefix("override: ")
    return said if said.startswith(f"{key}: ") else f"{key}: {value}: {said}"


def _fits(run: RunConfig, values: Mapping[str, Value]) -> bool:
    try:
        override(run, values)
    except ConfigError:
        return False
    return True


def _conditions(key: str, space: Space) -> Values:
    """Values under which a key counts."""
    values: Values = {}
    for name, condition in (space[key].when or {}).items():
        values |= {**_conditions(name, space), name: wanted(condition)[0]}
    return values


def _as_read(key: str, draw: DrawConfig, space: Space, run: RunConfig) -> DrawConfig:
    if draw.options is None or key in _SECTIONS:
        return draw
    conditions = _conditions(key, space)
    read = [_at(override(run, {**conditions, key: option}), key) for option in draw.options]
    return draw.model_copy(update={draw.kind: read})


def _at(run: RunConfig, key: str) -> Value:
    section, _, leaf = key.partition(".")
    return run.model_dump(mode="json")[section][leaf]


def _of_combinations(space: Space, run: RunConfig) -> Iterator[str]:
    """Try some draws whole: keys that are possible one by one may not be together."""
    generator = random.Random(0)
    for _ in range(_COMBINATIONS):
        labels = {key: generator.choice(_tried(draw)) for key, draw in space.items()}
        values = drawn(space, labels)
        try:
            override(run, values)
        except ConfigError as error:
            together = ", ".join(f"{key}={value}" for key, value in values.items())
            yield f"space: {error.message.removeprefix('override: ')} (with {together})"
            return


def _tried(draw: DrawConfig) -> list[Value]:
    return draw.labels or draw.ends


def _known() -> list[str]:
    inner = [f"{name}.{key}" for name, section in _SECTIONS.items() for key in section.model_fields]
    return ["name", "storage", "tracking", "model", "adapter", *inner]
