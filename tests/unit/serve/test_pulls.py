"""A replica has an adapter's files on its own machine, whoever asked for it and from where."""

import asyncio
import uuid
from pathlib import Path

import pytest

from ftray import registry, storage
from ftray.errors import StorageError
from ftray.registry import AdapterRecord, BaseModel
from ftray.serve.protocol import AdapterSource, RefusedError
from ftray.serve.pulls import Pulls


@pytest.fixture
def root() -> str:
    """Not on this machine's disk."""
    return f"memory://{uuid.uuid4().hex}"


@pytest.fixture
def record(root: str, tmp_path: Path) -> AdapterRecord:
    made = tmp_path / "adapter"
    made.mkdir()
    (made / "adapter_config.json").write_text("{}")
    (made / "adapter_model.safetensors").write_bytes(b"weights")
    draft = AdapterRecord(
        name="tickets",
        kind="adapter",
        base=BaseModel(name="base", revision=None, fingerprint="f" * 64),
        method="lora",
        rank=8,
        tokenizer_digest="",
        template_digest="",
    )
    return registry.publish(root, made, draft)


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that has nothing yet: where it keeps its copies."""
    monkeypatch.setenv("FTRAY_HOME", str(tmp_path / "machine"))
    return tmp_path / "machine"


def test_a_version_is_pulled_to_this_machine_once(
    root: str, record: AdapterRecord, machine: Path, monkeypatch: pytest.MonkeyPatch
):
    fetched: list[str] = []
    fetch = registry.fetch_adapter

    def counted(root: str, record: AdapterRecord, cache: Path) -> Path:
        fetched.append(record.ref)
        return fetch(root, record, cache)

    monkeypatch.setattr(registry, "fetch_adapter", counted)

    async def pull() -> list[AdapterSource]:
        pulls = Pulls(root)
        return [*await asyncio.gather(*(pulls.here("tickets@1") for _ in range(5)))]

    first, *others = asyncio.run(pull())
    assert first.digest == record.digest
    assert (Path(first.folder) / "adapter_model.safetensors").read_bytes() == b"weights"
    assert Path(first.folder).is_relative_to(machine)
    assert all(other == first for other in others)
    assert fetched == ["tickets@1"]


def test_what_is_damaged_is_refused_and_pulled_again_once_it_is_whole(
    root: str, record: AdapterRecord
):
    path = storage.join(registry.adapter_folder(root, record), "adapter_model.safetensors")

    async def pull() -> AdapterSource:
        pulls = Pulls(root)
        storage.write(path, b"other")
        with pytest.raises(RefusedError, match="tickets@1 is damaged") as caught:
            await pulls.here("tickets@1")
        assert caught.value.code == "bad_adapter"
        storage.write(path, b"weights")
        return await pulls.here("tickets@1")

    assert asyncio.run(pull()).digest == record.digest


def test_a_storage_that_does_not_answer_is_no_fault_of_the_adapter(
    root: str, monkeypatch: pytest.MonkeyPatch
):
    def fail(root: str, ref: str) -> AdapterRecord:
        raise StorageError(f"cannot read {root}: it does not answer")

    monkeypatch.setattr(registry, "resolve", fail)
    with pytest.raises(RefusedError, match="does not answer") as caught:
        asyncio.run(Pulls(root).here("tickets@1"))
    assert caught.value.code == "lost"
