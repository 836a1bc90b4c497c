"""Requests for many adapters at once are answered as plain PEFT answers each of them alone."""

import time
from concurrent.futures import ThreadPoolExecutor

NAMES = ("base", "ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay")


def test_mixed_staggered_requests_are_answered_token_for_token(served):
    cases = list(served.zoo.expected)
    cases = [case for case in cases if case[0] in NAMES] * 2

    def ask(number):
        time.sleep(0.03 * (number % 11))
        name, prompt = cases[number]
        return served.answer(name, prompt, stream=number % 2 == 0)

    with ThreadPoolExecutor(11) as threads:
        found = list(threads.map(ask, range(len(cases))))
    assert found == [served.zoo.expected[case] for case in cases]


def test_rotated_names_change_every_answer(served):
    """What the test above would have missed if adapters had been mixed up: nothing."""
    prompt = next(iter(served.zoo.expected))[1]
    rotated = [*NAMES[1:], NAMES[0]]
    with ThreadPoolExecutor(11) as threads:
        found = list(threads.map(lambda name: served.answer(name, prompt), rotated))
    for name, answer in zip(NAMES, found, strict=True):
        assert answer != served.zoo.expected[name, prompt]


def test_adapters_come_and_go_while_others_answer(served):
    """The budget does not hold all: each round evicts some while the last ones are in use."""
    prompt = next(iter(served.zoo.expected))[1]
    evicted, asked = served.metric("ftray_engine_evictions_total"), NAMES[1:]
    time.sleep(5)  # an adapter that was just loaded has a lease for so long
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda name: served.answer(name, prompt), asked))
    assert found == [served.zoo.expected[name, prompt] for name in asked]
    assert served.metric("ftray_engine_evictions_total") > evicted
    held = served.metric("ftray_engine_adapter_bytes")
    assert held <= served.metric("ftray_engine_adapter_budget")


def test_a_client_that_leaves_frees_its_row(served):
    cancelled = served.metric("ftray_engine_cancelled_total")
    beside = served.ask("ant", stream=True, logprobs=True)
    with served.ask("bee", stream=True, max_tokens=2000, logit_bias={"2": -100}) as stream:
        for _ in range(3):
            next(iter(stream))
    assert [c.choices[0].finish_reason for c in beside][-1] is not None
    end = time.monotonic() + 5
    while served.metric("ftray_engine_rows"):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert served.metric("ftray_engine_cancelled_total") == cancelled + 1
