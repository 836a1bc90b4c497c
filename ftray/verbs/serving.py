"""The verbs that serve models, talk to them, and say who may."""

from argparse import ArgumentParser

from ftray import answers
from ftray.accounts.grant import ROLES, SCOPES
from ftray.config.describe import described
from ftray.config.serve import ServeConfig
from ftray.verbs.parts import (
    Verbs,
    a_count,
    add_cluster,
    add_overrides,
    add_storage,
    group,
    lifetime,
    new_verb,
)


def add_keys_verbs(top: "Verbs[ArgumentParser]") -> None:
    """keys create, list, revoke and usage."""
    verbs = group(top, "keys", "create, list and revoke API keys, and sum up their usage")
    verb = new_verb(
        verbs,
        "create",
        "make an API key; its secret is shown this once",
        answers.create_key,
        [
            "ftray keys create support-bot",
            "ftray keys create trial --model my-bot --rpm 60 --tpm 20000 --expires 30d",
            "ftray keys create ci --role member --project shop --json",
        ],
    )
    verb.add_argument("name", metavar="NAME", help="whose key it is, for people")
    project = "whose share and whose data it uses (default: default)"
    verb.add_argument("--project", default="default", metavar="PROJECT", help=project)
    what = verb.add_mutually_exclusive_group()
    role = "inference: call models; member: also upload, train, delete; admin: also the audit log"
    what.add_argument("--role", choices=sorted(ROLES), help=f"{role} (default: inference)")
    scope = f"the same in parts, may be repeated: {', '.join(SCOPES)}"
    what.add_argument("--scope", action="append", dest="scopes", metavar="SCOPE", help=scope)
    model = "an adapter that it may call, or base; may be repeated (default: all)"
    verb.add_argument("--model", action="append", dest="models", metavar="NAME", help=model)
    verb.add_argument("--rpm", type=a_count, metavar="N", help="requests a minute (default: any)")
    tokens = "tokens a minute, of prompts and answers (default: any)"
    verb.add_argument("--tpm", type=a_count, metavar="N", help=tokens)
    expires = "how long it is valid, as in 12h or 30d (default: until it is revoked)"
    verb.add_argument("--expires", type=lifetime, metavar="TIME", help=expires)
    add_storage(verb)

    examples = ["ftray keys list", "ftray keys list --json"]
    verb = new_verb(
        verbs, "list", "list all keys, without their secrets", answers.list_keys, examples
    )
    add_storage(verb)

    summary = "let a key open nothing any more"
    verb = new_verb(
        verbs, "revoke", summary, answers.revoke_key, ["ftray keys revoke k3v9qx0m2a7d"]
    )
    verb.add_argument("id", metavar="ID", help="the key's id (ftray keys list)")
    add_storage(verb)
    _add_usage_verb(verbs)


def _add_usage_verb(verbs: "Verbs[ArgumentParser]") -> None:
    verb = new_verb(
        verbs,
        "usage",
        "sum up requests and tokens by key and model",
        answers.list_usage,
        ["ftray keys usage", "ftray keys usage --days 30 --daily --key k3v9qx0m2a7d --json"],
    )
    verb.add_argument("--key", metavar="ID", help="of this key only")
    days = "of the last N days in UTC, with today (default: all)"
    verb.add_argument("--days", type=a_count, metavar="N", help=days)
    verb.add_argument("--daily", action="store_true", help="each day on a line of its own")
    add_storage(verb)


def add_serve_verbs(top: "Verbs[ArgumentParser]") -> None:
    """serve and chat."""
    verb = new_verb(
        top,
        "serve",
        "answer over HTTP as OpenAI's API does, with every adapter on one copy of the base",
        answers.serve,
        [
            "ftray serve",
            "ftray serve http.port=8001 model.name=/models/llama engine.rows=32",
            "ftray serve deploy/serve.yaml replicas.max=2 --cluster cluster/remote.yaml",
        ],
        epilog=f"settings (deploy/serve.yaml: `args`):\n{described(ServeConfig, '')}",
    )
    file = "Serve's own config, as deploy/serve.yaml (default: the built-in base on this machine)"
    verb.add_argument("file", nargs="?", metavar="SERVE.yaml", help=file)
    add_overrides(verb)
    add_cluster(verb)

    verb = new_verb(
        top,
        "chat",
        "talk to a served model",
        answers.chat,
        ["ftray chat my-bot", "ftray chat my-bot@3 'Where is my order?' --temperature 0"],
    )
    verb.add_argument("model", metavar="NAME[@V]", help="an adapter, or the base model")
    message = "one message, to be answered once (default: a conversation)"
    verb.add_argument("message", nargs="*", metavar="MESSAGE", help=message)
    url = "where the server listens (default: %(default)s)"
    verb.add_argument("--url", default="http://127.0.0.1:8000", metavar="URL", help=url)
    verb.add_argument("--system", metavar="TEXT", help="the system message (default: none)")
    most = "the longest answer (default: what fits)"
    verb.add_argument("--max-tokens", type=a_count, metavar="N", help=most)
    heat = "0 is always the same answer (default: 1)"
    verb.add_argument("--temperature", type=float, metavar="T", help=heat)
