"""The sweep: what nobody looks after is moved on, once, and nothing else is touched."""

import dataclasses
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from app import metrics
from app.courier import Courier
from app.errors import BrokerUnavailable, ClaimLost
from app.intake import input_name
from app.record import Phase, Status
from app.services import build
from tests.things import awaiting, deadline_passes, ids, indexes, job, lease_runs_out, pass_time, picture


def queued(jobs):
    new = job()
    jobs.create(new)
    jobs.confirm(new.task_id)
    return new.task_id


def lost(jobs, redis):
    """The id of a job whose worker has fallen silent."""
    task_id = queued(jobs)
    jobs.claim(task_id, "t1", "worker-1")
    lease_runs_out(redis, task_id)
    return task_id


def test_a_lost_job_is_queued_and_published_again(courier, services, published):
    task_id = lost(services.jobs, services.redis)
    courier.sweep()
    assert services.jobs.get(task_id).phase is Phase.QUEUED
    assert ids(published) == [task_id]
    assert indexes(services.redis, task_id) == {"queued:gen.tiny", "deadlines"}


def test_a_job_in_good_hands_is_left_alone(courier, jobs, published):
    waiting, running = queued(jobs), queued(jobs)
    jobs.claim(running, "t1", "worker-1")
    courier.sweep()
    assert (jobs.get(waiting).phase, jobs.get(running).phase, published) == (Phase.QUEUED, Phase.STARTING, [])


def test_a_job_whose_publishing_was_never_confirmed_is_published_again_after_a_while(courier, services, published):
    new = job()
    services.jobs.create(new)
    courier.sweep()
    assert published == []
    services.redis.zadd("jobs:unconfirmed", {new.task_id: services.jobs.now() - 31})
    courier.sweep()
    courier.sweep()
    assert ids(published) == [new.task_id]


def test_a_job_that_was_handed_back_a_moment_ago_is_none_whose_message_was_lost(courier, services, jobs, published):
    task_id = queued(jobs)
    services.redis.hset(f"job:{task_id}", "queued_at", jobs.now() - 100)
    jobs.claim(task_id, "t1", "worker-1")
    jobs.release(task_id, "t1")
    for _ in range(3):
        courier.sweep()
    assert published == [], "it is published again with all that are not confirmed"


@pytest.mark.parametrize("claimed", [False, True])
def test_a_job_past_its_deadline_fails_and_is_not_published(courier, services, published, claimed):
    task_id = lost(services.jobs, services.redis) if claimed else queued(services.jobs)
    deadline_passes(services.redis, task_id)
    courier.sweep()
    ended = services.jobs.get(task_id)
    assert (ended.status, ended.error["code"], published) == (Status.FAILED, "deadline_exceeded", [])
    assert indexes(services.redis, task_id) == set()


@pytest.mark.parametrize("index", ["leases", "deadlines", "uploads", "unconfirmed"])
def test_an_id_whose_record_is_gone_is_forgotten(courier, services, index):
    services.redis.zadd(f"jobs:{index}", {"ghost": 1})
    courier.sweep()
    courier.sweep()
    assert indexes(services.redis, "ghost") == set()


def test_one_job_that_cannot_be_moved_does_not_hold_up_the_others(courier, services, published):
    broken, good = lost(services.jobs, services.redis), lost(services.jobs, services.redis)
    services.redis.hset(f"job:{broken}", "params", "no JSON")
    services.redis.zadd("jobs:leases", {broken: 0})
    courier.sweep()
    assert ids(published) == [good]


def test_an_outage_of_the_broker_ends_the_sweep_and_loses_nothing(services, published):
    def refuse(job):
        raise BrokerUnavailable

    task_id = lost(services.jobs, services.redis)
    Courier(dataclasses.replace(services, publish=refuse)).sweep_if_first()
    assert services.jobs.get(task_id).phase is Phase.QUEUED
    services.redis.zadd("jobs:unconfirmed", {task_id: 1})
    Courier(services).sweep()
    assert ids(published) == [task_id]


