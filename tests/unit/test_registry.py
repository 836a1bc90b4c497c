import json
import subprocess
import sys
import uuid
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from ftray import registry, storage
from ftray.errors import RegistryError, StorageError
from ftray.registry import AdapterRecord, BaseModel, Target

DRAFT = AdapterRecord(
    name="tickets",
    kind="adapter",
    base=BaseModel(name="smollm2-135m-instruct", revision=None, fingerprint="f" * 64),
    method="lora",
    rank=16,
    tokenizer_digest="t" * 64,
    template_digest="c" * 64,
    metrics={"eval_loss": 0.1 + 0.2},
    config={"name": "tickets", "train": {"epochs": 3}},
)


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "root") if request.param == "local" else f"memory://{uuid.uuid4().hex}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "adapter"
    made.mkdir()
    (made / "adapter_config.json").write_text("{}")
    (made / "adapter_model.safetensors").write_bytes(b"weights")
    return made


def test_versions_count_up_and_hold_the_files_and_what_was_said_of_them(root, folder, tmp_path):
    first = registry.publish(root, folder, DRAFT)
    second = registry.publish(root, folder, DRAFT)
    assert (first.ref, second.ref) == ("tickets@1", "tickets@2")
    assert registry.versions(root, "tickets") == [first, second]
    assert registry.resolve(root, "tickets@1") == first
    assert replace(first, version=0, files={}, digest="", created=0.0) == DRAFT
    local = registry.fetch_adapter(root, first, tmp_path / "cache")
    assert (local / "adapter_model.safetensors").read_bytes() == b"weights"
    assert sorted(first.files) == ["adapter_config.json", "adapter_model.safetensors"]


def test_the_digest_is_of_the_content_alone(root, folder):
    first = registry.publish(root, folder, DRAFT)
    other_name = registry.publish(root, folder, replace(DRAFT, name="other", metrics={}))
    (folder / "adapter_model.safetensors").write_bytes(b"other weights")
    changed = registry.publish(root, folder, DRAFT)
    assert first.digest == other_name.digest == registry.content_digest(first.files)
    assert changed.digest != first.digest


def test_a_fetched_version_can_be_published_again(root, folder, tmp_path):
    first = registry.publish(root, folder, DRAFT)
    local = registry.fetch_adapter(root, first, tmp_path / "cache")
    again = registry.publish(root, local, replace(first, name="copy"))
    assert (again.ref, again.digest) == ("copy@1", first.digest)


def test_a_folder_without_files_is_not_published(root, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RegistryError, match="holds no files"):
        registry.publish(root, tmp_path / "empty", DRAFT)
    assert registry.list_adapters(root) == []


_PUBLISH_FIVE = """
import json, sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from ftray import registry
from ftray.registry import AdapterRecord, BaseModel, Target
root, folder, who = sys.argv[1:]
base = BaseModel(name="b", revision=None, fingerprint="f")
draft = AdapterRecord(
    name="tickets", kind="adapter", base=base, method="lora", rank=int(who),
    tokenizer_digest="t", template_digest="c",
)
print("ready", flush=True)
sys.stdin.readline()
versions = [registry.publish(root, Path(folder), draft).version for _ in range(5)]
print(json.dumps(versions))
"""


def test_publishers_in_several_processes_lose_nothing(tmp_path, folder):
    root, pipe = str(tmp_path / "root"), subprocess.PIPE
    publishers = [
        subprocess.Popen(
            [sys.executable, "-c", _PUBLISH_FIVE, root, str(folder), str(who)],
            stdin=pipe,
            stdout=pipe,
            text=True,
        )
        for who in range(4)
    ]
    for publisher in publishers:
        assert publisher.stdout.readline() == "ready\n"
    for publisher in publishers:
        publisher.stdin.write("\n")
        publisher.stdin.flush()
    published = [json.loads(publisher.communicate(timeout=60)[0]) for publisher in publishers]
    records = registry.versions(root, "tickets")
    assert [record.version for record in records] == list(range(1, 21))
    for who, numbers in enumerate(published):
        assert [record.version for record in records if record.rank == who] == numbers
        assert len(numbers) == 5


