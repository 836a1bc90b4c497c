"""Jobs from creation to a model that answers, and everything that may become of them."""

import re
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import openai
import pytest
from place import ECHO_BASE, LINES, Place, ended, submit, upload, wait_for

from ftray.accounts.audit import list_acts
from ftray.accounts.database import Database
from ftray.accounts.grant import Quota
from ftray.accounts.projects import set_project
from ftray.service.controller import Controller
from ftray.service.launcher import Seen
from ftray.service.leases import Lease, LostLeaseError
from ftray.service.order import read_order
from ftray.service.retention import Retention


def test_a_job_ends_with_a_model_that_answers_at_that_very_moment(place: Place):
    client = place.client("shop")
    job = submit(client, suffix="bot", metadata={"team": "a"})
    assert (job.status, job.object, job.fine_tuned_model) == ("queued", "fine_tuning.job", None)
    with place.controlled():
        done = ended(client, job.id)
        answer = client.chat.completions.create(
            model=done.fine_tuned_model, messages=[{"role": "user", "content": "hello"}]
        )
    assert done.status == "succeeded"
    assert re.fullmatch(rf"ft:{ECHO_BASE}:shop:bot:[g-z][a-z0-9]{{7}}", done.fine_tuned_model)
    assert answer.choices[0].message.content.endswith("] hello")
    assert (done.trained_tokens, done.metadata, done.error) == (30, {"team": "a"}, None)
    assert client.files.content(done.result_files[0]).text.splitlines()[1] == "1,1.0,2.0"
    assert len(place.began) == 1


def test_events_have_numbers_that_only_grow_and_pages_that_end(file_place: Place):
    client = file_place.client()
    job = submit(client)
    with file_place.controlled():
        ended(client, job.id)
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=2))
    numbers = [int(event.id.rpartition("-")[2]) for event in events]
    assert numbers == list(range(len(events), 0, -1))
    assert events[-1].message == f"Created fine-tuning job: {job.id}"
    assert events[0].message == "The job has successfully completed"
    metrics = [event.data for event in events[::-1] if event.type == "metrics"]
    told = [(one["step"], one.get("train_loss") or one["valid_loss"]) for one in metrics]
    assert told[:4] == [(1, 1.0), (1, 2.0), (2, 0.5), (2, 1.0)]
    for after in ("ftevent-x-1", events[0].id + "0", "ftevent--"):
        with pytest.raises(openai.BadRequestError):
            client.fine_tuning.jobs.list_events(job.id, after=after)


def test_checkpoints_can_be_called_and_the_model_be_deleted(file_place: Place):
    client = file_place.client()
    job = submit(client)
    with file_place.controlled():
        model = ended(client, job.id).fine_tuned_model
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id, limit=1))
    assert [one.step_number for one in checkpoints] == [3, 2]
    assert checkpoints[1].fine_tuned_model_checkpoint == f"{model}:ckpt-step-2"
    assert (checkpoints[1].metrics.train_loss, checkpoints[1].metrics.valid_loss) == (0.5, 1.0)
    hello = [{"role": "user", "content": "hi"}]
    answers = {
        client.chat.completions.create(model=id, messages=hello).choices[0].message.content
        for id in (model, f"{model}:ckpt-step-2", f"{model}:ckpt-step-3")
    }
    assert len(answers) == 2  # of step 3 there is one version
    assert model in {found.id for found in client.models.list()}
    client.models.delete(model)
    assert list_acts(file_place.database)[0].action == "model.delete"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model=model, messages=hello)


def test_what_another_project_has_trained_is_not_there(place: Place):
    mine, other = place.client("mine"), place.client("other", "admin")
    job = submit(mine)
    with place.controlled():
        model = ended(mine, job.id).fine_tuned_model
    assert list(other.fine_tuning.jobs.list()) == []
    assert {found.id for found in other.models.list()} == {ECHO_BASE}
    jobs = other.fine_tuning.jobs
    acts = (jobs.retrieve, jobs.cancel, jobs.pause, jobs.resume, jobs.list_events)
    for act in (*acts, jobs.checkpoints.list):
        with pytest.raises(openai.NotFoundError):
            act(job.id)
    with pytest.raises(openai.NotFoundError):
        submit(other, training_file=job.training_file)
    name = f"ft-{model[-8:]}"
    for id in (model, name, f"{name}@1", f"{model}:ckpt-step-2"):
        for act in (other.models.retrieve, other.models.delete, lambda id: submit_on(other, id)):
            with pytest.raises(openai.NotFoundError):
                act(id)
        with pytest.raises(openai.NotFoundError):
            other.chat.completions.create(model=id, messages=[{"role": "user", "content": "x"}])


