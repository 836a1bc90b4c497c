"""Load a config tree from YAML, apply dotted overrides, and explain every mistake at once."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

from ftray.config.mistakes import explained, lines
from ftray.errors import ConfigError


class Config(BaseModel):
    """A frozen section of the config tree that rejects the keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @model_validator(mode="wrap")
    @classmethod
    def _explain_mistakes(cls, section: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return validate({} if section is None else section)  # `eval:` alone means its defaults
        except ValidationError as error:
            problems = [explained(problem, list(cls.model_fields)) for problem in error.errors()]
            raise ValidationError.from_exception_data(cls.__name__, problems) from None


ConfigT = TypeVar("ConfigT", bound=Config)
Tree = dict[str, Any]


def read_tree(path: Path, hint: str = "") -> Tree:
    """Read a YAML file that holds sections; a key given twice is refused."""
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)  # a SafeLoader
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", hint) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path} line {line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        found = "an empty file" if tree is None else f"a {type(tree).__name__}"
        raise ConfigError(f"{path}: expected sections, found {found}", hint)
    return tree


def parse_overrides(texts: Sequence[str]) -> Tree:
    """Map dotted keys to values from `section.key=value` texts; a value is YAML."""
    return dict(_parse_override(text) for text in texts)


def apply(tree: Tree, changes: Mapping[str, Any]) -> Tree:
    """Return a copy of `tree` with dotted keys set to new values."""
    changed = deepcopy(tree)
    for dotted, value in changes.items():
        *sections, leaf = dotted.split(".")
        node = changed
        for name in sections:
            if node.get(name) is None:
                node[name] = {}
            node = node[name]
            if not isinstance(node, dict):
                raise ConfigError(f"override '{dotted}': '{name}' is a value, not a section")
        node[leaf] = value
    return changed


def validated(root: type[ConfigT], tree: Tree, source: str) -> ConfigT:
    """Check the whole tree and return it typed, or name every problem with its dotted key."""
    try:
        return root.model_validate(tree)
    except ValidationError as error:
        problems = lines(error, tree)
    if len(problems) == 1:
        raise ConfigError(f"{source}: {problems[0]}")
    raise ConfigError("\n  ".join([f"{source}: {len(problems)} problems", *problems]))


def override(config: ConfigT, changes: Mapping[str, Any]) -> ConfigT:
    """Return `config` with dotted keys changed and validated again: one Tune trial."""
    return validated(type(config), apply(config.model_dump(), changes), source="override")


def to_yaml(config: Config) -> str:
    """Return the whole tree with its defaults as YAML, in the order of the schema."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class _UniqueKeys(yaml.SafeLoader):
    """A safe loader for which a key given twice is a mistake, not a silent replacement."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                problem = f"key given twice: {key.value}"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _parse_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (equals and all(key.split("."))):
        raise ConfigError(
            f"'{text}' is not an override", "section.key=value, as in train.learning_rate=1e-4"
        )
    try:
        return key, yaml.load(value, _UniqueKeys)
    except yaml.YAMLError:
        raise ConfigError(f"override '{text}': the value is not valid YAML") from None
