"""The rules of the house that ruff, mypy and import-linter cannot hold, without exception lists."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "ftray").rglob("*.py"))
PYTHON = SOURCES + sorted((ROOT / "tests").rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in PYTHON}

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_COMMAND_LINES = 15
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc", "v2"}
TOP_LEVEL = {
    *("pyproject.toml", "README.md", "cluster", "ftray", "tune_spaces", "tests", "deploy"),
    *("Makefile", "CHANGELOG.md", "CONTRIBUTING.md", "constraints.txt", ".ci"),
    *(".gitignore", ".gitattributes", ".dockerignore", ".pre-commit-config.yaml"),
}
LIGHT = (
    *("errors", "config.run", "config.cluster", "storage", "registry", "runs", "searches"),
    *("garbage.sweep", "model.shape", "train.plan", "commands", "cli"),
)
HEAVY = ("torch", "ray", "transformers", "peft")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def test_no_file_is_longer_than_a_reader_can_hold():
    long = {_name(p): len(p.read_text(encoding="utf-8").splitlines()) for p in PYTHON}
    assert {name: lines for name, lines in long.items() if lines > MAX_FILE_LINES} == {}


def test_no_function_is_longer_than_a_screen():
    long = {
        f"{_name(path)}:{function.name}": _lines(function)
        for path in PYTHON
        for function in _functions(path)
        if _lines(function) > MAX_FUNCTION_LINES
    }
    assert long == {}


def test_commands_are_a_table_of_contents():
    """A verb has at most 15 lines of code: the docstring and blank lines do not count."""
    long = {}
    for path in (path for path in SOURCES if _is_command(path)):
        text = path.read_text(encoding="utf-8").splitlines()
        for function in _functions(path):
            body = [node for node in function.body if not _is_docstring(node)]
            code = text[body[0].lineno - 1 : function.end_lineno]
            long[function.name] = sum(1 for line in code if line.strip())
    assert {name: lines for name, lines in long.items() if lines > MAX_COMMAND_LINES} == {}


def test_nothing_is_named_for_what_it_is_not():
    words = {_name(path): set(re.split(r"[_.]", path.stem)) for path in PYTHON}
    assert {name for name, parts in words.items() if parts & FORBIDDEN_NAMES} == set()


def test_imports_are_late_only_in_commands_and_for_optional_packages():
    late = [
        f"{_name(path)}:{node.lineno} {module}"
        for path in SOURCES
        if not _is_command(path)
        for node, module in _late_imports(path)
        if not module.startswith(tuple(_optional_packages()))
    ]
    assert late == []


def test_ignores_and_wide_nets_carry_their_reason():
    """As in `# type: ignore[x]  # why`, or `except Exception:  # why`."""
    marks = re.compile(r"# type: ignore|# noqa|except Exception|(?<![\w.])(get|has)attr\(")
    reason = re.compile(r"(# type: ignore\[[\w-]+\]|# noqa: \w+|\):?|Exception.*:)\s+# \w.*")
    bare = [
        f"{_name(path)}:{number}"
        for path in SOURCES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if marks.search(line) and not reason.search(line)
    ]
    assert bare == []


def test_booleans_are_passed_by_keyword():
    positional = [
        f"{_name(path)}:{function.name}({argument.arg})"
        for path in SOURCES
        for function in TREES[path].body
        if isinstance(function, Function)
        for argument in [*function.args.posonlyargs, *function.args.args]
        if isinstance(argument.annotation, ast.Name) and argument.annotation.id == "bool"
    ]
    assert positional == []


def test_more_than_two_results_have_names():
    tuples = [
        f"{_name(path)}:{function.name} -> {ast.unparse(function.returns)}"
        for path in SOURCES
        for function in _functions(path)
        if function.returns is not None and _is_long_tuple(function.returns)
    ]
    assert tuples == []


def test_keyword_arguments_are_not_passed_through():
    through = [
        f"{_name(path)}:{function.name}"
        for path in SOURCES
        for function in _functions(path)
        if function.args.kwarg is not None
    ]
    assert through == []


def test_no_model_is_special():
    """A branch on the model's family ages with every release of transformers."""
    found = [p for p in SOURCES if re.search(r"model_type\s*[!=]=", p.read_text(encoding="utf-8"))]
    assert found == []


def test_tests_use_no_mocks_and_read_as_sentences():
    tests = [path for path in PYTHON if path.name.startswith("test_")]
    mock = re.compile(r"^(from|import) unittest", re.MULTILINE)
    mocks = [_name(path) for path in tests if mock.search(path.read_text(encoding="utf-8"))]
    short = [
        f"{_name(path)}:{function.name}"
        for path in tests
        for function in _functions(path)
        if function.name.startswith("test_") and function.name.count("_") < 3
    ]
    assert (mocks, short) == ([], [])


def test_only_what_every_project_has_lies_at_the_top():
    assert {path.parts[0] for path in _committed()} - TOP_LEVEL == set()


def test_nothing_committed_names_a_machine_or_a_package_index():
    private = re.compile(r"(?<![\w.:/}])/(home|root|Users|work|opt|mnt)/\w|index-url|find-links")
    texts = [path for path in _committed() if path != Path(__file__).relative_to(ROOT)]
    found = {
        f"{path}:{number}"
        for path in texts
        for number, line in enumerate(_text(path).splitlines(), 1)
        if private.search(line)
    }
    assert found == set()


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_load_no_heavy_library(module: str):
    probe = f"import sys, ftray.{module}; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _functions(path: Path) -> Iterator[Function]:
    return (node for node in ast.walk(TREES[path]) if isinstance(node, Function))


def _is_command(path: Path) -> bool:
    return path.is_relative_to(ROOT / "ftray" / "commands")


def _lines(function: Function) -> int:
    return (function.end_lineno or 0) - function.lineno + 1


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_long_tuple(annotation: ast.expr) -> bool:
    if not (isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "tuple"):
        return False
    parts = annotation.slice
    is_open = "..." in ast.unparse(parts)
    return isinstance(parts, ast.Tuple) and len(parts.elts) > 2 and not is_open


def _late_imports(path: Path) -> Iterator[tuple[ast.stmt, str]]:
    for function in _functions(path):
        for node in ast.walk(function):
            if isinstance(node, ast.ImportFrom):
                yield node, node.module or ""
            elif isinstance(node, ast.Import):
                yield from ((node, alias.name) for alias in node.names)


def _optional_packages() -> set[str]:
    """Packages of the extras, and those that few runs or few moments of a run need.

    bitsandbytes loads torch's compiler, more than a second of each process that imports it, and
    PEFT loads bitsandbytes: a restart of a killed run would wait for both. A run's driver starts
    its workers before it imports torch.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    named = {re.split(r"[\[>=<]", line)[0] for line in extras} - {"ftray"}
    by_uri = {"aiohttp", "datasets", "fsspec", "huggingface_hub", "pyarrow.fs"}
    ours = {f"ftray.train.{name}" for name in ("plot", "preparation", "publish", "start", "worker")}
    return named | by_uri | ours | {"bitsandbytes", "ftray.serve.otel"}


def _committed() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [Path(name) for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


def _text(path: Path) -> str:
    return (ROOT / path).read_bytes().decode("utf-8", "replace")
