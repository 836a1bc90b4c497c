"""A new knob shows in the diff of keys.txt, and owes a need, a default, a docstring and a test."""

import ast
import inspect
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest

from ftray.config import cluster, data, run, serve
from ftray.config.base import Config
from ftray.config.cluster import ClusterConfig
from ftray.config.run import RunConfig
from ftray.config.serve import Served

KEYS = Path(__file__).parent / "keys.txt"


def test_every_dotted_key_is_listed():
    found = [
        *(f"run {key}" for key in dict.fromkeys(dotted_keys(RunConfig))),
        *(f"cluster {key}" for key in dict.fromkeys(dotted_keys(ClusterConfig))),
        *(f"serve {key.removeprefix('app.')}" for key in dict.fromkeys(dotted_keys(Served))),
    ]
    assert found == KEYS.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    "module", [run, data, cluster, serve], ids=["run", "data", "cluster", "serve"]
)
def test_every_knob_says_its_trade_off(module: types.ModuleType):
    """Sections, tags of unions and plain counts speak for themselves."""
    classes = [n for n in ast.parse(inspect.getsource(module)).body if isinstance(n, ast.ClassDef)]
    silent = {f"{c.name}.{knob}" for c in classes for knob in knobs_without_text(c)}
    assert silent <= {"NodesConfig.count", "NodesConfig.cpus", "NodesConfig.gpus"}


def dotted_keys(section: type[Config], start: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        inner = list(dict.fromkeys(sections(field.annotation)))
        if not inner:
            yield f"{start}{name}"
        for one in inner:
            yield from dotted_keys(one, f"{start}{name}.")


def sections(annotation: Any) -> Iterator[type[Config]]:
    if inspect.isclass(annotation) and issubclass(annotation, Config):
        yield annotation
    elif get_origin(annotation) is Annotated:
        yield from sections(get_args(annotation)[0])
    else:
        for part in get_args(annotation):
            yield from sections(part)


def knobs_without_text(section: ast.ClassDef) -> Iterator[str]:
    for node, after in zip(section.body, [*section.body[1:], ast.Pass()], strict=True):
        if not isinstance(node, ast.AnnAssign):
            continue
        kind = ast.unparse(node.annotation)
        is_section = "Config" in kind or (kind.startswith("Literal") and "," not in kind)
        if not is_section and not (isinstance(after, ast.Expr)):
            yield ast.unparse(node.target)
