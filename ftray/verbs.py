"""The verbs of the command line: names, arguments, help, and which command each one calls."""

import argparse
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence

from ftray import answers
from ftray.accounts.grant import SCOPES
from ftray.answers import Answer
from ftray.commands import presets
from ftray.config.data import DataConfig, SourceConfig
from ftray.config.describe import described


def add_verbs(parser: ArgumentParser) -> None:
    """Add every command; parsing then sets `verb`, a function from arguments to an Answer."""
    top = parser.add_subparsers(metavar="COMMAND", title="commands", required=True)
    _add_run_verbs(top)
    _add_data_verbs(top)
    _add_runs_verbs(top)
    _add_adapters_verbs(top)
    _add_adapter_uses(top)
    _add_disk_verbs(top)
    _add_keys_verbs(top)


Verbs = argparse._SubParsersAction  # argparse has no public name for it
Act = Callable[[Namespace], Answer]


def _add_run_verbs(top: "Verbs[ArgumentParser]") -> None:
    verb = _verb(
        top, "init", "print a preset run file", answers.init, ["ftray init lora > run.yaml"]
    )
    verb.add_argument("preset", metavar="PRESET", help=f"one of {', '.join(presets())}")

    verb = _verb(
        top,
        "check",
        "say what a run will be and whether it fits, without starting anything",
        answers.check,
        [
            "ftray check run.yaml",
            "ftray check run.yaml --cluster cluster/remote.yaml adapter.rank=64",
        ],
    )
    _add_run_file(verb)
    _add_cluster(verb)

    verb = _verb(
        top,
        "train",
        "train a run, or go on with an interrupted one, and publish its adapter",
        answers.train,
        ["ftray train run.yaml", "ftray train run.yaml name=try train.max_steps=20"],
    )
    _add_run_file(verb)
    _add_cluster(verb)
    verb.add_argument("--overwrite", action="store_true", help="delete a run of that name first")

    verb = _verb(
        top,
        "quickstart",
        "fine-tune the built-in model on a small task, on this machine, offline",
        answers.quickstart,
        ["ftray quickstart"],
    )
    _add_storage(verb)


def _add_data_verbs(top: "Verbs[ArgumentParser]") -> None:
    settings = [
        "settings of the run file, and on the command line:",
        described(DataConfig, "data"),
        "",
        "settings of one source, where data.train or data.eval has several:",
        described(SourceConfig, "data.train"),
    ]
    verbs = _group(top, "data", "look at data as the model will", "\n".join(settings))
    verb = _verb(
        verbs,
        "preview",
        "show rows as the model will see them, trained tokens marked",
        answers.preview,
        ["ftray data preview run.yaml", "ftray data preview run.yaml --rows 10 data.packing=false"],
    )
    _add_run_file(verb)
    verb.add_argument("--rows", type=_count, default=3, metavar="N", help="how many (default: 3)")

    verb = _verb(
        verbs,
        "check",
        "measure the data: lengths, repeats, eval rows in train, bad rows, odd answers",
        answers.check_data,
        [
            "ftray data check run.yaml",
            "ftray data check run.yaml --html data.html data.limits.duplicates=0.01",
        ],
    )
    _add_run_file(verb)
    _add_cluster(verb)
    html = "where to write the page (default: report.html beside the tokens)"
    verb.add_argument("--html", metavar="FILE", help=html)


def _add_runs_verbs(top: "Verbs[ArgumentParser]") -> None:
    verbs = _group(top, "runs", "list, show and delete runs")
    verb = _verb(verbs, "list", "list all runs", answers.list_runs, ["ftray runs list --json"])
    _add_storage(verb)

    verb = _verb(
        verbs,
        "show",
        "show a run's state, metrics and checkpoints",
        answers.show_run,
        ["ftray runs show my-run"],
    )
    verb.add_argument("name", metavar="NAME", help="name of the run")
    _add_storage(verb)

    verb = _verb(
        verbs,
        "delete",
        "delete a run and its checkpoints; published adapters stay",
        answers.delete_run,
        ["ftray runs delete my-run"],
    )
    verb.add_argument("name", metavar="NAME", help="name of the run")
    verb.add_argument("--force", action="store_true", help="even if it is running")
    _add_storage(verb)


