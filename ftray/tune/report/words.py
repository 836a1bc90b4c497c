"""How a search's keys, values and results are written, in the terminal, on the page, in plots."""

from collections.abc import Iterable, Mapping


def titles(keys: Iterable[str]) -> dict[str, str]:
    """Call each key by its last part, or in full where two keys end alike."""
    last = {key: key.rpartition(".")[2] for key in keys}
    ends = list(last.values())
    return {key: end if ends.count(end) == 1 else key for key, end in last.items()}


def shown(value: object) -> str:
    """Write a value in little room."""
    match value:
        case bool() | None:
            return {True: "true", False: "false", None: "null"}[value]
        case float():
            return _digits(value)
        case list():
            return "+".join(shown(one) for one in value)
    return str(value)


def number(value: float | None) -> str:
    """Write a result; a dash where there is none."""
    return "–" if value is None else f"{value:.4f}"


def taken(hours: float, unit: str) -> str:
    """Write time of GPUs or hosts, in what suits it: 12.3 GPU minutes."""
    if hours <= 0:
        return "nothing"
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} {unit} seconds"
    return f"{hours * 60:.1f} {unit} minutes" if hours < 1 else f"{hours:.1f} {unit} hours"


def counted(states: Mapping[str, int]) -> str:
    """Say how many trials came to what."""
    counts = [f"{states[state]} {word}" for state, word in _STATES.items() if state in states]
    return f"{sum(states.values())} trials: {', '.join(counts)}"


_STATES = {
    "finished": "finished",
    "stopped": "stopped early",
    "failed": "failed",
    "running": "not ended",
    "pending": "not begun",
}


def _digits(value: float) -> str:
    """Three digits, and the exponent as people write it: 2.1e-4."""
    if not value or _SMALL <= abs(value) < _LARGE:
        return f"{float(f'{value:.3g}'):g}"
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


_SMALL = 1e-2  # rates a factor of ten apart should look alike
_LARGE = 1e6