def submit_on(client, model):
    file = upload(client).id
    return client.fine_tuning.jobs.create(model=model, training_file=file, seed=0)


def test_a_model_is_trained_further(file_place: Place):
    client = file_place.client()
    first = submit(client)
    with file_place.controlled():
        model = ended(client, first.id).fine_tuned_model
        second = submit_on(client, model)
        assert second.model == model
        assert ended(client, second.id).status == "succeeded"


def test_hyperparameters_are_resolved_and_shown(file_place: Place):
    client = file_place.client()
    auto = submit(client)
    numbers = {"n_epochs": 3, "batch_size": 12, "learning_rate_multiplier": 1.0}
    assert auto.hyperparameters.model_dump() == numbers
    given = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 0.5}
    method = {"type": "supervised", "supervised": {"hyperparameters": given}}
    options = {"rank": 8, "alpha": 16, "targets": ["q_proj"], "quantization": "nf4", "workers": 2}
    job = submit(client, method=method, extra_body={"ftray": options})
    assert job.method.supervised.hyperparameters.model_dump() == given
    assert {key: job.ftray[key] for key in options} == options


REFUSED = [
    ({"model": "gpt-4o-mini"}, 404, "does not exist"),
    ({"training_file": "file-nobody"}, 404, "no file"),
    ({"method": {"type": "dpo"}}, 400, "'dpo' is not supported"),
    ({"method": {"type": "reinforcement"}}, 400, "'reinforcement' is not supported"),
    ({"suffix": "a:b"}, 400, "suffix"),
    ({"metadata": {str(i): "x" for i in range(17)}}, 400, "metadata"),
    ({"metadata": {"a": "\0"}}, 400, "NUL"),
    ({"extra_body": {"ftray": {"rank": 0}}}, 400, "ftray.rank"),
    ({"extra_body": {"ftray": {"rnk": 8}}}, 400, "ftray.rnk"),
    ({"extra_body": {"ftray": {"search": {"name": "../x"}}}}, 400, "search.name"),
    (
        {"extra_body": {"ftray": {"search": {"space": {"data.train": {"choice": ["/"]}}}}}},
        400,
        "space.data.train cannot be set",
    ),
    (
        {"extra_body": {"ftray": {"workers": 2}}, "hyperparameters": {"batch_size": 3}},
        400,
        "not a multiple of scaling.num_workers=2",
    ),
    ({"hyperparameters": {}, "method": {"type": "supervised"}}, 400, "not both"),
]


def test_a_request_that_makes_no_job_is_told_why(file_place: Place):
    client = file_place.client()
    file = upload(client).id
    for change, status, said in REFUSED:
        request = {"model": ECHO_BASE, "training_file": file, **change}
        with pytest.raises(openai.APIStatusError, match=said) as refused:
            client.fine_tuning.jobs.create(**request)
        assert refused.value.status_code == status
        assert refused.value.body["code"]
        assert file_place.root not in str(refused.value.body)
    assert list(client.fine_tuning.jobs.list()) == []


def test_a_search_is_checked_and_kept(file_place: Place):
    client = file_place.client()
    space = {
        "train.learning_rate": {"loguniform": [1e-5, 1e-3]},
        "adapter.rank": {"choice": [4, 8]},
    }
    search = {"space": space, "num_samples": 4}
    job = submit(client, extra_body={"ftray": {"search": search}})
    assert job.ftray["search"] == search
    with file_place.controlled():
        wait_for(lambda: file_place.began)
    order = read_order(file_place.root, job.id)
    assert order.search is not None
    assert (order.search.metric, order.search.publish.name) == ("loss", order.run.name)