def _add_adapters_verbs(top: "Verbs[ArgumentParser]") -> None:
    verbs = _group(top, "adapters", "list, show, promote, import and delete published adapters")
    verb = _verb(verbs, "list", "list all adapters", answers.list_adapters, ["ftray adapters list"])
    _add_storage(verb)

    examples = ["ftray adapters show my-run", "ftray adapters show my-run@champion --json"]
    verb = _verb(verbs, "show", "show one version's record", answers.show_adapter, examples)
    _add_ref(verb)
    _add_storage(verb)

    verb = _verb(
        verbs,
        "promote",
        "let an alias point at a version",
        answers.promote,
        [
            "ftray adapters promote my-run@3 champion",
            "ftray adapters promote my-run@3 live --expect 2",
        ],
    )
    _add_ref(verb)
    verb.add_argument("alias", metavar="ALIAS", help="a word, as in champion")
    expect = "only if the alias points at version N now (0: there is no such alias)"
    verb.add_argument("--expect", type=int, metavar="N", help=expect)
    _add_storage(verb)

    examples = ["ftray adapters delete my-run@2"]
    verb = _verb(verbs, "delete", "delete one version", answers.delete_adapter, examples)
    _add_ref(verb)
    verb.add_argument("--force", action="store_true", help="even if an alias points at it")
    _add_storage(verb)

    verb = _verb(
        verbs,
        "import",
        "check a PEFT folder made elsewhere and publish it",
        answers.import_adapter,
        ["ftray adapters import my-bot ./peft-folder --base HuggingFaceTB/SmolLM2-135M-Instruct"],
    )
    verb.add_argument("name", metavar="NAME", help="name to publish it under")
    verb.add_argument("folder", metavar="FOLDER", help="with adapter_config.json and safetensors")
    base = "base model that it belongs to (default: the built-in one)"
    verb.add_argument("--base", metavar="MODEL", help=base)
    _add_storage(verb)


def _add_adapter_uses(top: "Verbs[ArgumentParser]") -> None:
    verb = _verb(
        top,
        "merge",
        "write a model folder with the adapter merged into the weights",
        answers.merge,
        ["ftray merge my-run ./merged", "ftray merge my-run@3 ./merged --dtype float32"],
    )
    _add_ref(verb)
    verb.add_argument("out", metavar="OUT", help="new folder for the merged model")
    dtype = "precision of the merged weights (default: bfloat16)"
    verb.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help=dtype)
    _add_storage(verb)

    verb = _verb(
        top,
        "eval",
        "measure an adapter on data: loss, perplexity, exact match by generation",
        answers.evaluate,
        [
            "ftray eval my-run held-out.jsonl",
            "ftray eval my-run@2 held-out.jsonl data.max_length=512",
        ],
    )
    _add_ref(verb)
    verb.add_argument("data", metavar="DATA", help="a file, a glob or a folder")
    _add_overrides(verb)
    _add_storage(verb)


def _add_disk_verbs(top: "Verbs[ArgumentParser]") -> None:
    verb = _verb(
        top,
        "gc",
        "say what takes disk space and what of it nobody needs; with --delete, delete that",
        answers.gc,
        [
            "ftray gc",
            "ftray gc --delete",
            "ftray gc --older-than 30 --run old-try --delete",
        ],
    )
    verb.add_argument("--delete", action="store_true", help="delete what may go, without asking")
    days = "keep token sets that were used in the last DAYS (default: 7); they can be made again"
    verb.add_argument("--older-than", type=_days, default=7.0, metavar="DAYS", help=days)
    run = "also what this unfinished run could go on from, if it has been silent for DAYS"
    verb.add_argument("--run", action="append", dest="runs", default=[], metavar="NAME", help=run)
    _add_storage(verb)