def test_a_publisher_that_died_leaves_a_number_but_no_version(root, folder):
    first = registry.publish(root, folder, DRAFT)
    begun = registry.adapter_folder(root, replace(first, version=2))
    storage.write(storage.join(begun, "claim.json"), b"{}")
    storage.upload(folder, begun)
    assert registry.resolve(root, "tickets") == first
    assert registry.publish(root, folder, DRAFT).version == 3
    assert [record.version for record in registry.versions(root, "tickets")] == [1, 3]


def test_a_reference_means_the_latest_or_a_version_or_an_alias(root, folder):
    for _ in range(3):
        registry.publish(root, folder, DRAFT)
    registry.promote(root, "tickets@2", "champion")
    refs = ("tickets", "tickets@1", "tickets@champion")
    assert [registry.resolve(root, ref).version for ref in refs] == [3, 1, 2]


@pytest.mark.parametrize(
    ("ref", "message", "hint"),
    [
        ("tickts", "no adapter 'tickts'", "did you mean 'tickets'?"),
        ("tickts@1", "no adapter 'tickts'", "did you mean 'tickets'?"),
        ("tickts@champion", "no adapter 'tickts'", "did you mean 'tickets'?"),
        (
            "tickets@7",
            "adapter 'tickets' has no version 7; the latest is 1",
            "ftray adapters show tickets",
        ),
        (
            "tickets@champoin",
            "no alias 'champoin'; its aliases: champion",
            "did you mean 'champion'?",
        ),
        ("tickets@", "alias '' is not possible", "ftray adapters list"),
        ("../tickets", "adapter name '../tickets' is not possible", "ftray adapters list"),
        ("tickets@../1", "alias '../1' is not possible", "ftray adapters list"),
        ("tickets/1", "adapter name 'tickets/1' is not possible", "ftray adapters list"),
    ],
)
def test_a_wrong_reference_is_explained(root, folder, ref, message, hint):
    registry.publish(root, folder, DRAFT)
    registry.promote(root, "tickets", "champion")
    with pytest.raises(RegistryError, match=message) as caught:
        registry.resolve(root, ref)
    assert caught.value.hint == hint


def test_a_name_never_becomes_a_path_unchecked(root, folder):
    with pytest.raises(RegistryError, match="is not possible"):
        registry.publish(root, folder, replace(DRAFT, name="../../etc"))
    registry.publish(root, folder, DRAFT)
    for alias in ("../x", "a/b", "UPPER", ""):
        with pytest.raises(RegistryError, match="is not possible"):
            registry.promote(root, "tickets", alias)
    with pytest.raises(RegistryError, match="look like a version"):
        registry.promote(root, "tickets", "3")


def test_an_alias_moves_only_from_where_the_caller_believes_it_to_be(root, folder):
    for _ in range(3):
        registry.publish(root, folder, DRAFT)
    registry.promote(root, "tickets@1", "champion", expect=0)
    registry.promote(root, "tickets@2", "champion", expect=1)
    with pytest.raises(
        RegistryError, match="points at version 2; expected: it points at version 1"
    ):
        registry.promote(root, "tickets@3", "champion", expect=1)
    with pytest.raises(RegistryError, match="points at version 2; expected: it does not exist"):
        registry.promote(root, "tickets@3", "champion", expect=0)
    with pytest.raises(RegistryError, match="'canary' of 'tickets' does not exist; expected"):
        registry.promote(root, "tickets@3", "canary", expect=1)
    assert registry.aliases(root, "tickets") == {"champion": 2}
    registry.promote(root, "tickets@1", "champion")
    assert registry.aliases(root, "tickets") == {"champion": 1}


_MOVE = """
import sys
from ftray import registry
from ftray.errors import RegistryError
won = 0
print("ready", flush=True)
sys.stdin.readline()
for believed in range(20):
    to = believed % 2 + 1
    try:
        registry.promote(sys.argv[1], f"tickets@{to}", f"alias-{believed}", expect=0)
        won += 1
    except RegistryError:
        pass
print(won)
"""


def test_of_two_processes_that_move_an_alias_from_the_same_place_one_wins(tmp_path, folder):
    root, pipe = str(tmp_path / "root"), subprocess.PIPE
    for _ in range(2):
        registry.publish(root, folder, DRAFT)
    command = [sys.executable, "-c", _MOVE, root]
    movers = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(2)]
    for mover in movers:
        assert mover.stdout.readline() == "ready\n"
    for mover in movers:
        mover.stdin.write("\n")
        mover.stdin.flush()
    assert sum(int(mover.communicate(timeout=60)[0]) for mover in movers) == 20
    assert len(registry.aliases(root, "tickets")) == 20


