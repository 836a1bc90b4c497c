"""Bar charts as SVG that takes its colours from the page around it."""

from html import escape

from ftray.data.report.lengths import Histogram
from ftray.data.report.markup import short

WIDTH, HEIGHT = 460, 200


def bar_chart(bars: Histogram, title: str, line: tuple[int, str] | None = None) -> str:
    """Draw a histogram of tokens a row; `line` is a value to mark and what to call it.

    A line beyond the last bar is drawn at the right edge, with an arrow.
    """
    if not bars.counts:
        return ""
    drawn = [_bar(bars, number) for number in range(len(bars.counts)) if bars.counts[number]]
    parts = [*_grid(bars), *drawn, *_ticks(bars), *([] if line is None else _line(bars, *line))]
    label = escape(title, quote=True)
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}"'
    return f'<svg {size} role="img" aria-label="{label}">{"".join(parts)}</svg>'


_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 24, 24
_GRID_LINES = 3
_TICKS = 5


def _x(bars: Histogram, place: float) -> float:
    return _LEFT + place / len(bars.counts) * (WIDTH - _LEFT - _RIGHT)


def _y(bars: Histogram, count: float) -> float:
    return HEIGHT - _BOTTOM - count / max(bars.counts) * (HEIGHT - _TOP - _BOTTOM)


def _bar(bars: Histogram, number: int) -> str:
    count, low = bars.counts[number], number * bars.width
    is_last = number == len(bars.counts) - 1
    high = "and more" if is_last and bars.is_open else f"to {low + bars.width - 1:,}"
    left, right = _x(bars, number), _x(bars, number + 1)
    top = min(_y(bars, count), HEIGHT - _BOTTOM - 1)  # a single row stays visible
    style = ' class="bar open"' if is_last and bars.is_open else ' class="bar"'
    return (
        f'<rect{style} x="{left + 0.5:.1f}" y="{top:.1f}" width="{max(0.8, right - left - 1):.1f}"'
        f' height="{HEIGHT - _BOTTOM - top:.1f}"><title>{low:,} {high} tokens: {count:,} rows'
        "</title></rect>"
    )


def _grid(bars: Histogram) -> list[str]:
    most = max(bars.counts)
    step = max(1, round_down(most / _GRID_LINES))
    parts = []
    for count in range(0, most + 1, step):
        y = _y(bars, count)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{short(count)}</text>'
        )
    return parts


def _ticks(bars: Histogram) -> list[str]:
    every = max(1, round(len(bars.counts) / _TICKS))
    parts = []
    end = len(bars.counts) - every // 2 if bars.is_open else len(bars.counts) + 1
    for number in range(0, end, every):
        text = short(number * bars.width)
        x = _x(bars, number)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 7}" text-anchor="middle">{text}</text>')
    if bars.is_open:
        text = f"≥ {short((len(bars.counts) - 1) * bars.width)}"
        parts.append(f'<text x="{WIDTH - 2}" y="{HEIGHT - 7}" text-anchor="end">{text}</text>')
    return parts


def _line(bars: Histogram, value: int, name: str) -> list[str]:
    end = len(bars.counts) - bars.is_open
    is_beyond = value / bars.width > end
    x = _x(bars, min(value / bars.width, len(bars.counts)))
    at_left = x < WIDTH * 0.6
    anchor, shift = ("start", 5) if at_left else ("end", -5)
    text = escape(f"{name} {value:,}" + (" →" if is_beyond else ""))
    place = f'x="{x + shift:.1f}" y="14" text-anchor="{anchor}"'
    parts = [f'<text class="mark" {place}>{text}</text>']
    if not is_beyond:
        parts.append(
            f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{HEIGHT - _BOTTOM}"/>'
        )
    return parts


def round_down(value: float) -> int:
    """Return the last of 1, 2, 5, 10, 20, 50, … that is not above the value; 0 below 1."""
    found, power = 0, 1
    while power <= value:
        found = max(digit * power for digit in (1, 2, 5) if digit * power <= value)
        power *= 10
    return found
