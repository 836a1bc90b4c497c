"""The verbs that say how much of the service projects may use, and show what was changed."""

import argparse
from argparse import ArgumentParser

from ftray import answers
from ftray.verbs.parts import Verbs, a_count, add_storage, group, new_verb


def add_projects_verbs(top: "Verbs[ArgumentParser]") -> None:
    """projects list, set and log."""
    verbs = group(top, "projects", "say how much of the service projects may use; the audit log")
    summary = "list projects, their keys and their limits"
    examples = ["ftray projects list", "ftray projects list --json"]
    add_storage(new_verb(verbs, "list", summary, answers.list_projects, examples))

    summary = "set a project's limits; those that are not given become the default ones"
    verb = new_verb(
        verbs,
        "set",
        summary,
        answers.set_project,
        ["ftray projects set shop --running 2 --gpus 8", "ftray projects set lab --gib any"],
    )
    verb.add_argument("name", metavar="NAME", help="the project (ftray keys create --project NAME)")
    for option, what in (
        ("--running", "fine-tuning jobs at once"),
        ("--waiting", "jobs in the queue"),
        ("--gpus", "GPUs of its running jobs together"),
        ("--files", "uploaded files"),
        ("--gib", "GiB of files, runs and models"),
    ):
        verb.add_argument(
            option, type=_limit, default=answers.USUAL, metavar="N", help=f"{what}, or any"
        )
    add_storage(verb)

    summary = "show who changed what: keys, files, jobs, limits"
    verb = new_verb(
        verbs, "log", summary, answers.show_log, ["ftray projects log", "ftray projects log shop"]
    )
    verb.add_argument("name", nargs="?", metavar="NAME", help="of this project only")
    most = "so many of the newest lines (default: %(default)s)"
    verb.add_argument("--limit", type=a_count, default=100, metavar="N", help=most)
    add_storage(verb)


def _limit(text: str) -> int | None:
    """Read a number from 0 on, or `any`."""
    if text == "any":
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise argparse.ArgumentTypeError(f"expected a number or any, found '{text}'")
    return int(text)