def unconfirmed(services, **params):
    """The id of a job whose message has not come to the broker for a while."""
    new = job(**params)
    services.jobs.create(new)
    services.redis.zadd("jobs:unconfirmed", {new.task_id: services.jobs.now() - 31})
    return new.task_id


def closing(queue, asked):
    """Publishes into every queue but this one."""

    def publish(job):
        asked.append(job.task_id)
        if job.queue == queue:
            raise BrokerUnavailable

    return publish


def test_a_queue_that_takes_no_message_is_asked_once_in_a_sweep(services):
    asked = []
    for _ in range(3):
        lost(services.jobs, services.redis)
    Courier(dataclasses.replace(services, publish=closing("gen.tiny", asked))).sweep()
    assert len(asked) == 1


def test_one_queue_that_takes_no_message_holds_up_nothing_else(services):
    asked = []
    for _ in range(2):
        unconfirmed(services)
    other = unconfirmed(services, model_version="sd-turbo", queue="gen.sdturbo")
    expired = awaiting(services)
    services.redis.hset(f"job:{expired}", "upload_expires_at", 0)
    before = metrics.SWEEP._value.get()
    Courier(dataclasses.replace(services, publish=closing("gen.tiny", asked))).sweep()
    assert other in asked
    assert services.jobs.get(expired).error["code"] == "upload_expired"
    # What looks after the sweep is told that it was not a whole one.
    assert metrics.SWEEP._value.get() == before


def test_a_broker_that_is_away_is_asked_once_in_a_sweep_and_holds_up_no_upload(services):
    asked, expired = [], awaiting(services)
    services.redis.hset(f"job:{expired}", "upload_expires_at", 0)
    for queue in ("gen.tiny", "gen.sdxl"):
        unconfirmed(services, queue=queue)
        services.redis.zadd(f"jobs:queued:{queue}", {"long ago": services.jobs.now() - 3600})

    def away(queue):
        asked.append(queue)
        raise BrokerUnavailable

    Courier(dataclasses.replace(services, waiting=away)).sweep()
    assert asked == ["gen.tiny"]
    assert services.jobs.get(expired).error["code"] == "upload_expired"


def test_only_a_message_that_two_looks_miss_is_sent_again(courier, services, published):
    task_id = queued(services.jobs)
    services.redis.zadd("jobs:queued:gen.tiny", {task_id: services.jobs.now() - 31})
    courier.sweep()
    assert published == []
    courier.sweep()
    assert ids(published) == [task_id]


def test_the_lost_message_of_a_job_of_low_priority_is_missed_as_soon(courier, services, published):
    low = job(priority="low")
    services.jobs.create(low)
    services.jobs.confirm(low.task_id)
    for _ in range(3):
        courier.sweep()
    assert published == []
    services.redis.zincrby("jobs:queued:gen.tiny", -31, low.task_id)
    courier.sweep()
    courier.sweep()
    assert ids(published) == [low.task_id]


def test_a_job_of_a_queue_that_nobody_serves_any_more_ends_and_says_so(courier, services, published):
    left = job(queue="gen.gone")
    services.jobs.create(left)
    services.redis.zadd("jobs:unconfirmed", {left.task_id: services.jobs.now() - 31})
    courier.sweep()
    assert (services.jobs.get(left.task_id).error["code"], published) == ("internal", [])
    assert indexes(services.redis, left.task_id) == set()


def test_an_outage_of_the_store_does_not_end_the_courier(services, settings):
    away = settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})
    Courier(build(away, "courier")).sweep_if_first()


def at_once(count, act):
    """Raises what any of them raises."""
    start = threading.Barrier(count)

    def one():
        start.wait(10)
        act()

    with ThreadPoolExecutor(count) as threads:
        for done in [threads.submit(one) for _ in range(count)]:
            done.result(30)


