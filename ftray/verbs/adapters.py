"""The verbs for what was published, and for the disk that it takes."""

from argparse import ArgumentParser

from ftray import answers
from ftray.verbs.parts import Verbs, add_overrides, add_ref, add_storage, group, new_verb, some_days


def add_adapters_verbs(top: "Verbs[ArgumentParser]") -> None:
    """adapters list, show, promote, import and delete."""
    verbs = group(top, "adapters", "list, show, promote, import and delete published adapters")
    verb = new_verb(
        verbs, "list", "list all adapters", answers.list_adapters, ["ftray adapters list"]
    )
    add_storage(verb)

    examples = ["ftray adapters show my-run", "ftray adapters show my-run@champion --json"]
    verb = new_verb(verbs, "show", "show one version's record", answers.show_adapter, examples)
    add_ref(verb)
    add_storage(verb)

    verb = new_verb(
        verbs,
        "promote",
        "let an alias point at a version",
        answers.promote,
        [
            "ftray adapters promote my-run@3 champion",
            "ftray adapters promote my-run@3 live --expect 2",
        ],
    )
    add_ref(verb)
    verb.add_argument("alias", metavar="ALIAS", help="a word, as in champion")
    expect = "only if the alias points at version N now (0: there is no such alias)"
    verb.add_argument("--expect", type=int, metavar="N", help=expect)
    add_storage(verb)

    examples = ["ftray adapters delete my-run@2"]
    verb = new_verb(verbs, "delete", "delete one version", answers.delete_adapter, examples)
    add_ref(verb)
    verb.add_argument("--force", action="store_true", help="even if an alias points at it")
    add_storage(verb)

    verb = new_verb(
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
    add_storage(verb)


def add_adapter_uses(top: "Verbs[ArgumentParser]") -> None:
    """merge and eval."""
    verb = new_verb(
        top,
        "merge",
        "write a model folder with the adapter merged into the weights",
        answers.merge,
        ["ftray merge my-run ./merged", "ftray merge my-run@3 ./merged --dtype float32"],
    )
    add_ref(verb)
    verb.add_argument("out", metavar="OUT", help="new folder for the merged model")
    dtype = "precision of the merged weights (default: bfloat16)"
    verb.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help=dtype)
    add_storage(verb)

    verb = new_verb(
        top,
        "eval",
        "measure an adapter on data: loss, perplexity, exact match by generation",
        answers.evaluate,
        [
            "ftray eval my-run held-out.jsonl",
            "ftray eval my-run@2 held-out.jsonl data.max_length=512",
        ],
    )
    add_ref(verb)
    verb.add_argument("data", metavar="DATA", help="a file, a glob or a folder")
    add_overrides(verb)
    add_storage(verb)


def add_disk_verbs(top: "Verbs[ArgumentParser]") -> None:
    """gc."""
    verb = new_verb(
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
    verb.add_argument("--older-than", type=some_days, default=7.0, metavar="DAYS", help=days)
    run = "also what this unfinished run could go on from, if it has been silent for DAYS"
    verb.add_argument("--run", action="append", dest="runs", default=[], metavar="NAME", help=run)
    add_storage(verb)
