"""Whatever is sent along the API's own schema, and beside it: never a 500, always in shape."""

import json
from collections import Counter

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings, strategies
from schemathesis import Case, GenerationMode


def fuzz(server, cases: int) -> Counter[int]:
    """Send so many cases to each operation with a body, half of them against its schema.

    The others get a tenth. Returns how often each status came.
    """
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    statuses: Counter[int] = Counter()
    with requests.Session() as session:
        for result in schema.get_all_operations():
            operation = result.ok()
            modes = [operation.as_strategy(mode) for mode in GenerationMode]

            @settings(
                max_examples=cases if operation.body else cases // 10,
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(strategies.one_of(modes), strategies.booleans())
            def send(case: Case, is_known: bool) -> None:
                if is_known and isinstance(case.body, dict) and "model" in case.body:
                    case.body["model"] = "org/tiny-base"
                reply = case.call(session=session)
                statuses[reply.status_code] += 1
                check(reply.status_code, reply.content, reply.headers)

            send()
    return statuses


def check(status: int, body: bytes, headers: object) -> None:
    assert status < 500, body
    assert "x-request-id" in headers
    if status >= 400:
        [(key, error)] = json.loads(body).items()
        assert (key, set(error)) == ("error", {"message", "type", "param", "code"})


def test_some_hundred_odd_requests_never_yield_a_500(server):
    statuses = fuzz(server, 70)
    assert statuses[200] > 5
    assert statuses[400] > 40


@pytest.mark.full
def test_some_thousand_odd_requests_never_yield_a_500(server):
    statuses = fuzz(server, 1500)
    assert sum(statuses.values()) > 3000
