"""What answers look like in a terminal."""

import pytest
from rich.console import Console

from ftray.config.data import DataConfig
from ftray.config.run import TrainConfig
from ftray.data.rendering.chat import Tokens
from ftray.data.report.quality import BadRow, BadRows, RowSet, measure
from ftray.data.report.verdict import judge
from ftray.data.tokens.memory import MemoryRows
from ftray.registry import AdapterRecord, BaseModel, FoundBy
from ftray.screen import adapters, data
from ftray.train.examine import Examined


@pytest.fixture
def found() -> Examined:
    """A report on 60 rows of several lengths, two of them equal, and one bad row."""
    rows = [Tokens(list(range(n, 2 * n)), bytes(2) + b"\x01" * (n - 2)) for n in range(10, 70)]
    table = MemoryRows([*rows, rows[0]])
    bad = BadRows([1], {"not JSON": 1}, [BadRow("train.jsonl line 7", "not JSON", "")])
    train = RowSet(table.columns, table, ["train.jsonl"], bad)
    evals = RowSet(table.columns.at(slice(5)), table, ["eval.jsonl"], BadRows([0]))
    config = DataConfig(train="x", max_length=64, limits={"overlap": 0.1})
    quality = measure(train, evals, config, TrainConfig(epochs=1), str)
    return Examined("demo", quality, judge(quality, config), "tokens/1/report.html")


def test_a_report_fits_one_screen_and_ends_with_the_verdict(found: Examined):
    console = Console(width=80, record=True, markup=False, highlight=False)
    with console.capture() as shown:
        console.print(data.report(found))
    lines = shown.get().splitlines()
    assert len(lines) <= 24
    said = "\n".join(lines)
    for words in ("train", "eval", "█", "5 of 5 prompts", "bad: not JSON", "64"):
        assert words in said
    assert said.index("note: ") < said.index("refuse") < said.index("data.limits.overlap: 100.00%")
    assert lines[-1] == "page: tokens/1/report.html"


def test_an_adapter_says_which_search_found_it():
    values = {"adapter.rank": 8, "train.learning_rate": 0.003}
    found_by = FoundBy(
        search="ranks",
        trial="t7",
        place=1,
        trials=16,
        values=values,
        metric="eval_loss",
        value=1.2,
        holdout="50% of the eval rows, 12 rows",
    )
    record = AdapterRecord(
        name="bot",
        kind="adapter",
        base=BaseModel(name="tiny", revision=None, fingerprint="f"),
        method="lora",
        rank=8,
        tokenizer_digest="t",
        template_digest="t",
        metrics={"best_eval_loss": 1.2, "held_out_loss": 1.3},
        search=found_by,
        version=1,
    )
    console = Console(width=80, record=True, markup=False, highlight=False)
    with console.capture() as shown:
        console.print(adapters.adapter(record))
    said = " ".join(shown.get().split())
    for words in (
        "found by search ranks, trial t7, place 1 of 16 adapter.rank 8",
        "train.learning_rate 0.003 held out 50% of the eval rows, 12 rows",
        "best_eval_loss 1.2000 held_out_loss 1.3000",
    ):
        assert words in said
