"""The report as files: what the page says, and that figures survive JSON."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from rich.console import Console

from ftray.config.run import load_run
from ftray.screen.ranking import ranking
from ftray.tune.report.summary import Report
from ftray.tune.report.write import write_report
from ftray.tune.results import SearchResult
from ftray.tune.winners import Winner, Winners, ranked

Searched = Callable[..., SearchResult]


@dataclass(frozen=True)
class Written:
    report: Report
    folder: Path

    @property
    def page(self) -> str:
        return (self.folder / "report.html").read_text()


@pytest.fixture(scope="module")
def written(searched: Searched, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """The report on a search whose best three were measured, and whose best was published."""
    folder = tmp_path_factory.mktemp("search")
    result = replace(searched(24), folder=str(folder))
    return Written(write_report(result, won(result)), folder / "report")


def won(result: SearchResult) -> Winners:
    first, *others = ranked(result)[:3]
    best = Winner(first.id, first.metric or 0.0, 81, 1.25, "support-bot@3")
    rest = [Winner(one.id, one.metric or 0.0, 81, 1.5, None) for one in others]
    alias = "support-bot@champion"
    return Winners([best, *rest], "50% of the eval rows, 123 rows", alias=alias)


def test_everything_lies_in_the_searches_folder(written: Written):
    assert {path.name for path in written.folder.iterdir()} == {
        *("report.json", "report.html", "best.yaml"),
        *("parallel.png", "curves.png", "rank_loss.png"),
    }
    assert load_run(written.folder / "best.yaml").name == "support-bot-best"


def test_figures_are_those_of_the_table(written: Written):
    figures = json.loads((written.folder / "report.json").read_text())
    assert figures["schema"] == 1
    assert [row["trial"] for row in figures["rows"]] == [row.trial for row in written.report.rows]
    assert figures["rows"][0]["held_out"] == 1.25
    assert figures["importance"]["knobs"][0]["key"] == "train.learning_rate"
    assert figures["saved_hours"] == pytest.approx(2320 / 3600)


def test_the_page_holds_all_that_it_shows(written: Written):
    assert written.page.count('src="data:image/png;base64,') == 3
    outside = ("http:", "https:", "<script", "@import", "url(")
    assert [word for word in outside if word in written.page] == []
    for words in ("support-bot@3", "50% of the eval rows, 123 rows", "PED-ANOVA", "1.2500"):
        assert words in written.page


def test_nothing_that_a_trial_says_changes_the_page_or_its_figures(
    searched: Searched, tmp_path: Path
):
    result = searched(2)
    bad = replace(result.trials[0], metric=math.nan, error="<script>alert(1)</script>")
    trials = [replace(bad, state="failed", values={"adapter.rank": 8}), result.trials[1]]
    write_report(replace(result, trials=trials, folder=str(tmp_path)), None)
    page = (tmp_path / "report" / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    json.loads((tmp_path / "report" / "report.json").read_text(), parse_constant=pytest.fail)


def test_a_report_on_too_few_trials_and_no_holdout_says_both(searched: Searched, tmp_path: Path):
    write_report(replace(searched(8), folder=str(tmp_path)), None)
    page = (tmp_path / "report" / "report.html").read_text()
    assert "too few trials: 8 have a result or failed, and it takes 16" in page
    assert "Nothing was held out" in page


def test_a_search_in_which_all_failed_is_reported(searched: Searched, tmp_path: Path):
    result = replace(searched(3), folder=str(tmp_path))
    failed = [replace(t, state="failed", metric=None, error="out of memory") for t in result.trials]
    report = write_report(replace(result, trials=failed), None)
    assert report.best is None
    assert "No trial has a result" in (tmp_path / "report" / "report.html").read_text()
    assert not (tmp_path / "report" / "best.yaml").exists()
    assert "out of memory" in on_screen(report, 100)


def test_the_table_goes_by_rank_and_says_what_is_left_out(written: Written):
    said = on_screen(written.report, 160)
    lines = said.splitlines()
    assert "learning_rate" in lines[0]
    assert lines[1].split()[0] == "1"
    assert "and 4 more, see the page" in said
    for words in (
        "held out       eval_loss 1.2500",
        "time           10.0 min, 9.7 GPU minutes",
        "38.7 GPU minutes: one trial at a time would have taken about 48.3 GPU minutes",
        "support-bot@champion is now support-bot@3",
        "what mattered  train.learning_rate",
        "ftray eval support-bot@3 DATA",
        f"ftray train {written.folder}/best.yaml",
    ):
        assert words in said


def test_a_search_that_took_longer_than_one_trial_at_a_time_claims_nothing(written: Written):
    costs = replace(written.report.costs, alone_hours=0.1)
    assert "saved          nothing: one trial" in on_screen(
        replace(written.report, costs=costs), 160
    )


def test_a_narrow_screen_has_one_column_for_all_values(written: Written):
    lines = on_screen(written.report, 80).splitlines()
    assert lines[0].split() == ["trial", "eval_loss", "held", "out", "steps", "values"]
    assert "rank 32, target" in lines[1]


def on_screen(report: Report, width: int) -> str:
    console = Console(width=width, record=True, markup=False, highlight=False)
    with console.capture() as shown:
        console.print(ranking(report), soft_wrap=False)
    return shown.get()
