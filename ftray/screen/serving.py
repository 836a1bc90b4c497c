"""A running server, and conversations with it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType

from ftray.errors import ServeError
from ftray.screen.tables import fact_list, next_commands, when

if TYPE_CHECKING:
    from ftray.deployment.deployment import Down, Up
    from ftray.serve.chat import Talk
    from ftray.serve.server import Running


def running(server: "Running") -> str:
    """Where it is and how it is called: text that can be pasted into a shell."""
    return f"""\
serving {server.model} and its adapters at {server.url}

  curl {server.url}/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{{"model": "{server.example}", "messages": [{{"role": "user", "content": "Hello"}}]}}'

  from openai import OpenAI
  client = OpenAI(base_url="{server.url}/v1", api_key="{server.key}")
  answer = client.chat.completions.create(
      model="{server.example}", messages=[{{"role": "user", "content": "Hello"}}]
  )
  print(answer.choices[0].message.content)

  ftray chat {server.example} --url {server.url}

models: {server.url}/v1/models   Ctrl-C stops
"""


def up(found: "Up") -> RenderableType:
    """What runs where, and what to do with it."""
    it = found.standing
    facts = {
        "service": f"{it.url}/v1 ({it.model} and its adapters)",
        "cluster": f"{it.address}, {it.cpus} CPUs to hand out",
        "dashboard": f"{it.jobs} (its token: {it.token_file})",
        "storage": it.storage,
        "since": when(it.started),
    }
    head = "was up already; nothing has been changed" if found.was_up else "up"
    if not found.is_ready:
        head = "was up already, but the service does not answer (ftray down, then ftray up)"
    commands = next_commands(
        [f"ftray chat {it.model} --url {it.url}", "ftray submit train run.yaml", "ftray down"]
    )
    return Group(head, fact_list(facts), "", commands)


def down(found: "Down") -> str:
    """What was stopped."""
    if not found.was_up:
        return "nothing was up"
    jobs = (
        f"; {found.jobs} running job{'s' * (found.jobs != 1)} stopped first" if found.jobs else ""
    )
    killed = f"; {found.killed} processes had to be killed" if found.killed else ""
    return f"down{jobs}{killed}"


def said(talk: "Talk", message: str) -> Iterator[str]:
    """One answer."""
    yield from talk.say(message)
    yield "\n"


def talked(talk: "Talk") -> Iterator[str]:
    """A conversation with who types, until the end of the input."""
    yield f"{talk.model}; Ctrl-D ends\n"
    while True:
        yield "> "
        try:
            message = input().strip()
        except EOFError:
            yield "\n"
            return
        if not message:
            continue
        try:
            yield from said(talk, message)
        except ServeError as error:
            yield f"{error}\n"
