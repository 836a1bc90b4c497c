"""The report on a search as files: figures, page, pictures, and the best as a run file."""

import json
import math
from dataclasses import asdict
from typing import Any

from ftray import storage
from ftray.tune.report.best import NAME, best_yaml
from ftray.tune.report.curves import curves
from ftray.tune.report.page import Picture, page
from ftray.tune.report.parallel import parallel
from ftray.tune.report.rank_loss import rank_loss
from ftray.tune.report.summary import Report, summarize
from ftray.tune.results import SearchResult
from ftray.tune.winners import Winners

FOLDER, FIGURES, PAGE = "report", "report.json", "report.html"
SCHEMA = 1


def write_report(result: SearchResult, winners: Winners | None) -> Report:
    """Write `report/` in a search's folder, anew if it is there; `report.json` comes last.

    It needs no Ray, and a search need not have ended.
    """
    report = summarize(result, winners)
    folder = storage.join(result.folder, FOLDER)
    best = best_yaml(result)
    if best is not None:
        storage.write(storage.join(folder, NAME), best.encode())
    drawn = _pictures(result)
    for name, picture in drawn.items():
        storage.write(storage.join(folder, name), picture.png)
    text = page(report, list(drawn.values()), best)
    storage.write(storage.join(folder, PAGE), text.encode())
    figures = _plain({"schema": SCHEMA, **asdict(report)})
    lines = json.dumps(figures, indent=1, ensure_ascii=False, allow_nan=False)
    storage.write(storage.join(folder, FIGURES), f"{lines}\n".encode())
    return report


def _pictures(result: SearchResult) -> dict[str, Picture]:
    pictures = {
        "parallel.png": Picture(
            parallel(result), "Every trial", "A line goes through a trial's values to its result."
        ),
        "curves.png": Picture(
            curves(result), "Learning curves", f"The {result.metric} of each trial as it trained."
        ),
    }
    ranks = rank_loss(result)
    if ranks is not None:
        words = "Where the line is flat, more rank costs memory and brings nothing."
        pictures["rank_loss.png"] = Picture(ranks, "Rank against result", words)
    return pictures


def _plain(value: Any) -> Any:
    """JSON knows no NaN: what is no number is null."""
    match value:
        case dict():
            return {key: _plain(inner) for key, inner in value.items()}
        case list():
            return [_plain(inner) for inner in value]
        case float() if not math.isfinite(value):
            return None
    return value
