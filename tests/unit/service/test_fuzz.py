"""Whatever is sent along the whole schema: never a 500, always in shape, nothing of others."""

import json
from collections import Counter
from collections.abc import Callable

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings, strategies
from place import ECHO_BASE, Place, submit
from schemathesis import APIOperation, Case, GenerationMode

from ftray.accounts.grant import ROLES, Grant
from ftray.accounts.keys import create_key


def fuzz(
    place: Place, key: str | None, begin: Callable[[], dict[str, str]], cases: int
) -> Counter[tuple[str, int]]:
    """Send so many cases to each operation, half of them about what `begin` has made for it.

    Returns how often each operation answered with each status.
    """
    schema = schemathesis.openapi.from_url(f"{place.url}/openapi.json")
    answers: Counter[tuple[str, int]] = Counter()
    with requests.Session() as session:
        session.headers.update({} if key is None else {"authorization": f"Bearer {key}"})
        for result in schema.get_all_operations():
            operation = result.ok()
            for status in send(operation, session, begin(), cases):
                answers[operation.label, status] += 1
    return answers


def send(
    operation: APIOperation, session: requests.Session, ids: dict[str, str], cases: int
) -> list[int]:
    found: list[int] = []

    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategies.one_of(*map(operation.as_strategy, GenerationMode)), strategies.booleans())
    def one(case: Case, is_known: bool) -> None:
        if is_known:
            fill_in(case, ids)
        reply = case.call(session=session)
        found.append(reply.status_code)
        check(reply.status_code, reply.content, reply.headers, ids)

    one()
    return found


def statuses(answers: Counter[tuple[str, int]]) -> Counter[int]:
    return sum((Counter({status: count}) for (_, status), count in answers.items()), Counter())


def fill_in(case: Case, ids: dict[str, str]) -> None:
    """Let a case be about what there is."""
    if "id" in (case.path_parameters or {}):
        of = next((name for name in ids if f"/{name}" in case.path), "models")
        case.path_parameters["id"] = ids[of]
    if "after" in (case.query or {}):
        case.query["after"] = ids["files" if "/files" in case.path else "jobs"]
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


def mine(place: Place) -> dict[str, str]:
    """A new job and its file, of a project that has a secret."""
    job = submit(place.client("mine"), metadata={"word": "secret-of-mine"})
    ids = {"files": job.training_file, "jobs": job.id, "models": ECHO_BASE}
    return {**ids, "secret": "secret-of-mine"}


def new_key(place: Place, project: str) -> str:
    _, secret = create_key(place.database, Grant(name="x", project=project, scopes=ROLES["admin"]))
    return secret


def test_hundreds_of_odd_requests_yield_no_500_and_nothing_of_others(file_place: Place):
    ids = mine(file_place)
    with_key = statuses(fuzz(file_place, new_key(file_place, "other"), lambda: ids, 8))
    assert with_key[200] > 5
    assert with_key[400] > 20
    assert with_key[404] > 10
    without = statuses(fuzz(file_place, None, lambda: ids, 3))
    assert set(without) <= {200, 400, 401, 404, 405}
    assert without[401] > 15


@pytest.mark.full
def test_thousands_of_odd_requests_yield_no_500_and_nothing_of_others(place: Place):
    ids = mine(place)
    with_key = fuzz(place, new_key(place, "other"), lambda: ids, 300)
    assert with_key.total() > 3000
    without = fuzz(place, None, lambda: ids, 100)
    assert without.total() > 1000
    assert set(statuses(without)) <= {200, 400, 401, 404, 405}


@pytest.mark.full
def test_thousands_of_odd_requests_of_the_owner_yield_no_500_and_reach_every_route(place: Place):
    answers = fuzz(place, new_key(place, "mine"), lambda: {**mine(place), "secret": "?!"}, 150)
    assert answers.total() > 2000
    in_vain = {route for route, _ in answers} - {
        route for route, status in answers if status == 200
    }
    assert in_vain == {
        "DELETE /v1/models/{id}",  # the base stays
        "POST /v1/fine_tuning/jobs/{id}/resume",  # nobody has paused it
    }
