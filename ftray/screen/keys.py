"""API keys: which there are, a new one with its secret, and what was used."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from ftray.screen.tables import fact_list, new_table, when

if TYPE_CHECKING:
    from ftray.accounts.grant import Key
    from ftray.accounts.ledger import Usage
    from ftray.commands import NewKey


def new_key(made: "NewKey") -> RenderableType:
    """A key and its secret, which is on a line of its own so that it can be copied."""
    key = made.key
    facts = {
        "id": key.id,
        "name": key.name,
        "project": key.project,
        "may": _rights(key),
        "limits": _limits(key),
        "expires": "never" if key.expires is None else when(key.expires),
        "database": made.database,
    }
    warning = Text("Keep it now: it is stored nowhere, and cannot be shown again.", style="yellow")
    secret = Text(made.secret, style="bold", no_wrap=True, overflow="ignore")
    use = Text("Clients send it as their API key, such as OPENAI_API_KEY of the openai client.")
    return Group(fact_list(facts), "", secret, "", warning, use)


def keys(found: Sequence["Key"]) -> RenderableType:
    """One line for each key."""
    if not found:
        return "no keys yet: ftray keys create NAME"
    table = new_table("id", "name", "project", "may", "limits", "state", "created", "last used")
    for key in found:
        used = "never" if key.last_used is None else when(key.last_used)
        expires = key.state == "active" and key.expires is not None
        state = f"until {when(key.expires or 0)}" if expires else key.state
        cells = (key.id, key.name, key.project, _rights(key), _limits(key), state)
        table.add_row(*cells, when(key.created), used)
    return table


def usage(found: Sequence["Usage"], *, daily: bool) -> RenderableType:
    """One line for each key and model, and their sum."""
    if not found:
        return "nothing was used"
    times = ["day"] if daily else ["first", "last"]
    table = new_table("key", "name", "project", "model", *times, *_COUNTS)
    for title in table.columns[-len(_COUNTS) :]:
        title.justify = "right"
    for line in found:
        days = [line.first] if daily else [line.first, line.last]
        counts = (line.requests, line.prompt_tokens, line.answer_tokens)
        names = (line.key, line.name, line.project, line.model, *map(str, days))
        table.add_row(*names, *(f"{count:,}" for count in counts))
    sums = (
        sum(line.requests for line in found),
        sum(line.prompt_tokens for line in found),
        sum(line.answer_tokens for line in found),
    )
    table.add_row("all", *[""] * (3 + len(times)), *(f"{count:,}" for count in sums), style="bold")
    return table


_COUNTS = ("requests", "prompt tokens", "answer tokens")


def _rights(key: "Key") -> str:
    models = "all models" if key.models is None else ", ".join(key.models)
    return f"{', '.join(key.scopes)}: {models}"


def _limits(key: "Key") -> str:
    limits = {"requests": key.requests_per_minute, "tokens": key.tokens_per_minute}
    said = [f"{limit:,} {of}/min" for of, limit in limits.items() if limit is not None]
    return ", ".join(said) or "none"
