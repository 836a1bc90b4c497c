"""The verbs that train, and look at data and runs."""

from argparse import ArgumentParser

from ftray import answers
from ftray.commands import presets
from ftray.config.data import DataConfig, SourceConfig
from ftray.config.describe import described
from ftray.verbs.parts import (
    Verbs,
    a_count,
    add_cluster,
    add_run_file,
    add_storage,
    group,
    new_verb,
)


def add_run_verbs(top: "Verbs[ArgumentParser]") -> None:
    """init, check, train, quickstart."""
    verb = new_verb(
        top, "init", "print a preset run file", answers.init, ["ftray init lora > run.yaml"]
    )
    verb.add_argument("preset", metavar="PRESET", help=f"one of {', '.join(presets())}")

    verb = new_verb(
        top,
        "check",
        "say what a run will be and whether it fits, without starting anything",
        answers.check,
        [
            "ftray check run.yaml",
            "ftray check run.yaml --cluster cluster/remote.yaml adapter.rank=64",
        ],
    )
    add_run_file(verb)
    add_cluster(verb)

    verb = new_verb(
        top,
        "train",
        "train a run, or go on with an interrupted one, and publish its adapter",
        answers.train,
        ["ftray train run.yaml", "ftray train run.yaml name=try train.max_steps=20"],
    )
    add_run_file(verb)
    add_cluster(verb)
    verb.add_argument("--overwrite", action="store_true", help="delete a run of that name first")

    verb = new_verb(
        top,
        "quickstart",
        "fine-tune the built-in model on a small task, on this machine, offline",
        answers.quickstart,
        ["ftray quickstart"],
    )
    add_storage(verb)


def add_data_verbs(top: "Verbs[ArgumentParser]") -> None:
    """data preview and check."""
    settings = [
        "settings of the run file, and on the command line:",
        described(DataConfig, "data"),
        "",
        "settings of one source, where data.train or data.eval has several:",
        described(SourceConfig, "data.train"),
    ]
    verbs = group(top, "data", "look at data as the model will", "\n".join(settings))
    verb = new_verb(
        verbs,
        "preview",
        "show rows as the model will see them, trained tokens marked",
        answers.preview,
        ["ftray data preview run.yaml", "ftray data preview run.yaml --rows 10 data.packing=false"],
    )
    add_run_file(verb)
    verb.add_argument("--rows", type=a_count, default=3, metavar="N", help="how many (default: 3)")

    verb = new_verb(
        verbs,
        "check",
        "measure the data: lengths, repeats, eval rows in train, bad rows, odd answers",
        answers.check_data,
        [
            "ftray data check run.yaml",
            "ftray data check run.yaml --html data.html data.limits.duplicates=0.01",
        ],
    )
    add_run_file(verb)
    add_cluster(verb)
    html = "where to write the page (default: report.html beside the tokens)"
    verb.add_argument("--html", metavar="FILE", help=html)


def add_runs_verbs(top: "Verbs[ArgumentParser]") -> None:
    """runs list, show and delete."""
    verbs = group(top, "runs", "list, show and delete runs")
    verb = new_verb(verbs, "list", "list all runs", answers.list_runs, ["ftray runs list --json"])
    add_storage(verb)

    verb = new_verb(
        verbs,
        "show",
        "show a run's state, metrics and checkpoints",
        answers.show_run,
        ["ftray runs show my-run"],
    )
    verb.add_argument("name", metavar="NAME", help="name of the run")
    add_storage(verb)

    verb = new_verb(
        verbs,
        "delete",
        "delete a run and its checkpoints; published adapters stay",
        answers.delete_run,
        ["ftray runs delete my-run"],
    )
    verb.add_argument("name", metavar="NAME", help="name of the run")
    verb.add_argument("--force", action="store_true", help="even if it is running")
    add_storage(verb)
