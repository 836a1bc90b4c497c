from pathlib import Path

import pytest

from ftray import commands
from ftray.config.run import load_run
from ftray.errors import ConfigError


@pytest.mark.parametrize("preset", ["full", "lora", "qlora", "text"])
def test_a_preset_is_a_valid_run_file_that_opens_with_its_command(tmp_path: Path, preset: str):
    text = commands.init(preset)
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    config = load_run(path)
    assert text.startswith(f"# ftray init {preset} > run.yaml && ftray check run.yaml")
    assert config.adapter.method == {"text": "lora"}.get(preset, preset)
    assert str(tmp_path) in str(config.data.train)


def test_every_preset_is_known_to_this_test():
    assert commands.presets() == ["full", "lora", "qlora", "text"]


def test_an_unknown_preset_gets_the_near_one_as_a_hint():
    with pytest.raises(ConfigError) as error:
        commands.init("qlra")
    assert error.value.hint == "did you mean 'qlora'?"