def test_a_version_that_an_alias_names_is_deleted_by_force_only(root, folder):
    first = registry.publish(root, folder, DRAFT)
    registry.publish(root, folder, DRAFT)
    registry.promote(root, "tickets@1", "champion")
    with pytest.raises(RegistryError, match="tickets@1 is in use as champion"):
        registry.delete(root, "tickets@1")
    assert registry.resolve(root, "tickets@champion") == first
    registry.delete(root, "tickets@1", force=True)
    with pytest.raises(RegistryError, match="has no version 1; the latest is 2"):
        registry.resolve(root, "tickets@champion")


def test_the_number_of_a_deleted_version_is_never_used_again(root, folder):
    registry.publish(root, folder, DRAFT)
    second = registry.publish(root, folder, DRAFT)
    registry.delete(root, "tickets@2")
    assert registry.resolve(root, "tickets").version == 1
    assert storage.names(registry.adapter_folder(root, second)) == ["claim.json"]
    assert registry.publish(root, folder, DRAFT).version == 3


def test_deleting_needs_the_version_in_words(root, folder):
    registry.publish(root, folder, DRAFT)
    with pytest.raises(RegistryError, match="does not say which version") as caught:
        registry.delete(root, "tickets")
    assert caught.value.hint == "e.g. tickets@1"


def test_damaged_files_are_not_handed_out(root, folder, tmp_path):
    record = registry.publish(root, folder, DRAFT)
    path = storage.join(registry.adapter_folder(root, record), "adapter_model.safetensors")
    storage.write(path, b"bit rot")
    with pytest.raises(RegistryError, match="tickets@1 is damaged") as caught:
        registry.fetch_adapter(root, record, tmp_path / "cache")
    assert "adapter_model.safetensors: its SHA-256 is" in caught.value.message


def test_a_damaged_cached_copy_is_fetched_again(folder, tmp_path):
    root = f"memory://{uuid.uuid4().hex}"
    record = registry.publish(root, folder, DRAFT)
    local = registry.fetch_adapter(root, record, tmp_path / "cache")
    (local / "adapter_model.safetensors").write_bytes(b"bit rot")
    again = registry.fetch_adapter(root, record, tmp_path / "cache")
    assert (again / "adapter_model.safetensors").read_bytes() == b"weights"


def test_listing_leaves_out_what_is_not_recorded(root, folder):
    record = registry.publish(root, folder, DRAFT)
    here = storage.join(root, "adapters")
    stored = storage.read(storage.join(here, "tickets", "1", "record.json"))
    for name, data in {
        "tickets/2/adapter_model.safetensors": b"half",
        "tickets/3/record.json": b"{",
        "tickets/4/record.json": b'{"schema": 1, "name": "tickets"}',
        "tickets/5/record.json": stored,  # says that it is version 1
        "tickets/notes/record.json": stored,
        "tickets/6": b"a file",
        "foreign/x": b"",
        ".DS_Store": b"",
    }.items():
        storage.write(storage.join(here, name), data)
    assert registry.list_adapters(root) == [record]
    assert registry.resolve(root, "tickets") == record
    assert registry.publish(root, folder, DRAFT).version == 7
    with pytest.raises(RegistryError, match="no adapter 'foreign'") as caught:
        registry.resolve(root, "foreign")
    assert "'foreign'" not in caught.value.hint


def test_a_version_of_a_newer_ftray_is_neither_misread_nor_passed_over(root, folder):
    registry.publish(root, folder, DRAFT)
    newer = storage.join(root, "adapters", "tickets", "2", "record.json")
    storage.write(newer, b'{"schema": 99}')
    with pytest.raises(StorageError, match="written by a newer ftray"):
        registry.resolve(root, "tickets")
    assert registry.resolve(root, "tickets@1").version == 1


def moved(root: str, folder: Path) -> None:
    for _ in range(3):
        registry.publish(root, folder, DRAFT)
    registry.promote(root, "tickets@1", "live")


