"""The verbs of the command line: names, arguments, help, and which command each one calls."""

from argparse import ArgumentParser

from ftray.verbs.adapters import add_adapter_uses, add_adapters_verbs, add_disk_verbs
from ftray.verbs.jobs import add_jobs_verbs, add_submit_verbs, add_up_verbs
from ftray.verbs.projects import add_projects_verbs
from ftray.verbs.serving import add_keys_verbs, add_serve_verbs
from ftray.verbs.training import add_data_verbs, add_run_verbs, add_runs_verbs
from ftray.verbs.tuning import add_tune_verb


def add_verbs(parser: ArgumentParser) -> None:
    """Add every command; parsing then sets `verb`, a function from arguments to an Answer."""
    top = parser.add_subparsers(metavar="COMMAND", title="commands", required=True)
    add_run_verbs(top)
    add_tune_verb(top)
    add_data_verbs(top)
    add_runs_verbs(top)
    add_adapters_verbs(top)
    add_adapter_uses(top)
    add_disk_verbs(top)
    add_submit_verbs(top)
    add_jobs_verbs(top)
    add_serve_verbs(top)
    add_keys_verbs(top)
    add_up_verbs(top)
    add_projects_verbs(top)
