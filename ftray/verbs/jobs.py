"""The verbs that let a cluster do the work, and look at its jobs."""

from argparse import ArgumentParser

from ftray import answers
from ftray.verbs.parts import Verbs, add_overrides, group, new_verb


def add_submit_verbs(top: "Verbs[ArgumentParser]") -> None:
    """submit train and submit tune."""
    verbs = group(top, "submit", "let a cluster train or search, as a job that outlives this shell")
    verb = new_verb(
        verbs,
        "train",
        "upload a run's local data, and let a cluster train it",
        answers.submit,
        [
            "ftray submit train run.yaml",
            "ftray submit train run.yaml --cluster cluster/remote.yaml",
            "ftray submit train run.yaml train.epochs=2 --cluster c.yaml --key nightly-2027-01-31",
            "ftray submit train run.yaml --cluster c.yaml --env WANDB_PROJECT --wait",
        ],
    )
    verb.add_argument("run", metavar="RUN.yaml", help="the run file (ftray init lora > run.yaml)")
    verb.set_defaults(space=None)
    _add_how(verb)

    verb = new_verb(
        verbs,
        "tune",
        "upload a run's local data, and let a cluster search over it",
        answers.submit,
        [
            "ftray submit tune run.yaml tune_spaces/lora.yaml --cluster cluster/remote.yaml",
            "ftray submit tune run.yaml space.yaml search.num_samples=32 --cluster c.yaml",
        ],
    )
    verb.add_argument("run", metavar="RUN.yaml", help="the run file that trials vary")
    verb.add_argument("space", metavar="SPACE.yaml", help="the space file")
    _add_how(verb)


def add_jobs_verbs(top: "Verbs[ArgumentParser]") -> None:
    """jobs list, show, logs and stop."""
    verbs = group(top, "jobs", "list, show, follow and stop a cluster's jobs")
    examples = ["ftray jobs list", "ftray jobs list --cluster c.yaml --json"]
    _add_cluster(new_verb(verbs, "list", "list all jobs", answers.list_jobs, examples))

    shown = "show a job's state, why it waits or failed, and how it ended"
    verb = new_verb(verbs, "show", shown, answers.show_job, ["ftray jobs show ID --json"])
    _add_job(verb)

    verb = new_verb(
        verbs,
        "logs",
        "print what a job has written",
        answers.job_logs,
        ["ftray jobs logs ID --cluster c.yaml", "ftray jobs logs -f ID"],
    )
    follow = "go on until the job ends"
    verb.add_argument("-f", "--follow", action="store_true", help=follow)
    _add_job(verb)

    summary = "ask a job to end: a run saves after its step, and can go on later"
    verb = new_verb(verbs, "stop", summary, answers.stop_job, ["ftray jobs stop ID"])
    _add_job(verb)


def add_up_verbs(top: "Verbs[ArgumentParser]") -> None:
    """up and down."""
    verb = new_verb(
        top,
        "up",
        "start a cluster and the service on this machine, and leave them running",
        answers.up,
        [
            "ftray up",
            "ftray up deploy/serve.yaml http.port=8001 --cluster cluster/local.yaml",
            "ftray up && ftray submit train run.yaml && ftray jobs list",
        ],
    )
    file = "Serve's own config, as deploy/serve.yaml (default: the built-in base on this machine)"
    verb.add_argument("file", nargs="?", metavar="SERVE.yaml", help=file)
    add_overrides(verb)
    sizes = "says how large it is, as cluster/local.yaml (default: as this machine)"
    verb.add_argument("--cluster", metavar="FILE", help=sizes)

    summary = "stop what ftray up has started, and nothing else; running jobs save first"
    new_verb(top, "down", summary, answers.down, ["ftray down"])


def _add_how(verb: ArgumentParser) -> None:
    add_overrides(verb)
    _add_cluster(verb)
    key = "submitting with the same key again gives the same job (default: a new one each time)"
    verb.add_argument("--key", metavar="TEXT", help=key)
    env = "send this variable of yours too, may be repeated; no others are sent"
    verb.add_argument("--env", action="append", metavar="NAME", help=env)
    again = "delete a run or search of that name first"
    verb.add_argument("--overwrite", action="store_true", help=again)
    wait = "submit although there is no room now: the job waits for it"
    verb.add_argument("--wait", action="store_true", help=wait)


def _add_job(verb: ArgumentParser) -> None:
    verb.add_argument("id", metavar="ID", help="the job's id (ftray jobs list)")
    _add_cluster(verb)


def _add_cluster(verb: ArgumentParser) -> None:
    text = "the cluster file, with jobs: http://HEAD:8265 in it (default: what ftray up started)"
    verb.add_argument("--cluster", metavar="FILE", help=text)