def test_a_split_alias_points_at_several_versions_by_weight(root, folder):
    moved(root, folder)
    targets = (Target(1, 95), Target(2, 5))
    registry.split(root, "tickets@live", targets, shadow=3, expect=1)
    pointer = registry.pointer(root, "tickets@live")
    assert (pointer.targets, pointer.shadow, pointer.versions) == (targets, 3, {1, 2, 3})
    assert registry.resolve(root, "tickets@live").version == 1
    assert registry.aliases(root, "tickets") == {"live": 1}
    registry.promote(root, "tickets@2", "live")
    assert registry.pointer(root, "tickets@live").targets == (Target(2),)


@pytest.mark.parametrize(
    ("ref", "targets", "message"),
    [
        ("tickets@live", (), "needs one weight for each"),
        ("tickets@live", (Target(1, 1), Target(1, 2)), "needs one weight for each"),
        ("tickets@live", (Target(1, 0), Target(2, 0)), "must not be negative, nor all 0"),
        ("tickets@live", (Target(1, -1), Target(2, 2)), "must not be negative, nor all 0"),
        ("tickets@live", (Target(1), Target(9)), "has no version 9"),
        ("tickets@3", (Target(1),), "look like a version"),
        ("tickets", (Target(1),), "alias '' is not possible"),
        ("../x@live", (Target(1),), "is not possible"),
    ],
)
def test_a_wrong_split_is_refused_and_changes_nothing(root, folder, ref, targets, message):
    moved(root, folder)
    with pytest.raises(RegistryError, match=message):
        registry.split(root, ref, targets)
    with pytest.raises(RegistryError, match="has no version 9"):
        registry.split(root, "tickets@live", (Target(1),), shadow=9)
    with pytest.raises(RegistryError, match="expected: it points at version 2"):
        registry.split(root, "tickets@live", (Target(1),), expect=2)
    assert registry.pointer(root, "tickets@live").targets == (Target(1),)


def test_a_choice_follows_the_weights_and_keeps_a_key_where_it_is():
    keys = [f"user-{number}" for number in range(2000)]
    shares = [(Target(1, 100 - new), Target(2, new)) for new in (0, 5, 20, 50, 100)]
    chosen = [{key for key in keys if registry.choose(targets, key) == 2} for targets in shares]
    assert [round(len(found) / 20) for found in chosen][::4] == [0, 100]
    assert all(
        abs(len(found) / 20 - t[1].weight) < 3 for found, t in zip(chosen, shares, strict=True)
    )
    assert all(fewer <= more for fewer, more in pairwise(chosen))


def test_a_rollback_goes_back_one_move_and_again_one_more(root, folder):
    moved(root, folder)
    registry.split(root, "tickets@live", (Target(1, 9), Target(2, 1)), shadow=3)
    registry.promote(root, "tickets@2", "live")
    registry.promote(root, "tickets@3", "live")
    versions = [registry.rollback(root, "tickets@live").version for _ in range(2)]
    assert versions == [2, 1]
    pointer = registry.pointer(root, "tickets@live")
    assert (pointer.targets, pointer.shadow) == ((Target(1, 9), Target(2, 1)), 3)
    assert registry.rollback(root, "tickets@live").targets == (Target(1),)
    with pytest.raises(RegistryError, match="has not pointed elsewhere before"):
        registry.rollback(root, "tickets@live")
    registry.promote(root, "tickets@3", "live")
    assert registry.rollback(root, "tickets@live").version == 1


def test_a_rollback_never_leads_to_what_is_gone(root, folder):
    moved(root, folder)
    registry.promote(root, "tickets@2", "live")
    registry.delete(root, "tickets@1")
    with pytest.raises(RegistryError, match="has no version 1"):
        registry.rollback(root, "tickets@live")
    assert registry.resolve(root, "tickets@live").version == 2
    with pytest.raises(RegistryError, match="has no alias 'nobody'"):
        registry.rollback(root, "tickets@nobody")


def test_all_versions_of_a_split_are_in_use(root, folder):
    moved(root, folder)
    registry.split(root, "tickets@live", (Target(1), Target(2)), shadow=3)
    for version in (1, 2, 3):
        with pytest.raises(RegistryError, match="is in use as live"):
            registry.delete(root, f"tickets@{version}")
