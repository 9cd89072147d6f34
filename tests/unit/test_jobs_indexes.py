"""Where a job is found, what is told of it, and what a store that is away or full means."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.errors import (
    Internal,
    StoreUnavailable,
    TaskNotFound,
)
from app.jobs import DELETED_TTL, EVENTS, TICKET_TTL, JobStore, Terms
from app.record import Phase, Status
from app.services import make_redis
from tests.stack import until
from tests.things import RESULT, claim, indexes, job, lease_runs_out, params, reach

EXPECTED_INDEXES = {
    Phase.AWAITING_UPLOAD: {"uploads", "deadlines"},
    Phase.QUEUED: {"queued:gen.tiny", "unconfirmed", "deadlines"},
    Phase.STARTING: {"leases", "deadlines"},
    Phase.RUNNING: {"leases", "deadlines"},
    Phase.UPLOADING: {"leases", "deadlines"},
    Phase.DONE: set(),
}


@pytest.mark.parametrize("phase", Phase)
def test_each_phase_is_found_in_its_own_indexes_and_in_no_other(jobs, redis, phase):
    assert indexes(redis, reach(jobs, phase)) == EXPECTED_INDEXES[phase]


def test_what_killed_its_workers_is_kept_in_quarantine(jobs, redis):
    task_id = reach(jobs, Phase.QUEUED)
    jobs.fail(task_id, Internal("over"), quarantine=True)
    assert indexes(redis, task_id) == {"quarantine"}


def test_what_a_step_takes_is_learned_from_the_time_of_the_model_alone(jobs):
    def typical(steps, **metrics):
        new = job()
        jobs.create(new)
        jobs.claim(new.task_id, "t1", "worker-1")
        jobs.advance(new.task_id, "t1", Phase.RUNNING)
        jobs.renew(new.task_id, "t1", steps, steps)
        jobs.succeed(new.task_id, "t1", RESULT | {"metrics": json.dumps(metrics)})
        return jobs.standing(new).typical_seconds(params(num_inference_steps=10))

    assert typical(1, queue_ms=0) is None
    assert typical(1, inference_ms=500, upload_ms=90_000) == pytest.approx(5)
    assert typical(4, inference_ms=4000, batch_size=2) == pytest.approx(5)
    assert typical(100, upload_ms=90_000) == pytest.approx(5)
    assert typical(2, inference_ms=2000) == pytest.approx(6)


def test_a_confirmed_job_need_not_be_published_again(jobs, redis):
    task_id = reach(jobs, Phase.QUEUED)
    assert jobs.due("unconfirmed") == [task_id]
    jobs.confirm(task_id)
    assert indexes(redis, task_id) == {"queued:gen.tiny", "deadlines"}


def test_a_discarded_job_is_not_found_and_a_stray_message_has_nothing_to_do(jobs, redis):
    task_id = reach(jobs, Phase.QUEUED)
    jobs.discard(task_id)
    with pytest.raises(TaskNotFound):
        jobs.get(task_id)
    assert claim(jobs, task_id).verdict == "done"
    assert indexes(redis, task_id) == set()
    assert 86_000 < redis.ttl(f"job:{task_id}") <= 86_400, "until its deadline"


def test_the_idempotency_key_of_a_discarded_job_is_free_again(jobs):
    terms = Terms(ticket="ann:one", digest="d")
    jobs.create(first := job(), terms)
    jobs.discard(first.task_id)
    assert jobs.earlier(terms) is None
    assert jobs.create(job(), terms).verdict == "created"


def test_an_idempotency_key_is_free_again_after_its_time(jobs, redis):
    jobs.create(job(), Terms(ticket="ann:one", digest="d"))
    assert 0 < redis.ttl("idempotency:ann:one") <= TICKET_TTL


@pytest.fixture
def listed(settings):
    """Seconds for which a job may have to be listed: its deadline, its keeping, and a day for its last word."""
    return 2 * settings.result_ttl + DELETED_TTL


def test_the_list_of_a_caller_who_comes_no_more_ends_by_itself(jobs, redis, listed):
    jobs.create(job(caller="ann"))
    assert listed - 10 < redis.ttl("jobs:of:ann") <= listed


LOOKS = {"a new job": lambda jobs: jobs.create(job(caller="ann")), "the list": lambda jobs: jobs.of("ann", 0, 1)}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_a_list_forgets_what_cannot_be_there_any_more(jobs, redis, listed, look):
    redis.zadd("jobs:of:ann", {"gone": jobs.now() - listed - 1, "kept": jobs.now() - listed + 60})
    look(jobs)
    assert [redis.zscore("jobs:of:ann", name) is not None for name in ("gone", "kept")] == [False, True]


def test_a_task_of_the_longest_deadline_is_listed_when_it_has_just_ended(jobs, redis, settings, client):
    new = job(deadline_seconds=settings.result_ttl)
    jobs.create(new)
    redis.zadd(f"jobs:of:{new.caller}", {new.task_id: jobs.now() - settings.result_ttl - DELETED_TTL - 1})
    jobs.cancel(new.task_id)
    jobs.create(other := job())
    assert [task["task_id"] for task in client.get("/tasks").json["tasks"]] == [other.task_id, new.task_id]


@pytest.mark.parametrize(("ago", "verdict"), [(3601, "created"), (3500, "quota_exceeded")])
def test_a_lost_record_counts_against_its_callers_quota_for_an_hour_after_its_deadline(jobs, redis, ago, verdict):
    redis.zadd("jobs:open:ann", {"lost": jobs.now() - ago})
    assert jobs.create(job(caller="ann"), Terms(most_open=1)).verdict == verdict


def test_quarantine_forgets_what_is_kept_no_more(jobs, redis, settings):
    redis.zadd("jobs:quarantine", {"gone": jobs.now() - settings.result_ttl - 1, "kept": jobs.now() - 60})
    task_id = reach(jobs, Phase.QUEUED)
    jobs.fail(task_id, Internal("over"), quarantine=True)
    assert redis.zrange("jobs:quarantine", 0, -1) == ["kept", task_id]


def test_a_job_canceled_while_its_worker_dies_is_not_begun_again(jobs, redis):
    task_id = reach(jobs, Phase.RUNNING)
    jobs.cancel(task_id)
    lease_runs_out(redis, task_id)
    assert claim(jobs, task_id, "t2").verdict == "canceled"


def test_the_word_in_place_of_a_job_outlives_its_message(jobs, redis):
    discarded, deleted = job(deadline_seconds=600_000), job(deadline_seconds=600_000)
    for new in (discarded, deleted):
        jobs.create(new)
    jobs.discard(discarded.task_id)
    jobs.cancel(deleted.task_id)
    # Whoever deletes it once more, at the same moment perhaps, changes nothing.
    for _ in range(2):
        jobs.delete(deleted.task_id)
        jobs.delete(discarded.task_id)
    for new in (discarded, deleted):
        assert redis.ttl(f"job:{new.task_id}") > 599_000
        assert claim(jobs, new.task_id).verdict == "done"


def test_a_discard_that_is_said_again_after_a_lost_answer_is_heard(jobs):
    new = job()
    jobs.create(new)
    assert [jobs.discard(new.task_id) for _ in range(2)] == [True, True]


@pytest.mark.parametrize("way", ["lost", "handed back"])
def test_a_canceled_job_whose_worker_goes_ends_at_once(jobs, redis, way):
    task_id = reach(jobs, Phase.RUNNING)
    jobs.cancel(task_id)
    if way == "lost":
        lease_runs_out(redis, task_id)
        assert not jobs.requeue(task_id), "there is nothing to publish"
    else:
        jobs.release(task_id, "t1")
    ended = jobs.get(task_id)
    assert (ended.status, ended.error["code"], indexes(redis, task_id)) == (Status.FAILED, "canceled", set())


def test_a_job_that_a_worker_already_has_is_not_discarded(jobs):
    task_id = reach(jobs, Phase.STARTING)
    jobs.discard(task_id)
    assert jobs.get(task_id).phase is Phase.STARTING


def test_an_id_whose_record_is_gone_is_forgotten_and_any_other_kept(jobs, redis):
    lost, kept = reach(jobs, Phase.RUNNING), reach(jobs, Phase.RUNNING)
    redis.delete(f"job:{lost}")
    jobs.forget(lost)
    jobs.forget(kept)
    assert indexes(redis, lost) == set()
    assert indexes(redis, kept) == {"leases", "deadlines"}


def test_due_holds_what_is_older_and_the_oldest_first(jobs, redis):
    redis.zadd("jobs:leases", {"new": jobs.now() - 5, "old": jobs.now() - 50, "coming": jobs.now() + 50})
    assert jobs.due("leases") == ["old", "new"]
    assert jobs.due("leases", older_than=20) == ["old"]
    assert jobs.due("leases", limit=1) == ["old"]


def test_the_upload_that_ends_first_is_looked_at_first(jobs):
    late, soon = job(waits=True, upload_seconds=900), job(waits=True, upload_seconds=5)
    jobs.create(late)
    jobs.create(soon)
    found = jobs.waiting_uploads(0, 10)
    assert [task_id for task_id, _ in found] == [soon.task_id, late.task_id]
    assert jobs.waiting_uploads(found[0][1], 10) == found[1:]
    assert jobs.waiting_uploads(0, 1) == found[:1]
    assert jobs.get(soon.task_id).upload_expires_at == pytest.approx(jobs.now() + 5, abs=1)


def test_a_queue_counts_its_own_jobs_in_their_order(jobs):
    first, second, other = job(), job(), job(queue="gen.big")
    for new in (first, second, other):
        jobs.create(new)
        _next_millisecond(jobs)
    assert [jobs.standing(each).position for each in (first, second, other)] == [0, 1, 0]
    assert (jobs.queue_depth("gen.tiny"), jobs.queue_depth("gen.big")) == (2, 1)
    assert claim(jobs, first.task_id).verdict == "claimed"
    assert [jobs.standing(first).position, jobs.standing(second).position] == [None, 0]


@pytest.mark.parametrize("way", ["lost", "handed back"])
@pytest.mark.parametrize("priority", ["normal", "low"])
def test_a_job_whose_worker_goes_again_and_again_keeps_its_place_in_line(jobs, redis, way, priority):
    _, first, second = line = [job(priority=priority) for _ in range(3)]
    for new in line:
        jobs.create(new)
        _next_millisecond(jobs)
    for token in ("t1", "t2"):
        assert claim(jobs, first.task_id, token).verdict == "claimed"
        if way == "lost":
            lease_runs_out(redis, first.task_id)
            assert jobs.requeue(first.task_id)
        else:
            jobs.release(first.task_id, token)
        assert [jobs.standing(each).position for each in line] == [0, 1, 2]
        assert jobs.get(first.task_id).queued_at > jobs.get(second.task_id).queued_at, "for the last time"


def test_jobs_of_one_moment_come_back_in_their_order(jobs):
    line = [job() for _ in range(50)]
    for new in line:
        jobs.create(new)
    before = [waiting.task_id for waiting in jobs.line("gen.tiny", 50)]
    for new in reversed(line):
        assert claim(jobs, new.task_id, "t1").verdict == "claimed"
        jobs.release(new.task_id, "t1")
    assert [waiting.task_id for waiting in jobs.line("gen.tiny", 50)] == before


def _next_millisecond(jobs):
    now = jobs.now()
    until(lambda: jobs.now() > now + 0.001, 1, "the next millisecond")


def test_each_move_is_told_once_with_the_next_version(jobs, redis):
    with redis.pubsub(ignore_subscribe_messages=True) as events:
        events.subscribe(EVENTS)
        task_id = reach(jobs, Phase.RUNNING)
        jobs.renew(task_id, "t1", 1, 4)
        jobs.fail(task_id, Internal("over"), "t1")
        told = [json.loads(until(lambda: events.get_message(timeout=1), 5, "an event")["data"]) for _ in range(5)]
    assert {event["task_id"] for event in told} == {task_id}
    assert [event["version"] for event in told] == [1, 2, 3, 4, 5]
    assert [event["phase"] for event in told] == ["QUEUED", "STARTING", "RUNNING", "RUNNING", "DONE"]
    assert (told[3]["step"], told[3]["steps"], told[4]["status"]) == (1, 4, "FAILED")


def test_a_lock_has_one_holder_and_ends_by_itself(jobs):
    assert jobs.lock("sweep", 0.05)
    assert not jobs.lock("sweep", 0.05)
    assert until(lambda: jobs.lock("sweep", 1), 5, "the lock ends")


def test_a_lock_outlives_no_clock_that_jumps_back(jobs, redis):
    # What was to end at once ends in an hour, by a clock that has gone back by so much.
    redis.set("lock:sweep", "1", px=3_600_000)
    assert not jobs.lock("sweep", 0.05)
    assert until(lambda: jobs.lock("sweep", 0.05), 5, "the lock ends")


def test_a_store_that_does_not_answer_is_told_as_such(settings):
    away = settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})
    jobs = JobStore(make_redis(away, "web"), result_ttl=60, lease=15)
    for ask in (jobs.ping, jobs.now, lambda: jobs.get("x"), lambda: jobs.create(job()), lambda: claim(jobs, "x")):
        with pytest.raises(StoreUnavailable):
            ask()


@pytest.mark.parametrize("role", ["web", "worker", "courier"])
def test_a_connection_that_was_idle_is_tried_before_it_is_trusted(settings, redis, role):
    client = make_redis(settings, role)
    connection = client.connection_pool.get_connection()
    # As if it had been idle for longer than its interval.
    connection.next_health_check = 1
    client.connection_pool.release(connection)
    redis.config_resetstat()
    client.get("x")
    assert "cmdstat_ping" in redis.info("commandstats")


def test_a_full_store_is_told_where_people_wait(jobs, full):
    with pytest.raises(StoreUnavailable):
        jobs.create(job())


def test_a_worker_waits_for_a_full_store(settings, jobs, redis, full):
    new, patient = job(), JobStore(make_redis(settings, "worker"), result_ttl=60, lease=5)
    with ThreadPoolExecutor(1) as worker:
        created = worker.submit(patient.create, new)
        until(lambda: redis.info("errorstats").get("errorstat_OOM"), 10, "it was refused once")
        assert not created.done()
        full()
        assert created.result(10).verdict == "created"
    assert jobs.get(new.task_id).phase is Phase.QUEUED


def test_a_worker_waits_for_a_full_store_with_several_commands_at_once(settings, redis, full):
    with ThreadPoolExecutor(1) as worker, make_redis(settings, "worker").pipeline(transaction=False) as pipeline:
        pipeline.set("one", 1).get("one")
        done = worker.submit(pipeline.execute)
        until(lambda: redis.info("errorstats").get("errorstat_OOM"), 10, "it was refused once")
        assert not done.done()
        full()
        assert done.result(10) == [True, "1"]


def test_leases_and_deadlines_go_by_the_stores_clock_alone(jobs, redis, monkeypatch):
    monkeypatch.setattr(time, "time", lambda now=time.time: now() + 3600)
    task_id = reach(jobs, Phase.RUNNING)
    jobs.renew(task_id, "t1")
    assert (jobs.due("leases"), jobs.due("deadlines"), claim(jobs, task_id, "t2").verdict) == ([], [], "held")
    seconds, _ = redis.time()
    assert jobs.get(task_id).started_at == pytest.approx(seconds, abs=5)
    lease_runs_out(redis, task_id)
    assert jobs.due("leases") == [task_id]
    assert jobs.requeue(task_id)
