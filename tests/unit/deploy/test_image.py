"""The recipe of the images: what hadolint says of it, and whether what it copies is there."""

import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[3]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
TEXT = DOCKERFILE.read_text(encoding="utf-8")


def test_hadolint_finds_nothing_to_say() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_no_image_runs_as_root() -> None:
    targets = re.split(r"^FROM ", TEXT, flags=re.MULTILINE)[1:]
    last = {
        target.split()[2]: re.findall(r"^USER (\d+)", target, re.MULTILINE) for target in targets
    }
    assert last["train"][-1] == "1000"
    assert last["base"][-1] == "1000"
    assert last["serve"] == []  # as base left it


def test_every_installed_version_is_pinned() -> None:
    installs = [line for line in lines() if "pip install" in line]
    assert len(installs) == 2
    for line in installs:
        assert "-c constraints.txt" in line or "--no-deps" in line


def test_what_is_copied_is_there_and_is_let_through() -> None:
    rules = (ROOT / ".dockerignore").read_text().split()
    allowed = [rule[1:] for rule in rules if rule.startswith("!")]
    copied = [
        source
        for line in lines()
        if line.startswith("COPY") and "--from" not in line
        for source in line.split()[1:-1]
        if not source.startswith("--")
    ]
    assert copied
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source, rule) or source.startswith(f"{rule}/") for rule in allowed), (
            source
        )


def lines() -> list[str]:
    """The instructions, each on one line."""
    joined = re.sub(r"\\\n\s*", "", TEXT)
    return [line for line in joined.splitlines() if line and not line.startswith("#")]