def _add_keys_verbs(top: "Verbs[ArgumentParser]") -> None:
    verbs = _group(top, "keys", "create, list and revoke API keys, and sum up their usage")
    verb = _verb(
        verbs,
        "create",
        "make an API key; its secret is shown this once",
        answers.create_key,
        [
            "ftray keys create support-bot",
            "ftray keys create trial --model my-bot --rpm 60 --tpm 20000 --expires 30d",
            "ftray keys create ci --scope serve --scope train --project shop --json",
        ],
    )
    verb.add_argument("name", metavar="NAME", help="whose key it is, for people")
    project = "whose share and whose data it uses (default: default)"
    verb.add_argument("--project", default="default", metavar="PROJECT", help=project)
    scope = f"what it may do, may be repeated: {', '.join(SCOPES)} (default: serve)"
    verb.add_argument("--scope", action="append", dest="scopes", metavar="SCOPE", help=scope)
    model = "an adapter that it may call, or base; may be repeated (default: all)"
    verb.add_argument("--model", action="append", dest="models", metavar="NAME", help=model)
    verb.add_argument("--rpm", type=_count, metavar="N", help="requests a minute (default: any)")
    tokens = "tokens a minute, of prompts and answers (default: any)"
    verb.add_argument("--tpm", type=_count, metavar="N", help=tokens)
    expires = "how long it is valid, as in 12h or 30d (default: until it is revoked)"
    verb.add_argument("--expires", type=_lifetime, metavar="TIME", help=expires)
    _add_storage(verb)

    examples = ["ftray keys list", "ftray keys list --json"]
    verb = _verb(verbs, "list", "list all keys, without their secrets", answers.list_keys, examples)
    _add_storage(verb)

    summary = "let a key open nothing any more"
    verb = _verb(verbs, "revoke", summary, answers.revoke_key, ["ftray keys revoke k3v9qx0m2a7d"])
    verb.add_argument("id", metavar="ID", help="the key's id (ftray keys list)")
    _add_storage(verb)
    _add_usage_verb(verbs)


def _add_usage_verb(verbs: "Verbs[ArgumentParser]") -> None:
    verb = _verb(
        verbs,
        "usage",
        "sum up requests and tokens by key and model",
        answers.list_usage,
        ["ftray keys usage", "ftray keys usage --days 30 --daily --key k3v9qx0m2a7d --json"],
    )
    verb.add_argument("--key", metavar="ID", help="of this key only")
    days = "of the last N days in UTC, with today (default: all)"
    verb.add_argument("--days", type=_count, metavar="N", help=days)
    verb.add_argument("--daily", action="store_true", help="each day on a line of its own")
    _add_storage(verb)


def _group(
    top: "Verbs[ArgumentParser]", name: str, summary: str, epilog: str = ""
) -> "Verbs[ArgumentParser]":
    group = top.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    return group.add_subparsers(metavar="COMMAND", title="commands", required=True)


def _verb(
    verbs: "Verbs[ArgumentParser]", name: str, summary: str, act: Act, examples: Sequence[str]
) -> ArgumentParser:
    parser = verbs.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog="\n".join(["examples:", *(f"  {example}" for example in examples)]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(verb=act, called=parser.prog, takes_overrides=False)
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    parser.add_argument("-v", "--verbose", action="store_true", help="log more to stderr")
    return parser


def _add_run_file(verb: ArgumentParser) -> None:
    verb.add_argument("run", metavar="RUN.yaml", help="the run file (ftray init lora > run.yaml)")
    _add_overrides(verb)


def _add_overrides(verb: ArgumentParser) -> None:
    text = "settings that replace the run's, as in train.learning_rate=1e-4; values are YAML"
    verb.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=text)
    verb.set_defaults(takes_overrides=True)


def _add_cluster(verb: ArgumentParser) -> None:
    text = "the cluster file, as in cluster/remote.yaml (default: this machine)"
    verb.add_argument("--cluster", metavar="FILE", help=text)


def _add_ref(verb: ArgumentParser) -> None:
    text = "an adapter: name (the latest version), name@3 or name@alias"
    verb.add_argument("ref", metavar="NAME[@V]", help=text)


def _add_storage(verb: ArgumentParser) -> None:
    text = "storage root, a folder or URI (default: $FTRAY_HOME, else ~/.ftray)"
    verb.add_argument("--storage", metavar="ROOT", help=text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, found '{text}'")
    return int(text)


def _days(text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?", text):
        raise argparse.ArgumentTypeError(f"expected a number of days, found '{text}'")
    return float(text)


def _lifetime(text: str) -> float:
    """Seconds."""
    found = re.fullmatch(r"([1-9]\d{0,5})([mhd])", text, re.ASCII)
    if found is None:
        raise argparse.ArgumentTypeError(
            f"expected minutes, hours or days as in 30d, found '{text}'"
        )
    return float(found[1]) * {"m": 60, "h": 3600, "d": 86400}[found[2]]
