"""Whatever is sent along the whole schema: never a 500, always in shape, nothing of others."""

import json
from collections import Counter

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings, strategies
from place import ECHO_BASE, Place, submit
from schemathesis import Case, GenerationMode

from ftray.accounts.grant import ROLES, Grant
from ftray.accounts.keys import create_key


def fuzz(place: Place, key: str | None, ids: dict[str, str], cases: int) -> Counter[int]:
    """Send so many cases to each operation, with ids that are those of other people."""
    schema = schemathesis.openapi.from_url(f"{place.url}/openapi.json")
    statuses: Counter[int] = Counter()
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    with requests.Session() as session:
        for result in schema.get_all_operations():
            operation = result.ok()
            modes = [operation.as_strategy(mode) for mode in GenerationMode]

            @settings(
                max_examples=cases,
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(strategies.one_of(modes), strategies.booleans())
            def send(case: Case, is_known: bool) -> None:
                if is_known:
                    fill_in(case, ids)
                reply = case.call(session=session, headers=headers)
                statuses[reply.status_code] += 1
                check(reply.status_code, reply.content, reply.headers, ids)

            send()
    return statuses


def fill_in(case: Case, ids: dict[str, str]) -> None:
    """Let a case be about what there is."""
    if "id" in (case.path_parameters or {}):
        of = next((name for name in ids if f"/{name}" in case.path), "models")
        case.path_parameters["id"] = ids[of]
    if isinstance(case.body, dict) and "model" in case.body:
        case.body["model"] = ECHO_BASE
    if isinstance(case.body, dict) and "training_file" in case.body:
        case.body["training_file"] = ids["files"]


def check(status: int, body: bytes, headers: object, ids: dict[str, str]) -> None:
    assert status < 500, body
    assert "x-request-id" in headers  # type: ignore[operator]
    if status >= 400:
        [(key, error)] = json.loads(body).items()
        assert (key, set(error)) == ("error", {"message", "type", "param", "code"})
    else:
        assert ids["secret"].encode() not in body


def begin(place: Place) -> tuple[str, dict[str, str]]:
    """A project with a job and a file; return another project's key, and what is not its own."""
    job = submit(place.client("mine"), metadata={"word": "secret-of-mine"})
    _, other = create_key(place.database, Grant(name="x", project="other", scopes=ROLES["admin"]))
    ids = {"files": job.training_file, "jobs": job.id, "models": ECHO_BASE}
    return other, {**ids, "secret": "secret-of-mine"}


def test_hundreds_of_odd_requests_yield_no_500_and_nothing_of_others(file_place: Place):
    other, ids = begin(file_place)
    with_key = fuzz(file_place, other, ids, 8)
    assert with_key[200] > 5
    assert with_key[400] > 20
    assert with_key[404] > 10
    without = fuzz(file_place, None, ids, 3)
    assert set(without) <= {200, 400, 401, 404, 405}
    assert without[401] > 15


@pytest.mark.full
def test_thousands_of_odd_requests_yield_no_500_and_nothing_of_others(place: Place):
    other, ids = begin(place)
    assert sum(fuzz(place, other, ids, 300).values()) > 3000
    assert sum(fuzz(place, None, ids, 100).values()) > 1000
