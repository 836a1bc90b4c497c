"""What a search checks before it begins."""

from concurrent.futures import Future
from pathlib import Path

import pytest

from ftray.config.base import override
from ftray.config.run import RunConfig
from ftray.config.search import SearchConfig
from ftray.connection import Connection
from ftray.errors import DataError
from ftray.tune.search import search


@pytest.mark.parametrize("missing", ["data.train", "data.eval", "holdout"])
def test_a_missing_file_is_told_before_anything_starts(tmp_path: Path, missing: str):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "1?", "completion": "2"}\n')
    tree = {
        "name": "sums",
        "data": {"train": str(rows), "eval": str(rows)},
        "train": {"max_steps": 2},
        "storage": str(tmp_path / "root"),
    }
    run, nowhere = RunConfig.model_validate(tree), str(tmp_path / "nowhere.jsonl")
    holdout = {"path": nowhere if missing == "holdout" else str(rows)}
    asked = SearchConfig.model_validate(
        {"space": {"adapter.rank": {"choice": [4, 8]}}, "holdout": holdout}
    )
    if missing != "holdout":
        run = override(run, {missing: nowhere})
    never: Future[None] = Future()
    never.set_exception(AssertionError("waited for Ray"))
    with pytest.raises(DataError, match=r"nowhere\.jsonl: no such file"):
        search(run, asked, Connection(never))
    assert not (tmp_path / "root").exists()
