"""What the courier tells of jobs, workers and webhooks when Prometheus asks."""

import dataclasses

import pytest
import redis

from app.census import Census
from app.errors import BrokerUnavailable, Internal
from app.jobs import JobStore
from app.record import Phase
from app.workers import WorkerState
from tests.things import job, reach


@pytest.fixture
def told(services):
    """Every number, by its name and labels."""
    return lambda: {
        (sample.name, *sample.labels.values()): sample.value
        for metric in Census(services).collect()
        for sample in metric.samples
    }


def test_a_job_is_open_and_in_line_until_it_ends(services, told):
    new = job(queue="gen.tiny")
    services.jobs.create(new)
    before = told()
    services.jobs.fail(new.task_id, Internal("over"))
    after = told()
    numbers = [("darkroom_jobs_open", "tiny-scenes-1"), ("darkroom_jobs_queued", "gen.tiny")]
    assert [before[number] for number in numbers] == [1, 1]
    assert [after[number] for number in numbers] == [0, 0]


NUMBERS = {
    Phase.AWAITING_UPLOAD: "awaiting_upload",
    Phase.QUEUED: "unconfirmed",
    Phase.STARTING: "running",
    Phase.RUNNING: "running",
    Phase.UPLOADING: "running",
    Phase.DONE: None,
}


@pytest.mark.parametrize(("phase", "number"), NUMBERS.items())
def test_a_job_is_counted_where_it_is_and_nowhere_else(jobs, told, phase, number):
    reach(jobs, phase)
    numbers = told()
    names = ("awaiting_upload", "unconfirmed", "running")
    assert [name for name in names if numbers[(f"darkroom_jobs_{name}",)]] == ([number] if number else [])


def test_every_end_of_a_job_is_counted_once(services, told):
    failed, canceled, done = job(), job(), job()
    for each in (failed, canceled, done):
        services.jobs.create(each)
    services.jobs.fail(failed.task_id, Internal("over"))
    services.jobs.cancel(canceled.task_id)
    services.jobs.cancel(canceled.task_id)
    services.jobs.claim(done.task_id, "token", "worker-1")
    services.jobs.advance(done.task_id, "token", "RUNNING")
    services.jobs.advance(done.task_id, "token", "UPLOADING")
    for _ in range(2):
        # Said again after an answer that was lost on its way.
        services.jobs.succeed(done.task_id, "token", {"worker_version": "1"})
    numbers = told()
    outcomes = ("internal", "canceled", "succeeded")
    assert [numbers["darkroom_jobs_finished_total", "tiny-scenes-1", outcome] for outcome in outcomes] == [1, 1, 1]


def test_a_submission_that_was_undone_is_not_open(services, told):
    new = job()
    services.jobs.create(new)
    services.jobs.discard(new.task_id)
    assert told()["darkroom_jobs_open", "tiny-scenes-1"] == 0


def test_an_id_that_a_lost_record_left_behind_is_not_open(services, told):
    services.redis.zadd("jobs:model:tiny-scenes-1", {"ghost": services.jobs.now() - 7200})
    assert told()["darkroom_jobs_open", "tiny-scenes-1"] == 0


def test_the_first_in_line_tells_for_how_long(services, told):
    new = job(queue="gen.tiny")
    services.jobs.create(new)
    services.redis.zadd("jobs:queued:gen.tiny", {new.task_id: services.jobs.now() - 100})
    services.redis.hset(f"job:{new.task_id}", "queued_at", services.jobs.now() - 100)
    assert told()["darkroom_oldest_queued_seconds", "gen.tiny"] == pytest.approx(100, abs=5)
    # Back in its old place, because its worker was lost a moment ago.
    services.redis.hset(f"job:{new.task_id}", "queued_at", services.jobs.now())
    assert told()["darkroom_oldest_queued_seconds", "gen.tiny"] < 5


def test_a_model_without_a_worker_is_told_as_one(services, told):
    assert told()["darkroom_model_workers", "tiny-scenes-1", "gen.tiny", "accept"] == 0
    services.workers.announce(WorkerState("w@host", "gen.tiny", "loading"))
    assert told()["darkroom_workers", "gen.tiny", "loading"] == 1
    services.workers.announce(WorkerState("w@host", "gen.tiny", "ready", ("tiny-scenes-1",)))
    assert told()["darkroom_model_workers", "tiny-scenes-1", "gen.tiny", "accept"] == 1


def test_what_is_not_known_is_not_told(services):
    away = redis.Redis(port=1, socket_connect_timeout=0.1)
    lost = dataclasses.replace(
        services, redis=away, jobs=JobStore(away, result_ttl=60, lease=15), check_broker=lambda: None
    )
    told = {metric.name: [sample.value for sample in metric.samples] for metric in Census(lost).collect()}
    assert told == {"darkroom_store_up": [0], "darkroom_broker_up": [1]}


def test_a_broker_that_is_away_is_told_and_keeps_nothing_else_from_being_known(services):
    def away():
        raise BrokerUnavailable("The broker does not answer.")

    told = {
        metric.name: metric.samples for metric in Census(dataclasses.replace(services, check_broker=away)).collect()
    }
    assert [told[name][0].value for name in ("darkroom_store_up", "darkroom_broker_up")] == [1, 0]
    assert "darkroom_jobs_queued" in told
