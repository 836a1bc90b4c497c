"""Make the quickstart's examples: customer messages, each with its ticket as compact JSON.

`python -m ftray.presets.quickstart.generate` writes train.jsonl and heldout.jsonl anew, byte for
byte the same. No request, closing or item of the held-out messages occurs in a training message,
so exact match on them measures what the adapter has understood, not what it remembers.
"""

import json
import random
from pathlib import Path

from ftray.presets.quickstart.wordings import HELDOUT, OPENINGS, TRAIN, Wordings

# Without a system message the built-in model's template adds one of its own, 25 tokens long.
SYSTEM = "Ticket as JSON."
SPLITS = {"train.jsonl": (TRAIN, 570, 1), "heldout.jsonl": (HELDOUT, 30, 2)}

Message = dict[str, str]


def write(folder: Path) -> None:
    """Write both splits into `folder`."""
    for name, (wordings, count, seed) in SPLITS.items():
        rows = [json.dumps({"messages": chat}) for chat in chats(wordings, count, seed)]
        (folder / name).write_text("\n".join(rows) + "\n", encoding="utf-8")


def chats(wordings: Wordings, count: int, seed: int) -> list[list[Message]]:
    """Return `count` chats with distinct customer messages, as many of each ticket type."""
    rng = random.Random(seed)
    types = list(wordings.requests)
    made: dict[str, list[Message]] = {}
    while len(made) < count:
        ticket_type = types[len(made) % len(types)]
        chat = _chat(wordings, ticket_type, rng)
        made.setdefault(chat[1]["content"], chat)
    return _shuffled(list(made.values()), rng)


def _chat(wordings: Wordings, ticket_type: str, rng: random.Random) -> list[Message]:
    item = rng.choice(wordings.items)
    urgent = rng.random() < 0.5
    request = rng.choice(wordings.requests[ticket_type]).format(item=item)
    ticket = {"type": ticket_type, "item": item, "urgent": urgent}
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": _message(wordings, request, rng, urgent=urgent)},
        {"role": "assistant", "content": json.dumps(ticket, separators=(",", ":"))},
    ]


def _message(wordings: Wordings, request: str, rng: random.Random, *, urgent: bool) -> str:
    if not urgent and rng.random() < 0.5:
        sentences = [request]  # who says nothing about time is in no hurry
    else:
        sentences = [request, rng.choice(wordings.urgent if urgent else wordings.relaxed)]
        if rng.random() < 0.25:
            sentences.reverse()
    if rng.random() < 0.4:
        sentences.insert(0, rng.choice(OPENINGS))
    return " ".join(sentences)


def _shuffled(chats: list[list[Message]], rng: random.Random) -> list[list[Message]]:
    return rng.sample(chats, len(chats))


if __name__ == "__main__":
    write(Path(__file__).parent)
