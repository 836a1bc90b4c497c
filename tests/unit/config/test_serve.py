"""What `ftray serve` takes from Serve's own file, and what it refuses."""

from pathlib import Path

import pytest
import yaml

from ftray.config.serve import load_served
from ftray.errors import ConfigError

SHIPPED = Path(__file__).parents[3] / "deploy" / "serve.yaml"


def test_the_shipped_file_is_valid_and_says_what_the_defaults_are():
    assert load_served(SHIPPED, []) == load_served(None, [])


def test_settings_are_given_by_the_names_of_the_files_args():
    served = load_served(SHIPPED, ["http.port=8001", "engine.rows=4", "replicas.max=2"])
    assert (served.http.port, served.app.engine.rows, served.app.replicas.max) == (8001, 4, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["engine.rwos=4"], r"engine\.rwos.*did you mean 'rows'"),
        (["replicas.min=3"], "min is 3, max is 1"),
        (["http.host=0.0.0.0"], "access=open_until_first_key on 0.0.0.0: anybody could call it"),
        (["http.port=99999"], "http.port"),
    ],
)
def test_a_mistake_names_its_key(changes: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        load_served(None, changes)


def test_any_address_will_do_where_keys_are_asked_for():
    assert load_served(None, ["http.host=0.0.0.0", "access=keys"]).http.host == "0.0.0.0"


def test_a_log_is_where_the_command_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert load_served(None, ["access_log=a.jsonl"]).app.access_log == str(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    "change",
    [{"applications": []}, {"applications": [{"import_path": "other:app"}]}],
    ids=["none", "another"],
)
def test_a_file_of_another_application_is_refused(tmp_path: Path, change: dict[str, object]):
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(SHIPPED.read_text()), **change}))
    with pytest.raises(ConfigError, match=r"applications|import_path"):
        load_served(file, [])
