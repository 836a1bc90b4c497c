"""Files as OpenAI's client uploads, lists, reads and deletes them."""

import hashlib
from io import BytesIO
from pathlib import Path

import openai
import pytest
from place import LINES, Place, upload

from ftray.accounts.grant import Quota
from ftray.accounts.projects import set_project


def test_a_file_is_uploaded_listed_read_and_deleted(place: Place):
    client = place.client()
    made = upload(client)
    assert (made.object, made.bytes, made.filename) == ("file", len(LINES), "train.jsonl")
    assert client.files.wait_for_processing(made.id).status == "processed"
    assert [file.id for file in client.files.list(purpose="fine-tune")] == [made.id]
    assert client.files.content(made.id).read() == LINES
    assert client.files.delete(made.id).deleted
    assert list(client.files.list()) == []
    with pytest.raises(openai.NotFoundError) as refused:
        client.files.retrieve(made.id)
    assert refused.value.code == "file_not_found"


def test_bytes_lie_once_and_under_no_name_of_a_user(place: Place):
    client = place.client()
    names = ["../../etc/passwd", "a\0b.jsonl", "C:\\x\\y.jsonl", "ü" * 400]
    for name in names:
        client.files.create(file=(name, BytesIO(LINES)), purpose="fine-tune")
    stored = [path for path in Path(place.root).rglob("*") if path.is_file()]
    assert [path.name for path in stored] == [f"{hashlib.sha256(LINES).hexdigest()}.jsonl"]
    shown = {file.filename for file in client.files.list()}
    assert {"passwd", "y.jsonl"} <= shown
    assert all("/" not in name and "\0" not in name for name in shown)


def test_pages_end_and_a_cursor_outlives_its_file(place: Place):
    client = place.client()
    made = [upload(client, LINES + b"%d\n" % number).id for number in range(5)]
    assert [file.id for file in client.files.list(limit=2)] == made[::-1]
    assert [file.id for file in client.files.list(limit=2, order="asc")] == made
    client.files.delete(made[2])
    assert [file.id for file in client.files.list(after=made[2]).data] == [made[1], made[0]]
    for after in ("file-nobody", "x" * 5000):
        with pytest.raises(openai.BadRequestError, match="after"):
            client.files.list(after=after)


REFUSED = [
    (b"", "fine-tune", "empty"),
    (b"{}\n" * 1001, "fine-tune", "1,000 lines"),
    (b"x" * 200_001, "fine-tune", "200,000 bytes"),
    (b"x" * 400_000, "fine-tune", "200,000 bytes"),
    (b"{}\n", "batch", "only 'fine-tune'"),
]


def test_what_is_too_much_or_of_no_use_is_refused(file_place: Place):
    client = file_place.client()
    for data, purpose, said in REFUSED:
        with pytest.raises(openai.APIStatusError, match=said) as refused:
            client.files.create(file=("f", data), purpose=purpose)  # type: ignore[arg-type]
        assert refused.value.status_code == (413 if "bytes" in said else 400)
    assert list(client.files.list()) == []
    assert not Path(file_place.root, "files").exists()


def test_a_project_has_its_share_of_files_and_bytes(place: Place):
    set_project(place.database, "small", Quota(files=2, storage_bytes=3 * len(LINES)))
    client = place.client("small")
    first = upload(client)
    upload(client, LINES * 2)
    with pytest.raises(openai.RateLimitError) as refused:
        upload(client)
    assert refused.value.code == "insufficient_quota"
    client.files.delete(first.id)
    with pytest.raises(openai.RateLimitError, match="GiB"):
        upload(client, LINES * 3)
    upload(client)


def test_another_projects_file_is_not_there(place: Place):
    mine, other = place.client("mine"), place.client("other", "admin")
    id = upload(mine).id
    assert list(other.files.list()) == []
    for act in (other.files.retrieve, other.files.content, other.files.delete):
        with pytest.raises(openai.NotFoundError):
            act(id)
    with pytest.raises(openai.BadRequestError):
        other.files.list(after=id)
    assert mine.files.retrieve(id).id == id


def test_a_key_that_may_only_call_models_sees_no_files(file_place: Place):
    client = file_place.client(role="inference")
    with pytest.raises(openai.PermissionDeniedError):
        upload(client)
    with pytest.raises(openai.PermissionDeniedError):
        client.files.list()


def test_admins_read_who_changed_what(place: Place):
    member, admin = place.client("mine"), place.client("mine", "admin")
    id = upload(member).id
    member.files.delete(id)
    upload(place.client("other"))
    with pytest.raises(openai.PermissionDeniedError):
        member.get("/organization/audit_logs", cast_to=object)
    log = admin.get("/organization/audit_logs", cast_to=object)
    acts = [(act["type"], act["resource"]) for act in log["data"]]  # type: ignore[index]
    assert acts[:2] == [("file.delete", id), ("file.create", id)]
    assert [act[0] for act in acts[2:]] == ["key.create", "key.create"]
