"""The command line: parse, call a verb, print its answer; errors become exit codes."""

import argparse
import gc
import json
import logging
import os
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import is_dataclass
from typing import NoReturn

from rich.console import Console

from ftray import __version__
from ftray.answers import Answer
from ftray.errors import ConfigError, FtrayError, StorageError, did_you_mean
from ftray.verbs import add_verbs


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; a bug ends in a traceback and code 1."""
    # Threads that spin while they wait take each other's cores: on a busy machine 5× the time.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A thread that is late when Ray has been shut down must not start another Ray.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    gc.set_threshold(50_000)  # imports make many objects and no garbage: a tenth of their time
    try:
        given = _parsed(sys.argv[1:] if arguments is None else list(arguments))
        _log_to_stderr(verbose=given.verbose)
        with redirect_stdout(sys.stderr):  # libraries talk too; stdout is for the answer
            answer: Answer = given.verb(given)
        _print(answer, as_json=given.json)
    except FtrayError as error:
        hint = f"\nhint: {error.hint}" if error.hint else ""
        print(f"error: {error.message}{hint}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return answer.exit_code


def _parsed(arguments: list[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="ftray",
        description="Fine-tune language models on a Ray cluster.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ftray {__version__}")
    parser.set_defaults(overrides=[], json=False, verbose=False)
    add_verbs(parser)
    given, left = parser.parse_known_args(arguments or ["--help"])
    # argparse closes a list of positionals at the first option: `run.yaml --json k=v` leaves k=v
    unknown = [text for text in left if text.startswith("-") or not given.takes_overrides]
    if unknown:
        said = f"{given.called}: unknown arguments: {' '.join(unknown)}"
        raise ConfigError(said, f"{given.called} --help")
    given.overrides = [*given.overrides, *left]
    return given


_EPILOG = """\
from nothing to a tuned model:
  ftray init lora > run.yaml        then edit: name, model, data
  ftray check run.yaml              what it will be, and whether it fits
  ftray data preview run.yaml       rows as the model will see them
  ftray data check run.yaml         lengths, repeats, overlap, bad rows: is it worth training on?
  ftray train run.yaml              train, verify, publish name@1
  ftray eval NAME held-out.jsonl    loss, perplexity, exact match
  ftray serve                       an OpenAI-compatible server of all that was published
  ftray chat NAME                   talk to it
  ftray up; ftray submit train run.yaml    a cluster that stays, and a job for it

exit codes: 0 ok, 1 bug, 2 config, 3 data, 4 cluster, 5 train,
  6 registry, 7 serve, 8 storage, 130 interrupted
"""


class _Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are ConfigErrors, with a near miss as the hint."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print."""
        unknown = re.match(
            r"argument COMMAND: invalid choice: '(.*)' \(choose from (.*)\)", message
        )
        if unknown:
            known = [name.strip("'") for name in unknown[2].split(", ")]
            hint = did_you_mean(unknown[1], known)
            raise ConfigError(f"{self.prog} has no command '{unknown[1]}'", hint)
        raise ConfigError(f"{self.prog}: {message}", f"{self.prog} --help")


def _log_to_stderr(*, verbose: bool) -> None:
    """Let ftray speak at INFO and libraries at WARNING."""
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # names a kernel we do not use
    logging.getLogger("ftray").setLevel(logging.DEBUG if verbose else logging.INFO)


def _print(answer: Answer, *, as_json: bool) -> None:
    try:
        _write(answer, as_json=as_json)
        _write_what_comes(answer)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        raise StorageError(f"the answer cannot be written: {error.strerror}") from None


def _write(answer: Answer, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(answer.data, default=_plain, ensure_ascii=False, indent=2))
    elif isinstance(answer.shown, str):
        print(answer.shown, end="" if not answer.shown or answer.shown.endswith("\n") else "\n")
    else:
        # in a pipe nothing is cut at a terminal's width
        width = None if sys.stdout.isatty() else _WIDE
        _Console(width=width, markup=False, highlight=False).print(answer.shown)
    sys.stdout.flush()


def _write_what_comes(answer: Answer) -> None:
    out = sys.stdout
    with redirect_stdout(sys.stderr):  # libraries go on talking
        for text in answer.goes_on or ():
            print(text, end="", flush=True, file=out)


_WIDE = 1000


class _Console(Console):
    """A console that leaves a broken pipe to its caller instead of exiting with code 1."""

    def on_broken_pipe(self) -> None:
        """Raise again: rich calls this while it handles the BrokenPipeError."""
        raise


def _plain(value: object) -> object:
    """Fields and properties of a dataclass: what is derived, as a perplexity, is an answer too."""
    if not is_dataclass(value):
        return str(value)
    derived = {name: p for name, p in vars(type(value)).items() if isinstance(p, property)}
    return {**vars(value), **{name: p.__get__(value) for name, p in derived.items()}}
