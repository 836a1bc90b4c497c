"""What a run and a search look like when they are sent: the same, but for where files are."""

from pathlib import Path

import pytest

from ftray.config.base import to_yaml
from ftray.config.cluster import ClusterConfig
from ftray.config.run import RunConfig, load_run
from ftray.config.search import SearchConfig, load_search
from ftray.submit.travel import travelling

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    (tmp_path / "train.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "eval.jsonl").write_text('{"prompt": "c", "completion": "d"}\n')
    (tmp_path / "template.jinja").write_text("{{ messages }}")
    (tmp_path / "run.yaml").write_text("""
name: sent
adapter: {method: qlora, target: [q_proj]}
data: {train: train.jsonl, eval: eval.jsonl, chat_template: template.jinja}
train: {max_steps: 4}
scaling: {num_workers: {min: 1, max: 2}}
""")
    return load_run(tmp_path / "run.yaml")


@pytest.fixture
def search(run: RunConfig, tmp_path: Path) -> SearchConfig:
    (tmp_path / "held.jsonl").write_text('{"prompt": "e", "completion": "f"}\n')
    (tmp_path / "space.yaml").write_text("""
space: {train.learning_rate: {loguniform: [1.0e-5, 1.0e-3]}, adapter.rank: {choice: [4, 8]}}
searcher: {kind: optuna}
scheduler: {kind: median}
also: {trained_parameters: min}
holdout: {path: held.jsonl}
""")
    return load_search(tmp_path / "space.yaml", run)


def test_files_of_this_machine_become_uris_and_the_rest_stays(
    run: RunConfig, search: SearchConfig, tmp_path: Path
) -> None:
    root = f"memory://{tmp_path.name}"
    sent, searched = travelling(run, search, root, ClusterConfig(), tmp_path)
    assert searched is not None
    paths = [sent.data.train[0].path, sent.data.eval[0].path, searched.holdout.path]
    assert all(path.startswith(f"{root}/uploads/") for path in paths)
    assert (tmp_path / sent.data.chat_template).read_text() == "{{ messages }}"
    ignored = {"data": {"train", "eval", "chat_template"}, "storage": True}
    assert sent.model_dump(exclude=ignored) == run.model_dump(exclude=ignored)
    assert searched.model_dump(exclude={"holdout"}) == search.model_dump(exclude={"holdout"})


def test_machines_that_share_our_files_read_them_where_they_are(
    run: RunConfig, tmp_path: Path
) -> None:
    sent, _ = travelling(run, None, "/root", ClusterConfig(shared_files=True), tmp_path)
    assert sent.data == run.data
    assert sent.storage == "/root"


def test_files_that_are_written_for_the_cluster_are_read_there_as_they_were_here(
    run: RunConfig, search: SearchConfig, tmp_path: Path
) -> None:
    there = tmp_path / "there"
    there.mkdir()
    sent, searched = travelling(run, search, "memory://x", ClusterConfig(), there)
    assert searched is not None
    (there / "run.yaml").write_text(to_yaml(sent))
    (there / "space.yaml").write_text(to_yaml(searched))
    arrived = load_run(there / "run.yaml")
    assert arrived.data.chat_template == str(there / "chat_template.jinja")
    template = {"data": {"chat_template"}}
    assert arrived.model_dump(exclude=template) == sent.model_dump(exclude=template)
    assert load_search(there / "space.yaml", arrived) == searched
