"""Jobs on a cluster that has no room for all of them, or for none."""

from dataclasses import replace

import pytest
from place import Place, ended, submit, wait_for
from processes import Processes

from ftray.service import starter
from ftray.service.launcher import Room


def test_a_driver_that_others_leave_no_room_waits_and_has_not_failed(file_place: Place):
    client = file_place.client()
    job = submit(client, seed=200)
    with file_place.controlled():
        assert ended(client, job.id).status == "succeeded"
    assert len(file_place.began) == 5 > 1 + file_place.config.max_failures
    said = [event.message for event in client.fine_tuning.jobs.list_events(job.id)]
    assert sum("no room" in words for words in said) == 4


def test_no_more_jobs_start_than_the_cluster_has_cpus_for(
    file_place: Place, launcher: Processes, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(starter, "_ROOM_SECONDS", 0.0)
    launcher.has = Room(cpus=1.5, gpus=0, most_cpus=3.5, most_gpus=0)  # 2 CPUs are needed
    client = file_place.client()
    ids = [submit(client, seed=1).id for _ in range(3)]
    with file_place.controlled():
        first = wait_for(lambda: _said(client, ids[0], "waits until the cluster has room"))
        assert len(first) == 1
        assert file_place.began == []
        launcher.has = replace(launcher.has, cpus=3.5)
        for id in ids:
            ended(client, id)
    spans = [
        (float(at), float(end))
        for (*_, at), (*_, end) in zip(
            sorted(file_place.began), sorted(file_place.read("ended.txt")), strict=True
        )
    ]
    assert max(sum(a <= at < b for a, b in spans) for at, _ in spans) == 2  # 1 CPU each, 1 to read


def _said(client, id, words):
    return [one for one in client.fine_tuning.jobs.list_events(id) if words in one.message]