def test_bad_data_fails_the_job_with_the_line(file_place: Place):
    client = file_place.client()
    with file_place.controlled():
        job = ended(client, submit(client, seed=3).id)
    assert (job.status, job.error.code, job.error.param) == (
        "failed",
        "invalid_training_file",
        "training_file",
    )
    assert job.error.message == "Line 2: no 'messages' (found: nonsense)"
    [last, *_] = client.fine_tuning.jobs.list_events(job.id)
    assert last.level == "error"
    assert len(file_place.began) == 1


def test_what_fails_for_good_is_not_tried_again_and_tells_no_path(file_place: Place):
    client = file_place.client()
    with file_place.controlled():
        job = ended(client, submit(client, seed=5).id)
    assert (job.status, job.error.code) == ("failed", "training_failed")
    assert job.error.message == "secret is in the way"
    assert len(file_place.began) == 1


def test_a_driver_that_is_killed_and_a_cluster_that_is_away_are_survived(file_place: Place):
    client = file_place.client()
    job = submit(client, seed=1003)
    with file_place.controlled():
        assert ended(client, job.id).status == "succeeded"
    assert [submission for submission, *_ in file_place.began] == [
        f"{job.id}-{n}" for n in (1, 2, 3)
    ]


def test_what_never_gets_better_fails_in_the_end(file_place: Place):
    client = file_place.client()
    job = submit(client, seed=1099)
    with file_place.controlled():
        assert ended(client, job.id).error.message == "the cluster is away"
    assert len(file_place.began) == 1 + file_place.config.max_failures


def test_a_running_job_is_paused_and_goes_on(file_place: Place):
    client = file_place.client()
    job = submit(client, seed=100)
    with file_place.controlled():
        wait_for(lambda: file_place.began)
        ended(client, job.id, "running")
        assert client.fine_tuning.jobs.pause(job.id).status == "pausing"
        ended(client, job.id, "paused")
        time.sleep(0.3)
        assert len(file_place.began) == 1
        client.fine_tuning.jobs.resume(job.id)
        assert ended(client, job.id).status == "succeeded"
    events = client.fine_tuning.jobs.list_events(job.id)
    assert [e.data["step"] for e in events if e.data and "train_loss" in e.data] == [3, 2, 1]


def test_jobs_are_cancelled_in_the_queue_and_at_work(file_place: Place):
    client = file_place.client()
    waiting = submit(client)
    assert client.fine_tuning.jobs.cancel(waiting.id).status == "cancelled"
    running = submit(client, seed=100)
    with file_place.controlled():
        wait_for(lambda: file_place.began)
        ended(client, running.id, "running")
        assert client.fine_tuning.jobs.cancel(running.id).status == "running"
        assert ended(client, running.id).status == "cancelled"
    for act in ("cancel", "pause", "resume"):
        with pytest.raises(openai.BadRequestError) as refused:
            getattr(client.fine_tuning.jobs, act)(running.id)
        assert refused.value.code == "invalid_state"
    assert len(file_place.began) == 1


def test_deleting_the_file_of_a_queued_job_changes_nothing(file_place: Place):
    client = file_place.client()
    file = upload(client, LINES + LINES[:10])
    job = submit(client, training_file=file.id)
    client.files.delete(file.id)
    Retention(file_place.database, file_place.root, file_place.config).sweep()
    with file_place.controlled():
        assert ended(client, job.id).status == "succeeded"
    blobs = Path(file_place.root, "files")
    assert len(list(blobs.glob("*.jsonl"))) == 1
    Retention(file_place.database, file_place.root, file_place.config).sweep()
    assert list(blobs.glob("*.jsonl")) == []
    assert len(list(blobs.glob("*.csv"))) == 1


def test_the_folder_of_an_old_run_goes_and_its_numbers_stay(file_place: Place):
    client = file_place.client()
    with file_place.controlled():
        job = ended(client, submit(client).id)
    assert list(Path(file_place.root, "runs").iterdir())
    config = file_place.config.model_copy(update={"keep_runs_days": 1e-9})
    Retention(file_place.database, file_place.root, config).sweep()
    assert list(Path(file_place.root, "runs").iterdir()) == []
    assert list(Path(file_place.root, "jobs").iterdir()) == []
    assert len(list(client.fine_tuning.jobs.list_events(job.id))) > 5
    hello = [{"role": "user", "content": "hi"}]
    assert client.chat.completions.create(model=job.fine_tuned_model, messages=hello).choices


