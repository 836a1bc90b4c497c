"""The install lines of deploy/Dockerfile, run one after the other in a clean environment.

No Docker engine is needed: what COPY would bring is copied, and each RUN that calls pip runs.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.full
def test_the_image_holds_an_ftray_that_works(tmp_path: Path) -> None:
    folder, environment = tmp_path / "src", tmp_path / "ftray"
    folder.mkdir()
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    text = re.sub(r"\\\n\s*", "", (ROOT / "deploy/Dockerfile").read_text(encoding="utf-8"))
    for line in text.partition(" AS base")[0].splitlines():
        if line.startswith("COPY"):
            *sources, target = line.split()[1:]
            copy(sources, folder / target)
        elif line.startswith("RUN pip"):
            command = line.removeprefix("RUN ").replace("pip ", f"{environment}/bin/pip ", 1)
            subprocess.run(command, shell=True, cwd=folder, check=True)

    for command in (["ftray", "--version"], ["ray", "--version"], ["ftray", "init", "lora"]):
        program = environment / "bin" / command[0]
        done = subprocess.run([program, *command[1:]], capture_output=True, text=True, check=True)
        assert done.stdout
    probe = "import ftray.serve.app, ftray.train.fit, ftray.submit.arrival, psycopg, s3fs"
    subprocess.run([environment / "bin" / "python", "-c", probe], cwd=tmp_path, check=True)


def copy(sources: list[str], target: Path) -> None:
    for source in sources:
        origin = ROOT / source
        if origin.is_dir():
            shutil.copytree(origin, target, dirs_exist_ok=True)
        else:
            place = (
                target / origin.name if str(target).endswith("/.") or target.is_dir() else target
            )
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(origin, place)
