"""Load a config tree from YAML, apply dotted overrides, and explain every mistake at once."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from ftray.errors import ConfigError


class Config(BaseModel):
    """A frozen section of the config tree that rejects the keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="wrap")
    @classmethod
    def _suggest_known_keys(cls, section: Any, validate: Any) -> Any:
        try:
            return validate(section)
        except ValidationError as error:
            problems = [_explained(problem, cls) for problem in error.errors()]
            raise ValidationError.from_exception_data(cls.__name__, problems) from None


ConfigT = TypeVar("ConfigT", bound=Config)
Tree = dict[str, Any]


def read_tree(path: Path) -> Tree:
    """Read a YAML file that holds sections; duplicate keys are refused."""
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys) or {}  # a SafeLoader
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", "ftray init lora > run.yaml") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected sections, found a {type(tree).__name__}")
    return tree


def parse_overrides(texts: Sequence[str]) -> Tree:
    """Map dotted keys to values from `section.key=value` texts; a value is YAML."""
    return dict(_parse_override(text) for text in texts)


def apply(tree: Tree, changes: Mapping[str, Any]) -> Tree:
    """Return `tree` with dotted keys set to new values."""
    tree = {key: dict(value) if isinstance(value, dict) else value for key, value in tree.items()}
    for dotted, value in changes.items():
        *sections, leaf = dotted.split(".")
        node = tree
        for name in sections:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                raise ConfigError(f"override '{dotted}': '{name}' is a value, not a section")
        node[leaf] = value
    return tree


def validated(root: type[ConfigT], tree: Tree, source: str) -> ConfigT:
    """Check the whole tree and return it typed, or name every problem with its dotted key."""
    try:
        return root.model_validate(tree)
    except ValidationError as error:
        problems = [f"{_dotted(p['loc'], tree)}: {p['msg']}" for p in error.errors()]
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise ConfigError("\n  ".join([f"{source}: {count}", *problems])) from None


def override(config: ConfigT, changes: Mapping[str, Any]) -> ConfigT:
    """Return `config` with dotted keys changed and validated again: one Tune trial."""
    tree = config.model_dump(exclude_unset=True)
    return validated(type(config), apply(tree, changes), source="override")


class _UniqueKeys(yaml.SafeLoader):
    """A safe loader for which a key given twice is a mistake, not a silent replacement."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]  # untyped in types-PyYAML
        repeated = sorted({str(key) for key in keys if keys.count(key) > 1})
        if repeated:
            message = f"key given twice: {', '.join(repeated)}"
            raise yaml.constructor.ConstructorError(None, None, message, node.start_mark)
        return super().construct_mapping(node, deep)


def _parse_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise ConfigError(f"override '{text}' must look like section.key=value")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"override '{text}': the value is not valid YAML") from None


def _dotted(loc: tuple[int | str, ...], tree: Any) -> str:
    """Join the location's keys, leaving out the tags that a discriminated union adds."""
    parts = []
    for name in loc:
        is_tag = isinstance(tree, dict) and name not in tree and name in tree.values()
        if is_tag:
            continue
        parts.append(str(name))
        tree = tree.get(name) if isinstance(tree, dict) else None
    return ".".join(parts) or "file"


def _explained(problem: ErrorDetails, section: type[Config]) -> InitErrorDetails:
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden" and len(problem["loc"]) == 1:
        known = list(section.model_fields)
        close = get_close_matches(str(problem["loc"][0]), known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"expected one of: {', '.join(known)}"
        message = f"unknown key; {hint}"
    explained = PydanticCustomError("config", "{message}", {"message": message})
    return InitErrorDetails(type=explained, loc=problem["loc"], input=problem["input"])
