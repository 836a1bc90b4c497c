"""The quickstart's examples are what its generator makes, and its held-out split is honest."""

import json
from pathlib import Path

import pytest

import ftray.presets.quickstart.generate as quickstart
from ftray.config.run import load_run
from ftray.presets.quickstart.wordings import HELDOUT, TRAIN

FOLDER = Path(quickstart.__file__).parent
SPLITS = ("train.jsonl", "heldout.jsonl")

# The longest example has 60 tokens with the template, counted with the built-in model's tokenizer;
# its tokens are 3.6 characters long on average. Bounds in characters need no tokenizer here.
LONGEST_MESSAGE = 105
LONGEST_TICKET = 62


def chats(split: str) -> list[list[dict[str, str]]]:
    lines = (FOLDER / split).read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["messages"] for line in lines]


def customer_messages(split: str) -> list[str]:
    return [user["content"] for _, user, _ in chats(split)]


@pytest.mark.parametrize("split", SPLITS)
def test_generator_writes_the_committed_files_byte_for_byte(split: str, tmp_path: Path) -> None:
    quickstart.write(tmp_path)
    assert (tmp_path / split).read_bytes() == (FOLDER / split).read_bytes()


def test_there_are_600_examples_and_no_customer_message_twice() -> None:
    messages = [message for split in SPLITS for message in customer_messages(split)]
    assert len(messages) == len(set(messages)) == 600


@pytest.mark.parametrize("split", SPLITS)
def test_tickets_are_compact_json_about_an_item_that_the_message_names(split: str) -> None:
    for system, user, assistant in chats(split):
        ticket = json.loads(assistant["content"])
        assert list(ticket) == ["type", "item", "urgent"]
        assert assistant["content"] == json.dumps(ticket, separators=(",", ":"))
        assert ticket["item"] in user["content"]
        assert [turn["role"] for turn in (system, user, assistant)] == [
            "system",
            "user",
            "assistant",
        ]


@pytest.mark.parametrize("split", SPLITS)
def test_every_ticket_type_is_equally_frequent(split: str) -> None:
    types = [json.loads(chat[-1]["content"])["type"] for chat in chats(split)]
    assert {types.count(name) for name in TRAIN.requests} == {len(types) // len(TRAIN.requests)}


def test_nothing_that_heldout_messages_say_is_said_in_training() -> None:
    assert HELDOUT.requests.keys() == TRAIN.requests.keys()
    assert not requests_of(HELDOUT.requests) & requests_of(TRAIN.requests)
    assert not {*HELDOUT.urgent, *HELDOUT.relaxed} & {*TRAIN.urgent, *TRAIN.relaxed}
    training = " ".join(customer_messages("train.jsonl")).lower()
    assert [item for item in HELDOUT.items if f" {item} " in training] == []


def requests_of(by_type: dict[str, tuple[str, ...]]) -> set[str]:
    return {request for requests in by_type.values() for request in requests}


@pytest.mark.parametrize("split", SPLITS)
def test_examples_are_short_enough_for_60_tokens(split: str) -> None:
    for _, user, assistant in chats(split):
        assert len(user["content"]) <= LONGEST_MESSAGE
        assert len(assistant["content"]) <= LONGEST_TICKET


def test_the_run_file_is_valid_and_finds_both_splits() -> None:
    run = load_run(FOLDER / "run.yaml")
    assert Path(str(run.data.train)).is_file()
    assert Path(str(run.data.eval)).is_file()
    assert run.scaling.num_workers == 2