def test_two_sweeps_at_once_publish_each_job_once(services, published):
    task_ids = {lost(services.jobs, services.redis) for _ in range(20)}
    at_once(4, lambda: Courier(services).sweep())
    assert sorted(ids(published)) == sorted(task_ids)


def test_sweeps_at_once_move_each_job_once_whatever_its_trouble(services, published):
    jobs = services.jobs
    overdue, arrived, late = [queued(jobs) for _ in range(5)], [], []
    for index in range(10):
        late.append(task_id := awaiting(services))
        if index % 2:
            arrived.append(late.pop())
            services.storage.put(input_name(task_id), picture(), "image/png")
        pass_time(services.redis, task_id, "upload_expires_at", "uploads")
    for task_id in overdue:
        deadline_passes(services.redis, task_id)
    at_once(4, lambda: Courier(services).sweep())
    assert sorted(ids(published)) == sorted(arrived)
    codes = {task_id: jobs.get(task_id).error["code"] for task_id in overdue + late}
    assert codes == dict.fromkeys(overdue, "deadline_exceeded") | dict.fromkeys(late, "upload_expired")
    assert services.redis.hvals("jobs:finished") == ["5", "5"]


def jump(services, monkeypatch, seconds):
    """From now on Redis' clock is so far ahead of what it was, or behind it."""
    store, text = services.jobs, services.jobs._script.script
    shifted = text.replace("tonumber(clock[1]) +", f"tonumber(clock[1]) + {seconds} +")
    assert shifted != text
    monkeypatch.setattr(store, "_script", services.redis.register_script(shifted))
    monkeypatch.setattr(store, "now", lambda now=store.now: now() + seconds)


def test_a_clock_that_jumps_ahead_costs_running_jobs_an_attempt_and_waiting_ones_nothing(
    courier, services, published, monkeypatch
):
    jobs, waiting, running = services.jobs, queued(services.jobs), queued(services.jobs)
    jobs.claim(running, "t1", "worker-1")
    jump(services, monkeypatch, 25)
    courier.sweep()
    courier.sweep()
    assert ids(published) == [running]
    with pytest.raises(ClaimLost):
        jobs.renew(running, "t1")
    assert jobs.claim(running, "t2", "worker-2").verdict == "claimed"
    with pytest.raises(ClaimLost):
        jobs.succeed(running, "t1", {})
    courier.sweep()
    assert ids(published) == [running]
    assert (jobs.get(running).attempt, jobs.get(waiting).attempt) == (2, 0)


def test_a_clock_that_jumps_back_leaves_jobs_with_their_workers_and_finds_those_lost_after_it(
    courier, services, published, monkeypatch
):
    jobs, running, lost_later = services.jobs, queued(services.jobs), queued(services.jobs)
    jobs.claim(running, "t1", "worker-1")
    jump(services, monkeypatch, -3600)
    jobs.renew(running, "t1")
    jobs.claim(lost_later, "t2", "worker-2")
    courier.sweep()
    assert (published, jobs.get(running).phase) == ([], Phase.STARTING)
    jump(services, monkeypatch, services.settings.lease + 1)
    jobs.renew(running, "t1")
    courier.sweep()
    assert ids(published) == [lost_later]


def test_a_couriers_own_clock_matters_to_no_job(courier, services, published, monkeypatch):
    running = queued(services.jobs)
    services.jobs.claim(running, "t1", "worker-1")
    for hours in (-2, 2):
        monkeypatch.setattr(time, "time", lambda now=time.time, hours=hours: now() + 3600 * hours)
        courier.sweep_if_first()
    assert (published, services.jobs.get(running).phase) == ([], Phase.STARTING)


def test_one_courier_of_several_sweeps(services, published):
    first, second = Courier(services), Courier(services)
    first.sweep_if_first()
    lost(services.jobs, services.redis)
    second.sweep_if_first()
    assert published == []
