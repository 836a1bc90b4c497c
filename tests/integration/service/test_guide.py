"""The fine-tuning guide, followed with OpenAI's own client, while processes are killed or not."""

import json
import time
from collections import Counter
from contextlib import closing
from io import BytesIO
from pathlib import Path

import openai
import pytest
import sqlalchemy as sa
from head import started_head

from ftray.accounts.database import open_database
from ftray.accounts.grant import ROLES, Grant
from ftray.accounts.keys import create_key
from ftray.service.tables import JobRow

COLOURS = ("red", "green", "blue", "black")
ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"What is the code of {colour}?"},
            {"role": "assistant", "content": f"{colour.upper()}-{len(colour)}"},
        ]
    }
    for colour in COLOURS
    for _ in range(4)
]


def create(client: openai.OpenAI, base: str, epochs: int = 3, **more):
    """Upload, and create a job."""
    data = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    file = client.files.create(file=("train.jsonl", BytesIO(data)), purpose="fine-tune")
    client.files.wait_for_processing(file.id, poll_interval=0.2)
    return client.fine_tuning.jobs.create(
        model=base,
        training_file=file.id,
        validation_file=file.id,
        suffix="codes",
        seed=1,
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": epochs, "batch_size": 8}},
        },
        extra_body={"ftray": {"rank": 4, "max_length": 64, **more}},
    )


def follow(client: openai.OpenAI, base: str, epochs: int = 3):
    """Create a job, and follow its events to the end; yield it as it is now and then."""
    job = create(client, base, epochs)
    yield job
    seen = set()
    while job.status not in ENDED:
        time.sleep(0.5)
        job = client.fine_tuning.jobs.retrieve(job.id)
        seen |= {event.id for event in client.fine_tuning.jobs.list_events(job.id, limit=5)}
        yield job
    assert job.status == "succeeded", (job.error, seen)


ENDED = ("succeeded", "failed", "cancelled")
DATABASES = ["sqlite", pytest.param("postgresql", marks=pytest.mark.full)]


@pytest.mark.parametrize("url", DATABASES, indirect=True)
def test_the_guide_leads_to_a_model_that_answers(hosted, small_model: Path):
    client = hosted.client()
    *_, job = follow(client, str(small_model))
    hello = [{"role": "user", "content": "What is the code of red?"}]
    answer = client.chat.completions.create(
        model=job.fine_tuned_model, messages=hello, max_tokens=4
    )
    assert answer.choices[0].message.content
    events = list(client.fine_tuning.jobs.list_events(job.id))
    losses = [
        event.data["train_loss"]
        for event in events[::-1]
        if event.data and "train_loss" in event.data
    ]
    assert len(losses) == 6
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id))
    assert [one.step_number for one in checkpoints] == [6, 4, 2]
    for one in checkpoints:
        found = client.chat.completions.create(
            model=one.fine_tuned_model_checkpoint, messages=hello, max_tokens=2
        )
        assert found.choices[0].message.content is not None
    table = client.files.content(job.result_files[0]).text.splitlines()
    assert len(table) == 7
    assert job.fine_tuned_model in {model.id for model in client.models.list()}
    assert client.models.delete(job.fine_tuned_model).deleted
    assert job.fine_tuned_model not in {model.id for model in client.models.list()}


@pytest.mark.full
@pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)
def test_api_controller_and_driver_are_killed_and_it_ends_well(hosted, small_model: Path):
    client = hosted.client(retries=8)
    victims = ["ServeReplica:ftray:Api", "ServeReplica:ftray:Controller", "ftray.service.driver"]
    killed = []
    with started_head(1, hosted.ray):  # a second cluster of this machine is none of ours
        for job in follow(client, str(small_model), epochs=30):
            has_steps = any(e.data for e in client.fine_tuning.jobs.list_events(job.id, limit=3))
            if victims and job.status == "running" and has_steps:
                killed.append(victims.pop(0))
                hosted.kill(killed[-1])
    assert not victims, killed
    hello = [{"role": "user", "content": "What is the code of red?"}]
    answer = client.chat.completions.create(
        model=job.fine_tuned_model, messages=hello, max_tokens=4
    )
    assert answer.choices[0].message.content is not None
    events = list(client.fine_tuning.jobs.list_events(job.id))
    steps = [e.data["step"] for e in events[::-1] if e.data and "train_loss" in e.data]
    assert steps == list(range(1, 61))
    numbers = [int(event.id.rpartition("-")[2]) for event in events]
    assert numbers == list(range(len(events), 0, -1))


@pytest.mark.full
@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_twenty_jobs_of_five_projects_wait_for_room_and_each_starts_once(
    hosted, url: str, small_model: Path
):
    projects = ("ant", "bee", "cat", "dog", "elk")
    with closing(open_database(url)) as database:
        grants = [Grant(name=one, project=one, scopes=ROLES["member"]) for one in projects]
        clients = [hosted.client(create_key(database, grant)[1]) for grant in grants]
        wait_until_keys_are_needed(hosted.client())
        made = [
            create(client, str(small_model), epochs=1, max_steps=1)
            for client in clients
            for _ in range(4)
        ]
        end = time.monotonic() + 2400
        while any(job.status not in ENDED for client in clients for job in jobs_of(client)):
            assert time.monotonic() < end, [job.status for c in clients for job in jobs_of(c)]
            time.sleep(5)
        for client in clients:
            jobs = jobs_of(client)
            assert [(job.status, job.error) for job in jobs] == [("succeeded", None)] * 4
            assert all(job.trained_tokens for job in jobs)
        with database.reading() as session:
            rows = session.scalars(sa.select(JobRow).order_by(JobRow.started)).all()
    assert {row.id for row in rows} == {job.id for job in made}
    assert [(row.attempt, row.failures) for row in rows] == [(1, 0)] * 20
    turns = [Counter(row.project for row in rows[:n]) for n in range(1, 21)]
    assert max(max(one.values()) - min(one[p] for p in projects) for one in turns) <= 2


def jobs_of(client: openai.OpenAI):
    return list(client.fine_tuning.jobs.list(limit=20))


def wait_until_keys_are_needed(stranger: openai.OpenAI):
    """A server hears of the first key within a second or so."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            stranger.models.list()
        except openai.AuthenticationError:
            return
        time.sleep(0.2)
    pytest.fail("a stranger is still let in")
