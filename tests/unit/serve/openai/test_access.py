"""Keys, scopes and limits, as far as the HTTP side has a part in them."""

from dataclasses import dataclass, field

import openai
import pytest

from ftray.serve.openai.access import Admitted, Visitor

PATH = "/v1/chat/completions"
CHAT = {"model": "tickets@2", "messages": [{"role": "user", "content": "abc"}]}
ANSWER = len("[01234567] abc")


@dataclass(frozen=True)
class Limit:
    limit: int
    remaining: int
    reset: float


@dataclass
class Book:
    """Three keys, and limits that can be set; what was used is kept."""

    verdict: Admitted = field(default_factory=Admitted)
    admitted: list[tuple[str, int]] = field(default_factory=list)
    entered: list[tuple[str, str, int, int]] = field(default_factory=list)

    async def authenticate(self, secret: str | None) -> Visitor | None:
        known = {
            "ft-serve": Visitor("k1", "shop", frozenset({"serve"})),
            "ft-train": Visitor("k2", "shop", frozenset({"train"}), frozenset({"caller"})),
            "ft-admin": Visitor("k3", "shop", frozenset({"admin"})),
            "ft-base": Visitor("k4", "shop", frozenset({"serve"}), frozenset({"base"})),
        }
        return known.get(secret or "")

    def admit(self, key: str, tokens: int) -> Admitted:
        self.admitted.append((key, tokens))
        return self.verdict

    def used(self, key: str, model: str, reserved: int, prompt: int, answer: int) -> None:
        assert (key, reserved) in self.admitted
        self.entered.append((key, model, prompt, answer))


@pytest.fixture(scope="module")
def guarded(serve, root):
    return serve(root, access=Book())


@pytest.fixture
def book(guarded) -> Book:
    guarded.service.access = Book()
    return guarded.service.access


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer  "},
        {"Authorization": "Bearer ft-wrong"},
        {"Authorization": "Bearer schlüssel"},
        {"Authorization": "Basic ft-serve"},
        {"Authorization": "ft-serve"},
        {"Authorization": "Bearer " + "x" * 10_000},
    ],
)
@pytest.mark.parametrize("path", [PATH, "/v1/models", "/metrics"])
def test_without_a_right_key_everything_is_a_401(guarded, book, send, headers, path):
    reply = send(guarded, "POST" if path == PATH else "GET", path, b"not even JSON", **headers)
    assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
    assert reply.headers["www-authenticate"] == "Bearer"


def test_probes_need_no_key(guarded, book, send):
    assert send(guarded, "GET", "/healthz").status == 200
    ready = send(guarded, "GET", "/readyz").json
    assert (ready["status"], ready["engine"]["notes"]) == ("ready", ["it echoes"])


def test_a_scope_that_is_missing_is_a_403(guarded, book, send):
    for key, method, path in (("ft-train", "POST", PATH), ("ft-serve", "DELETE", "/v1/models/x")):
        reply = send(guarded, method, path, CHAT, **bearer(key))
        assert (reply.status, reply.error["code"]) == (403, "insufficient_permissions")
        assert reply.error["type"] == "permission_error"
    assert send(guarded, "POST", PATH, CHAT, **bearer("ft-admin")).status == 200


def test_what_a_key_may_not_see_is_not_there(guarded, book, send):
    listed = send(guarded, "GET", "/v1/models", **bearer("ft-train")).json
    assert [model["id"] for model in listed["data"]] == ["caller"]
    for key, method, path, body in (
        ("ft-train", "GET", "/v1/models/tickets", b""),
        ("ft-train", "DELETE", "/v1/models/tickets@1", b""),
        ("ft-base", "POST", PATH, CHAT),
    ):
        reply = send(guarded, method, path, body, **bearer(key))
        assert (reply.status, reply.error["code"]) == (404, "model_not_found")
    base = {**CHAT, "model": "org/tiny-base"}
    assert send(guarded, "POST", PATH, base, **bearer("ft-base")).status == 200


def test_what_was_reserved_is_settled_by_what_was_used(guarded, book, send, wait_for):
    reply = send(guarded, "POST", PATH, {**CHAT, "max_tokens": 50, "n": 2}, **bearer("ft-serve"))
    prompt = reply.json["usage"]["prompt_tokens"]
    assert book.admitted == [("k1", prompt + 2 * 50)]
    assert wait_for(lambda: book.entered == [("k1", "tickets@2", prompt, 2 * ANSWER)])
    assert guarded.engine.seen[-1].owner == "k1"
    send(guarded, "POST", PATH, {**CHAT, "stream": True}, **bearer("ft-serve"))
    assert book.admitted[1] == ("k1", prompt + 512)
    assert wait_for(lambda: book.entered[1:] == [("k1", "tickets@2", prompt, ANSWER)])


def test_what_has_failed_is_settled_too_and_exactly_once(guarded, book, send, wait_for):
    crash = {**CHAT, "messages": [{"role": "user", "content": "!crash"}]}
    for changes in ({"stream": True}, {}):
        send(guarded, "POST", PATH, {**crash, **changes}, **bearer("ft-serve"))
    bad = {**CHAT, "response_format": {"type": "json_object"}}
    assert send(guarded, "POST", PATH, bad, **bearer("ft-serve")).status == 400
    assert wait_for(lambda: [entry[3] for entry in book.entered] == [3, 3, 0])
    assert [bool(entry[2]) for entry in book.entered] == [True, True, False]
    assert send(guarded, "POST", PATH, {**CHAT, "n": 99}, **bearer("ft-serve")).status == 400
    assert len(book.entered) == len(book.admitted) == 3


def test_a_limit_is_a_429_that_says_how_long_and_how_much(guarded, book, send):
    book.verdict = Admitted("60 requests a minute", 12.3, Limit(60, 0, 12.3), Limit(1000, 7, 1.5))
    reply = send(guarded, "POST", PATH, CHAT, **bearer("ft-serve"))
    assert (reply.status, reply.error["code"]) == (429, "rate_limit_exceeded")
    assert reply.error["message"] == "60 requests a minute"
    assert reply.headers["retry-after"] == "13"
    assert reply.headers["x-ratelimit-limit-requests"] == "60"
    assert reply.headers["x-ratelimit-remaining-tokens"] == "7"
    assert book.entered == []
    book.verdict = Admitted("more than the limit of 10 tokens", None)
    reply = send(guarded, "POST", PATH, CHAT, **bearer("ft-serve"))
    assert (reply.status, reply.headers["x-should-retry"]) == (429, "false")
    assert "retry-after" not in reply.headers


def test_an_admitted_request_is_told_what_is_left(guarded, book, send):
    book.verdict = Admitted("", None, Limit(60, 59, 1.0), None)
    reply = send(guarded, "POST", PATH, CHAT, **bearer("ft-serve"))
    assert reply.headers["x-ratelimit-remaining-requests"] == "59"
    assert "x-ratelimit-limit-tokens" not in reply.headers


def test_the_client_is_told_in_its_own_errors(guarded, book):
    stranger = guarded.client.with_options(api_key="ft-no")
    with pytest.raises(openai.AuthenticationError) as caught:
        stranger.models.list()
    assert caught.value.code == "invalid_api_key"
