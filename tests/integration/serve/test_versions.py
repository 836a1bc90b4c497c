"""New versions and aliases take effect while the server runs, and not for what is running."""

import time
from collections import Counter

import openai

from ftray import registry
from ftray.registry import Target


def version_of(served, model, **options):
    raw = served.client.chat.completions.with_raw_response.create(
        model=model,
        messages=[{"role": "user", "content": "Hi"}],
        max_tokens=1,
        **options,
    )
    return raw.headers["x-ftray-version"]


def within(seconds, is_so):
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_published_adapter_is_callable_within_two_seconds(served):
    streams = [served.ask(name, stream=True, logprobs=True) for name in ("ant", "bee")]
    served.zoo.publish("later")
    published = time.monotonic()
    while True:
        try:
            found = served.answer("later")
            break
        except openai.NotFoundError:
            time.sleep(0.05)
    seconds = time.monotonic() - published
    prompt = next(iter(served.zoo.expected))[1]
    assert found == served.zoo.expected["later", prompt]
    for name, stream in zip(("ant", "bee"), streams, strict=True):
        tokens = [t for c in stream for o in c.choices if o.logprobs for t in o.logprobs.content]
        spoken = [bytes(t.bytes) for t in tokens if not t.token.startswith("<|")]
        assert spoken == served.zoo.expected[name, prompt]
    assert seconds < 2


def test_a_stream_keeps_its_version_when_the_alias_moves(served):
    prompt = next(iter(served.zoo.expected))[1]
    old = served.zoo.publish("moving", "later")
    new = served.zoo.publish("moving", "newer")
    registry.promote(served.zoo.root, old, "live")
    raw = served.client.chat.completions.with_streaming_response.create(
        model="moving@live",
        messages=[{"role": "user", "content": prompt}],
        temperature=0,
        logprobs=True,
        max_tokens=300,
        logit_bias={"2": -100},
        stream=True,
    )
    with raw as response:
        assert response.headers["x-ftray-version"] == old
        chunks = iter(response.parse())
        first = [next(chunks) for _ in range(3)]
        registry.promote(served.zoo.root, new, "live")
        within(2, lambda: version_of(served, "moving@live") == new)
        tokens = [
            t
            for c in [*first, *chunks]
            for o in c.choices
            if o.logprobs
            for t in o.logprobs.content
        ]
    expected = served.zoo.expected["later", prompt]
    assert [bytes(token.bytes) for token in tokens][: len(expected)] == expected
    assert len(tokens) == 300
    assert served.answer("moving@live", prompt) == served.zoo.expected["newer", prompt]
    registry.rollback(served.zoo.root, "moving@live")
    within(2, lambda: version_of(served, "moving@live") == old)


def test_a_split_alias_answers_each_user_with_one_version(served):
    refs = [served.zoo.publish("split", folder) for folder in ("ant", "bee")]
    registry.split(served.zoo.root, "split@live", (Target(1, 50), Target(2, 50)))
    users = [f"user-{number}" for number in range(12)]
    first = [version_of(served, "split@live", user=user) for user in users]
    assert set(Counter(first)) == set(refs)
    assert [version_of(served, "split@live", user=user) for user in users] == first
