"""Pydantic's validation problems in the words of somebody who edits the file."""

from collections.abc import Collection
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from ftray.errors import did_you_mean

Words = dict[str, str]  # message: the whole sentence; expected: what would have been right, or ""


def explained(problem: ErrorDetails, known_keys: Collection[str]) -> InitErrorDetails:
    """Put one problem of a section into words; one that an inner section explained stays."""
    # the text goes in as a value, so that braces in the user's input do no harm
    error = PydanticCustomError(problem["type"], "{message}", _words(problem, known_keys))
    return InitErrorDetails(type=error, loc=problem["loc"], input=problem["input"])


def lines(error: ValidationError, tree: Any) -> list[str]:
    """Return one line for each wrong key of the file's `tree`; a union's branches share one."""
    problems: dict[str, list[Words]] = {}
    for problem in error.errors():
        problems.setdefault(_dotted(problem, tree), []).append(_words(problem, ()))
    inner = {key.rpartition(".")[0] for key in problems}
    told = {key: _joined(group) for key, group in problems.items() if key not in inner - {""}}
    return [f"{key}: {text}" if key else text for key, text in told.items()]


def _words(problem: ErrorDetails, known_keys: Collection[str]) -> Words:
    context = problem.get("ctx", {})
    if "message" in context:
        return context
    match problem["type"]:
        case "extra_forbidden":
            hint = did_you_mean(problem["loc"][-1], known_keys)
            return {"message": f"unknown key; {hint}", "expected": ""}
        case "missing":
            return {"message": "missing, and it has no default", "expected": ""}
        case "value_error":
            return {"message": problem["msg"].removeprefix("Value error, "), "expected": ""}
        case "union_tag_invalid":
            expected, found = context["expected_tags"], context["tag"]
        case "too_short":
            expected, found = f"at least {_items(context['min_length'])}", problem["input"]
        case "too_long":
            expected, found = f"at most {_items(context['max_length'])}", problem["input"]
        case kind:
            plain = problem["msg"].removeprefix("Input should be ").split(", unable")[0]
            expected, found = _KINDS.get(kind, plain), problem["input"]
    return _expectation(expected, found)


def _items(count: int) -> str:
    return "1 item" if count == 1 else f"{count} items"


def _expectation(expected: str, found: Any) -> Words:
    choices = [word for word in expected.split("'")[1::2] if word]
    hint = did_you_mean(found, choices, otherwise="")
    found_it = f"expected {expected}, found {_IN_YAML.get(repr(found), repr(found))}"
    return {"message": f"{found_it}; {hint}" if hint else found_it, "expected": expected}


_IN_YAML = {"None": "nothing", "True": "true", "False": "false"}
_KINDS = {
    "invalid_key": "text as a key",
    "model_type": "a section of keys",
    "model_attributes_type": "a section of keys",
    "dict_type": "a section of keys",
    "list_type": "a list",
    "string_type": "text",
    "string_pattern_mismatch": "a-z, 0-9, '.', '_' and '-', a letter or digit first, at most 63",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_parsing": "true or false",
}


def _joined(group: list[Words]) -> str:
    first, *others = group
    if not others or not all(words["expected"] for words in group):
        return "; ".join(dict.fromkeys(words["message"] for words in group))
    choices = " or ".join(dict.fromkeys(words["expected"] for words in group))
    return first["message"].replace(first["expected"], choices, 1)


def _dotted(problem: ErrorDetails, tree: Any) -> str:
    """Join the location's keys, leaving out the names that pydantic gives to union branches."""
    *sections, last = problem["loc"] or [""]
    parts = []
    for name in sections:
        inner = _child(tree, name)
        parts += [] if inner is _NO_CHILD else [str(name)]
        tree = tree if inner is _NO_CHILD else inner
    is_key = problem["type"] == "missing" or _child(tree, last) is not _NO_CHILD
    return ".".join([*parts, str(last)] if is_key else parts)


_NO_CHILD = object()


def _child(tree: Any, name: int | str) -> Any:
    if isinstance(tree, dict):
        return tree.get(name, _NO_CHILD)
    is_item = isinstance(tree, list) and isinstance(name, int) and name < len(tree)
    return tree[int(name)] if is_item else _NO_CHILD