def test_the_same_idempotency_key_gives_one_job(place: Place):
    client, other = place.client(), place.client("other")
    key = {"Idempotency-Key": "order 66".replace(" ", "-")}
    file = upload(client).id
    first, again = (submit(client, training_file=file, extra_headers=key) for _ in range(2))
    assert first.id == again.id
    assert submit(client, training_file=file).id != first.id
    assert submit(other, extra_headers=key).id != first.id
    assert len(list(client.fine_tuning.jobs.list())) == 2


def test_jobs_are_found_by_their_metadata(place: Place):
    client = place.client()
    file = upload(client).id
    for team in ("a", "b", "a"):
        submit(client, training_file=file, metadata={"team": team, "it's": "x y"})
    bare = submit(client, training_file=file)
    jobs = client.fine_tuning.jobs
    assert len(list(jobs.list(metadata={"team": "a"}, limit=1))) == 2
    assert len(list(jobs.list(metadata={"team": "b", "it's": "x y"}))) == 1
    assert list(jobs.list(metadata={"team": "c"})) == []
    assert [job.id for job in jobs.list(extra_query={"metadata": "null"})] == [bare.id]


def test_projects_take_turns_within_their_shares(place: Place):
    set_project(place.database, "a", Quota(running_jobs=1))
    many, few = place.client("a"), place.client("b")
    file = upload(many).id
    jobs = [submit(many, training_file=file).id for _ in range(3)]
    urgent = submit(many, training_file=file, extra_body={"ftray": {"priority": 5}}).id
    jobs += [submit(few).id, submit(few).id]
    with place.controlled():
        for id in [*jobs, urgent]:
            ended(many if id not in jobs[3:] else few, id)
    order = [submission.rpartition("-")[0] for submission, *_ in place.began]
    assert order.index(urgent) < min(order.index(id) for id in jobs[:3])
    assert max(order.index(id) for id in jobs[3:]) < 4  # not behind all of the others
    assert Counter(order) == Counter([*jobs, urgent])
    ended_at = {submission: float(at) for submission, _, at in place.read("ended.txt")}
    of_a = [(submission, float(at)) for submission, project, at in place.began if project == "a"]
    assert all(ended_at[one] < began for (one, _), (_, began) in pairwise(of_a))


def test_of_two_controllers_one_works_and_the_other_takes_over(place: Place):
    client = place.client()
    first, second = Controller(place.ground(), "first"), Controller(place.ground(), "second")
    assert first.round()
    assert not second.round()
    job = submit(client, seed=100)
    first.round()  # taken from the queue
    first.close()  # as if killed in between, but for the wait until the lease has run out
    assert second.round()
    assert not first.round()
    with place.controlled("third"):
        second.close()
        wait_for(lambda: place.began)
        client.fine_tuning.jobs.cancel(job.id)
        ended(client, job.id)
    assert len(place.began) == 1


def test_a_lease_that_nobody_prolongs_runs_out(database: Database):
    first, second = (Lease(database, "x", name, seconds=600) for name in ("first", "second"))
    assert first.hold()
    assert not second.hold()
    assert Lease(database, "x", "first", seconds=0.2).hold()
    wait_for(second.hold)
    assert not first.hold()
    with pytest.raises(LostLeaseError), database.writing() as session:
        first.check(session)


def test_a_controller_that_was_asleep_changes_nothing_any_more(place: Place):
    client = place.client()
    sleeper, other = Controller(place.ground(), "sleeper"), Controller(place.ground(), "other")
    job = submit(client)
    sleeper.round()
    sleeper.close()
    assert other.round()
    wait_for(lambda: place.launcher.find(f"{job.id}-1") != Seen(is_running=False))
    with pytest.raises(LostLeaseError):
        sleeper._look_at(job.id)
    wait_for(lambda: other.round() and ended_now(client, job.id))
    assert len(place.began) == 1


def ended_now(client, id):
    return client.fine_tuning.jobs.retrieve(id).status == "succeeded"
