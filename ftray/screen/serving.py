"""A running server, and conversations with it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ftray.errors import ServeError

if TYPE_CHECKING:
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
