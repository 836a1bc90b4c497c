"""A base that all GPUs of a machine share, each reading its own rows: `pytest -m gpu tests/gpu`."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]


def test_workers_that_read_their_own_rows_train_as_those_that_load_the_base_whole(
    tiny_folder: Path, tmp_path: Path
) -> None:
    twice = shutil.copytree(tiny_folder, tmp_path / "twice")
    state = load_file(twice / "model.safetensors")
    head = state["model.embed_tokens.weight"].clone()  # tied, and there all the same: loaded whole
    save_file(
        {**state, "lm_head.weight": head}, twice / "model.safetensors", metadata={"format": "pt"}
    )
    program = Path(__file__).with_name("sharded_worker.py")
    subprocess.run([sys.executable, program, tmp_path, tiny_folder, twice], check=True, timeout=600)
    log = (tmp_path / "0.log").read_text()
    assert "each worker reads its own" in log
    assert "after each worker has read all of them" in log
    for name, (read, loaded) in json.loads((tmp_path / "0.json").read_text()).items():
        assert read["weights"] == loaded["weights"], name
        assert read["losses"] == loaded["losses"], name
        assert read["answers"] == loaded["answers"], name
        assert read["losses"][-1] < read["losses"][0], name
