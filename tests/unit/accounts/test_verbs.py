"""`ftray keys` as people and scripts use it."""

import asyncio
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ftray.accounts.access import KeyAccess
from ftray.accounts.database import open_database
from ftray.accounts.url import database_url
from ftray.cli import main


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A storage root with its own SQLite file."""
    monkeypatch.setenv("FTRAY_HOME", str(tmp_path))
    monkeypatch.delenv("FTRAY_DATABASE", raising=False)
    return tmp_path


@pytest.fixture(params=["sqlite", "postgresql"])
def either(request: pytest.FixtureRequest, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That, or a PostgreSQL database named by the environment."""
    if request.param == "postgresql":
        monkeypatch.setenv("FTRAY_DATABASE", request.getfixturevalue("new_url"))
    return home


def told(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert main(["keys", *arguments]) == code
    shown = capsys.readouterr()
    return shown.err if code else shown.out


def test_a_key_is_created_used_listed_and_revoked(capsys: pytest.CaptureFixture[str], either: Path):
    limits = ("--rpm", "60", "--tpm", "20000", "--expires", "30d", "--model", "my-bot")
    shown = told(capsys, "create", "Support Bot", "--scope", "train", *limits)
    secret = next(line for line in shown.splitlines() if line.startswith("ft-"))
    assert all(text in shown for text in ("train: my-bot", "60 requests/min", "cannot be shown"))
    _use(either, secret, "my-bot@1")

    listed = told(capsys, "list")
    assert all(text in listed for text in ("Support Bot", "20,000 tokens/min", "until 2"))
    assert "never" not in listed
    assert secret not in listed
    [line] = [line for line in told(capsys, "usage", "--days", "1").splitlines() if "@1" in line]
    assert line.split()[-3:] == ["1", "1,200", "34"]

    id = secret.split("-")[1]
    assert told(capsys, "revoke", id).startswith(f"revoked {id} (Support Bot)")
    assert "revoked" in told(capsys, "list")


def test_a_projects_limits_are_set_and_changes_are_logged(
    capsys: pytest.CaptureFixture[str], either: Path
):
    told(capsys, "create", "x", "--project", "shop", "--role", "admin")
    limits = ["--running", "2", "--gpus", "8", "--gib", "any"]
    assert main(["projects", "set", "shop", *limits, "--json"]) == 0
    quota = json.loads(capsys.readouterr().out)["quota"]
    assert (quota["running_jobs"], quota["gpus"], quota["storage_bytes"]) == (2, 8, None)
    assert quota["files"] == 1000
    assert main(["projects", "list"]) == 0
    found = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert found["shop"] == ["1", "2", "1,000", "8", "1,000", "any"]
    assert found["default"][0] == "0"
    assert main(["projects", "log", "shop", "--limit", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[-2:] == ["project.set", "shop"]
    assert main(["projects", "set", "shop", "--gpus", "-1"]) == 2
    assert "expected a number or any" in capsys.readouterr().err


def test_scripts_get_json(capsys: pytest.CaptureFixture[str], either: Path):
    made = json.loads(told(capsys, "create", "ci", "--role", "member", "--json"))
    assert made["key"]["scopes"] == ["serve", "train"]
    assert made["secret"].startswith(f"ft-{made['key']['id']}-")
    _use(either, made["secret"], "base")
    [key] = json.loads(told(capsys, "list", "--json"))
    assert key | {"last_used": None} == made["key"]
    assert key["state"] == "active"
    [usage] = json.loads(told(capsys, "usage", "--daily", "--key", key["id"], "--json"))
    assert usage["model"] == "base"
    assert usage["first"] == datetime.now(UTC).date().isoformat()
    assert (usage["requests"], usage["prompt_tokens"], usage["answer_tokens"]) == (1, 1200, 34)


def test_before_the_first_key_the_lists_say_so(capsys: pytest.CaptureFixture[str]):
    assert told(capsys, "list") == "no keys yet: ftray keys create NAME\n"
    assert told(capsys, "usage") == "nothing was used\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["create"], "required: NAME"),
        (["create", "x", "--scope", "srve"], "did you mean 'serve'?"),
        (["create", "x", "--role", "owner"], "invalid choice: 'owner'"),
        (["create", "x", "--role", "admin", "--scope", "serve"], "not allowed with"),
        (["create", "x", "--expires", "30"], "expected minutes, hours or days as in 30d"),
        (["create", "x", "--expires", "٣d"], "expected minutes, hours or days as in 30d"),
        (["create", "x", "--rpm", "0"], "expected a number from 1 on"),
        (["create", "x", "--tpm", "9" * 40], "a limit is a number from 1 to"),
        (["create", "x", "--model", "bot@2"], "a name without its version"),
        (["create", " "], "a key's name has 1 to 100 printable characters"),
        (["revoke", "nobody"], "no key 'nobody'\nhint: ftray keys list"),
        (["usage", "--key", "nobody"], "no key 'nobody'"),
        (["creat", "x"], "did you mean 'create'?"),
    ],
)
def test_a_mistake_is_explained(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
):
    assert said in told(capsys, *arguments, code=2)


def test_a_damaged_database_is_one_message(capsys: pytest.CaptureFixture[str], home: Path):
    (home / "accounts.db").write_text("not a database", encoding="utf-8")
    error = told(capsys, "list", code=8)
    assert error.splitlines() == [
        f"error: database {home}/accounts.db: file is not a database",
        "hint: move the file away, or put a saved copy in its place",
    ]


def test_other_verbs_load_no_database_library():
    probe = "import sys, ftray.cli; print({'sqlalchemy', 'alembic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def _use(home: Path, secret: str, model: str) -> None:
    database = open_database(database_url(str(home)))
    access = KeyAccess(database)
    access.start()
    caller = asyncio.run(access.authenticate(secret))
    assert caller is not None
    assert access.admit(caller.key, 2000).refusal == ""
    access.used(caller.key, model, 2000, 1200, 34)
    access.close()
    database.close()
