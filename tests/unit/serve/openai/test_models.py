"""Ids, aliases, splits and shadows, and how they change under a running server."""

import math
import time

import openai
import pytest

from ftray import registry, storage
from ftray.registry import Target

PATH = "/v1/chat/completions"


def version_for(server, send, model: str, **changes: object) -> str:
    messages = [{"role": "user", "content": "x"}]
    return send(server, "POST", PATH, {"model": model, "messages": messages, **changes}).headers[
        "x-ftray-version"
    ]


def test_models_are_listed_once_with_what_they_are(client):
    found = {model.id: model for model in client.models.list()}
    assert found["org/tiny-base"].owned_by == "ftray"
    assert found["tickets"].version == "tickets@3"
    assert found["tickets@champion"].version == "tickets@2"
    assert found["tickets"].base == "org/tiny-base"
    assert found["tickets"].created > 0
    assert len(found) == len(list(client.models.list()))


def test_every_form_of_id_can_be_retrieved(server, client):
    record = registry.resolve(server.root, "tickets@1")
    tuned = f"ft:org/tiny-base::tickets:{record.digest[:8]}"
    for id, version in (
        ("tickets", "tickets@3"),
        ("tickets@1", "tickets@1"),
        ("tickets@champion", "tickets@2"),
        (tuned, "tickets@1"),
    ):
        model = client.models.retrieve(id)
        assert (model.id, model.version) == (id, version)
    assert client.models.retrieve("org/tiny-base").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no/such:model")


def test_a_published_adapter_is_served_within_two_seconds(server, send, client, published):
    messages = [{"role": "user", "content": "x"}]
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="fresh", messages=messages)
    record = published("fresh")
    end = time.monotonic() + 2
    while time.monotonic() < end:
        try:
            answer = client.chat.completions.create(model="fresh", messages=messages)
            break
        except openai.NotFoundError:
            time.sleep(0.05)
    assert answer.choices[0].message.content == f"[{record.digest[:8]}] x"


def test_a_flipped_alias_is_followed_within_a_second_and_streams_keep_theirs(
    serve, root, send, published
):
    server = serve(root, step_seconds=0.02)
    first, second = published("flip"), published("flip")
    registry.promote(root, first.ref, "live")
    messages = [{"role": "user", "content": "x" * 60}]
    stream = server.client.chat.completions.create(
        model="flip@live", messages=messages, stream=True
    )
    next(iter(stream))
    registry.promote(root, second.ref, "live")
    time.sleep(1.0)
    assert version_for(server, send, "flip@live", max_tokens=1) == second.ref
    said = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert said.endswith("x" * 60)


def test_an_alias_in_use_is_never_shown_older_than_a_second(server, send, published):
    records = [published("busy") for _ in range(2)]
    registry.promote(server.root, records[0].ref, "live")
    seen: list[tuple[float, str]] = []
    flipped = math.inf
    while time.monotonic() < flipped + 1.3:
        asked = time.monotonic()
        seen.append((asked, version_for(server, send, "busy@live")))
        if flipped == math.inf and asked > seen[0][0] + 0.7:
            registry.promote(server.root, records[1].ref, "live")
            flipped = time.monotonic()
        time.sleep(0.02)
    assert {version for asked, version in seen if asked < flipped} == {records[0].ref}
    assert {version for asked, version in seen if asked > flipped + 1} == {records[1].ref}


def test_a_split_alias_keeps_each_user_with_one_version(server, send, published):
    old, new = published("canary"), published("canary")
    registry.promote(server.root, old.ref, "live")
    registry.split(server.root, "canary@live", (Target(1, 80), Target(2, 20)))
    users = [f"user-{number}" for number in range(60)]
    first = {user: version_for(server, send, "canary@live", user=user) for user in users}
    again = {user: version_for(server, send, "canary@live", user=user) for user in users}
    assert first == again
    assert set(first.values()) == {old.ref, new.ref}
    registry.split(server.root, "canary@live", (Target(1, 50), Target(2, 50)))
    time.sleep(1.0)
    grown = {user: version_for(server, send, "canary@live", user=user) for user in users}
    assert all(grown[user] == new.ref for user in users if first[user] == new.ref)
    assert list(grown.values()).count(new.ref) > list(first.values()).count(new.ref)


def test_a_shadow_gets_a_copy_that_nobody_sees(server, send, published, wait_for):
    published("twin"), published("twin")
    registry.split(server.root, "twin@live", (Target(1),), shadow=2)
    seen = len(server.engine.seen)
    assert version_for(server, send, "twin@live", n=2) == "twin@1"
    line = 'ftray_shadow_requests_total{outcome="answered",version="twin@2"} 1.0'
    assert wait_for(lambda: line in server.metrics)
    user, shadow = server.engine.seen[seen:]
    assert (user.n, shadow.n, shadow.owner) == (2, 1, "shadow")
    assert shadow.adapter == registry.resolve(server.root, "twin@2").digest


def test_a_shadow_that_fails_leaves_the_answer_alone(server, send, published, wait_for):
    published("pale"), published("pale", files={"weights.bin": b"x"})
    registry.split(server.root, "pale@live", (Target(1),), shadow=2)
    assert version_for(server, send, "pale@live") == "pale@1"
    line = 'ftray_shadow_requests_total{outcome="failed",version="pale@2"} 1.0'
    assert wait_for(lambda: line in server.metrics)


def test_one_version_can_be_deleted_by_its_id(server, client, published):
    published("gone"), published("gone")
    registry.promote(server.root, "gone@1", "live")
    for id in ("gone", "gone@live", "gone@1", "org/tiny-base"):
        with pytest.raises(openai.BadRequestError):
            client.models.delete(id)
    deleted = client.models.delete("gone@2")
    assert (deleted.id, deleted.object, deleted.deleted) == ("gone@2", "model", True)
    with pytest.raises(openai.NotFoundError):
        client.models.delete("gone@2")
    assert [record.version for record in registry.versions(server.root, "gone")] == [1]


def test_a_storage_that_cannot_be_read_is_a_503(serve, send, tmp_path):
    newer = storage.join(str(tmp_path), "adapters", "newer", "1", "record.json")
    storage.write(newer, b'{"schema": 99}')
    server = serve(str(tmp_path))
    chat = {"model": "newer", "messages": [{"role": "user", "content": "x"}]}
    for method, path, body in (
        ("GET", "/v1/models", b""),
        ("GET", "/v1/models/newer", b""),
        ("POST", PATH, chat),
    ):
        reply = send(server, method, path, body)
        assert (reply.status, reply.error["code"]) == (503, "unavailable")
        assert reply.headers["retry-after"] == "5"
        assert str(tmp_path) not in reply.body.decode()


def test_an_adapter_trained_over_4_bits_is_told_to_be_served_over_more(
    server, send, published, caplog
):
    for method in ("qlora", "lora"):
        published(f"by-{method}", method=method)
        with caplog.at_level("WARNING", "ftray.serve.openai.models"):
            assert version_for(server, send, f"by-{method}") == f"by-{method}@1"
    [warning] = [r.getMessage() for r in caplog.records if "4 bits" in r.getMessage()]
    assert "by-qlora@1" in warning
    assert "engine.base_precision=nf4" in warning
