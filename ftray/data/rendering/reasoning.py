"""Where in a rendered turn the reasoning before the answer stands."""

from ftray.data.rendering.messages import Message

_OPEN, _CLOSE = "<think>", "</think>"


def reasoning_in(text: str, start: int, end: int, message: Message) -> tuple[int, int]:
    """Return the characters of a turn [start, end) that are reasoning, tags included.

    Both are `start` where there is none. A prompt may already have opened the tag.
    """
    close = text.find(_CLOSE, start, end)
    opened = text.find(_OPEN, start, end)
    if close >= 0 and 0 <= opened < close:
        return opened, close + len(_CLOSE)
    if close >= 0 and text.endswith(_OPEN, 0, len(text[:start].rstrip())):
        return start, close + len(_CLOSE)
    reasoning = str(message.get("reasoning_content", "")).strip()
    found = text.find(reasoning, start, end) if reasoning else -1
    return (start, found + len(reasoning)) if found >= 0 else (start, start)


def leaves_out_reasoning(turn: str, message: Message) -> bool:
    """Say whether a rendered turn lacks the reasoning that its message has."""
    before, close, _ = str(message.get("content") or "").partition(_CLOSE)
    inline = before.rpartition(_OPEN)[2].strip() if close else ""
    return any(
        thought not in turn
        for thought in (str(message.get("reasoning_content", "")).strip(), inline)
    )
