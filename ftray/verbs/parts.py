"""What the verbs are put together from."""

import argparse
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence

from ftray.answers import Answer

Verbs = argparse._SubParsersAction  # argparse has no public name for it
Act = Callable[[Namespace], Answer]


def group(
    top: "Verbs[ArgumentParser]", name: str, summary: str, epilog: str = ""
) -> "Verbs[ArgumentParser]":
    """Add a group of commands, as `runs` with its `list`."""
    group = top.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    return group.add_subparsers(metavar="COMMAND", title="commands", required=True)


def new_verb(
    verbs: "Verbs[ArgumentParser]",
    name: str,
    summary: str,
    act: Act,
    examples: Sequence[str],
    epilog: str = "",
) -> ArgumentParser:
    """Add a command: its help, its examples, and what it calls."""
    before = [epilog, ""] if epilog else []
    parser = verbs.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog="\n".join([*before, "examples:", *(f"  {example}" for example in examples)]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(verb=act, called=parser.prog, takes_overrides=False)
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    parser.add_argument("-v", "--verbose", action="store_true", help="log more to stderr")
    return parser


def add_run_file(verb: ArgumentParser) -> None:
    """It takes a run file and settings."""
    verb.add_argument("run", metavar="RUN.yaml", help="the run file (ftray init lora > run.yaml)")
    add_overrides(verb)


def add_overrides(verb: ArgumentParser) -> None:
    """It takes settings that replace those of its file."""
    text = "settings that replace the run's, as in train.learning_rate=1e-4; values are YAML"
    verb.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=text)
    verb.set_defaults(takes_overrides=True)


def add_cluster(verb: ArgumentParser) -> None:
    """It may run on another cluster."""
    text = "the cluster file, or up: what ftray up started (default: a Ray for this command)"
    verb.add_argument("--cluster", metavar="FILE", help=text)


def add_ref(verb: ArgumentParser) -> None:
    """It takes an adapter."""
    text = "an adapter: name (the latest version), name@3 or name@alias"
    verb.add_argument("ref", metavar="NAME[@V]", help=text)


def add_storage(verb: ArgumentParser) -> None:
    """It may look into another storage root."""
    text = "storage root, a folder or URI (default: $FTRAY_HOME, else ~/.ftray)"
    verb.add_argument("--storage", metavar="ROOT", help=text)


def a_count(text: str) -> int:
    """Read a number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, found '{text}'")
    return int(text)


def some_days(text: str) -> float:
    """Read a number of days."""
    if not re.fullmatch(r"\d+(\.\d+)?", text):
        raise argparse.ArgumentTypeError(f"expected a number of days, found '{text}'")
    return float(text)


def lifetime(text: str) -> float:
    """Seconds."""
    found = re.fullmatch(r"([1-9]\d{0,5})([mhd])", text, re.ASCII)
    if found is None:
        raise argparse.ArgumentTypeError(
            f"expected minutes, hours or days as in 30d, found '{text}'"
        )
    return float(found[1]) * {"m": 60, "h": 3600, "d": 86400}[found[2]]
