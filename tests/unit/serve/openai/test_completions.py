import openai
import pytest


def ids(text: str) -> list[int]:
    """The tiny tokenizer has one token a byte, of which letters keep their order."""
    return [CLIENT_IDS[letter] for letter in text]


CLIENT_IDS: dict[str, int] = {}


@pytest.fixture(autouse=True)
def _known_ids(server) -> None:
    tokenizer = server.engine._tokenizer
    CLIENT_IDS.update({c: tokenizer.convert_tokens_to_ids(c) for c in "abcdefgh"})


def asked(text: str) -> str:
    return f"<|im_start|>user\n{text}<|im_end|>"


def test_every_form_of_prompt_is_continued(server, client):
    create = client.completions.create
    text = create(model="org/tiny-base", prompt=asked("one"))
    assert (text.object, text.choices[0].text) == ("text_completion", "one")
    assert text.choices[0].finish_reason == "stop"
    several = create(model="org/tiny-base", prompt=[asked("one"), asked("two")], n=2)
    assert [(c.index, c.text) for c in several.choices] == [
        (0, "one"),
        (1, "one"),
        (2, "two"),
        (3, "two"),
    ]
    create(model="org/tiny-base", prompt=ids("abc"))
    assert server.engine.seen[-1].prompt == tuple(ids("abc"))
    create(model="org/tiny-base", prompt=[ids("abc"), ids("d")])
    assert {g.prompt for g in server.engine.seen[-2:]} == {tuple(ids("abc")), tuple(ids("d"))}


def test_sixteen_tokens_are_the_default(client):
    answer = client.completions.create(model="org/tiny-base", prompt=asked("x" * 40))
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("x" * 16, "length")


def test_streams_of_several_prompts_are_told_apart(client):
    texts: dict[int, str] = {}
    for chunk in client.completions.create(
        model="org/tiny-base",
        prompt=[asked("one"), asked("two")],
        stream=True,
        stream_options={"include_usage": True},
    ):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
    assert texts == {0: "one", 1: "two"}
    assert chunk.usage.completion_tokens == 6


def test_a_prompt_is_echoed_on_request(client):
    prompt = asked("one")
    for stream in (False, True):
        answer = client.completions.create(
            model="org/tiny-base", prompt=prompt, echo=True, stream=stream
        )
        parts = answer if stream else [answer]
        assert "".join(part.choices[0].text for part in parts) == f"{prompt}one"
    decoded = client.completions.create(model="org/tiny-base", prompt=ids("abc"), echo=True)
    assert decoded.choices[0].text == "abc" + "abc"


def test_logprobs_come_as_four_lists(client):
    answer = client.completions.create(model="org/tiny-base", prompt=asked("aéb"), logprobs=1)
    found = answer.choices[0].logprobs
    assert found.tokens == ["a", "�", "�", "b"]
    assert found.token_logprobs == [-0.5] * 4
    assert found.top_logprobs == [{"A": -1.0}] * 4
    assert found.text_offset == [0, 1, 1, 2]


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"suffix": "x"}, "suffix", "unsupported_parameter"),
        ({"best_of": 3}, "best_of", "unsupported_parameter"),
        ({"echo": True, "logprobs": 1}, "logprobs", "unsupported_parameter"),
        ({"prompt": []}, "prompt", "invalid_value"),
        ({"prompt": [[]]}, "prompt.0", "invalid_value"),
        ({"prompt": [1, "a"]}, "prompt.0", "invalid_value"),
        ({"prompt": [10**6]}, "prompt", "invalid_value"),
        ({"prompt": [-1]}, "prompt.0", "invalid_value"),
        ({"logprobs": 21}, "logprobs", "invalid_value"),
        ({"logprobs": True}, "logprobs", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ],
)
def test_what_is_not_supported_is_a_400_that_names_it(client, fields, param, code):
    body = {"prompt": "x", **fields}
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="org/tiny-base", prompt=body.pop("prompt"), extra_body=body)
    assert (caught.value.param, caught.value.code) == (param, code)


def test_a_best_of_that_is_all_of_them_is_satisfied(client):
    answer = client.completions.create(model="org/tiny-base", prompt=asked("x"), n=2, best_of=2)
    assert len(answer.choices) == 2
