"""Parts of the service die while jobs are under way. Nothing is lost, and nothing is seen to run twice."""

import contextlib
import hashlib
import signal
import time
import uuid
from dataclasses import replace
from datetime import datetime
from urllib.parse import urlsplit

import kombu
import pytest
import redis
import requests

from app.broker import Broker
from app.jobs import JobStore
from app.models import load_catalogue
from app.services import make_redis
from app.settings import Settings
from app.tasks import make_celery
from tests.backends import GIVEN, TLS
from tests.stack import until

pytestmark = [pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(300)]

RECOVERY_SECONDS = 90


def submit(stack, count, steps=100):
    """So many jobs of the steady model, 20 ms a step."""
    return [
        stack.client.generate("x", model_version="steady", num_inference_steps=steps, seed=seed)["task_id"]
        for seed in range(count)
    ]


def finished(stack, tickets):
    tasks = [stack.client.task(ticket) for ticket in tickets]
    return tasks if all(task["status"] != "PENDING" for task in tasks) else None


def running(stack, tickets, count=1):
    until(lambda: [t for t in tickets if stack.client.task(t)["phase"] == "RUNNING"][count - 1 :], 30, "jobs run")


def stored(stack):
    """The names of all objects of this stack's bucket."""
    bucket = stack.settings["STORAGE_URL"].removeprefix("gs://").partition("/")[0]
    url = f"{stack.settings['STORAGE_EMULATOR_HOST']}/storage/v1/b/{bucket}/o"
    return sorted(item["name"] for item in requests.get(url, timeout=10).json().get("items", []))


def test_ten_jobs_outlive_the_death_of_everything_that_works_on_them(stack, services):
    web = stack.start("web", WEB_WORKERS="2")
    stack.start("courier")
    first, second = stack.start("worker-1"), stack.start("worker-2")
    stack.ready("steady")
    tickets = submit(stack, 10)

    running(stack, tickets, 2)
    first.children[0].kill()
    running(stack, tickets)
    second.kill()
    stack.roles.remove(second)
    # What a supervisor does.
    stack.start("worker-3")
    web.children[0].kill()
    services("restart", "rabbitmq")

    tasks = until(lambda: finished(stack, tickets), RECOVERY_SECONDS, "every job is done")
    assert {task["status"] for task in tasks} == {"SUCCEEDED"}
    assert stored(stack) == sorted(f"prefix/output/{ticket}.png" for ticket in tickets)
    for task in tasks:
        assert hashlib.sha256(stack.client.image(task["task_id"])).hexdigest() == task["images"][0]["sha256"]


def test_a_message_that_comes_five_times_is_run_once(stack):
    stack.start("web")
    stack.start("worker-1")
    stack.start("worker-2")
    stack.ready("steady")
    ticket = submit(stack, 1)[0]
    with of(stack) as (broker, jobs):
        for _ in range(4):
            broker.publish(jobs.get(ticket))
    task = stack.client.wait(ticket, 30)
    assert (task["status"], task["attempt"], len(task["attempts"])) == ("SUCCEEDED", 1, 1)


@contextlib.contextmanager
def of(stack):
    """The stack's broker and jobs, as the sweep has them."""
    names = Settings.model_fields
    settings = Settings(**{k.lower(): v for k, v in stack.settings.items() if k.lower() in names})
    app = make_celery(settings, load_catalogue(settings.models_file), "courier")
    with make_redis(settings, "courier") as store:
        yield Broker(app), JobStore(store, result_ttl=settings.result_ttl, lease=settings.lease)
    app.pool.force_close_all()


def test_a_message_that_outlives_its_record_makes_the_job_again_until_its_deadline(stack):
    stack.start("web")
    stack.start("worker")
    stack.ready("steady")
    ticket = submit(stack, 1, steps=2)[0]
    with of(stack) as (broker, jobs):
        known, now = jobs.get(ticket), jobs.now()
        late, lost = (replace(known, task_id=str(uuid.uuid4()), deadline_at=now + left) for left in (-1, 600))
        for job in (late, lost):
            broker.publish(job)
    # One message after the other: when this one is done, so is the one before it.
    until(lambda: get(stack, lost).status_code == 200, 30, "its record is made again")
    made = stack.client.wait(lost.task_id, 30)
    assert made["status"] == "SUCCEEDED"
    assert datetime.fromisoformat(made["deadline_at"]).timestamp() == pytest.approx(lost.deadline_at, abs=0.01)
    assert get(stack, late).status_code == 404


def get(stack, job):
    return requests.get(f"{stack.url}/tasks/{job.task_id}", timeout=10)


def test_a_queue_that_is_deleted_behind_the_web_tiers_back_costs_no_job(stack):
    stack.start("web")
    stack.ready()
    submit(stack, 1, steps=2)
    with kombu.Connection(stack.settings["BROKER_URL"]) as connection, connection.channel() as channel:
        channel.queue_delete("gen.test")
    ticket = submit(stack, 1, steps=2)[0]
    stack.start("worker")
    assert stack.client.wait(ticket, 60)["status"] == "SUCCEEDED"


def over_tls(url):
    """The same broker, where it speaks that: a connection in TLS is hung up in a way of its own."""
    parts = urlsplit(url)
    if not TLS["RABBITMQ_TLS"]:
        return {}
    place = f"{parts.username}:{parts.password}@{TLS['RABBITMQ_TLS']}"
    ca_file = f"{TLS['RABBITMQ_CERTIFICATE']}/tls.crt"
    return {"BROKER_URL": parts._replace(scheme="amqps", netloc=place).geturl(), "CA_FILE": ca_file}


def test_a_queue_that_is_deleted_while_a_job_of_it_is_at_work_costs_no_job(stack):
    stack.start("web")
    worker = stack.start("worker", **over_tls(stack.settings["BROKER_URL"]))
    stack.ready("steady")
    first = submit(stack, 1, steps=150)
    running(stack, first)
    with kombu.Connection(stack.settings["BROKER_URL"]) as connection, connection.channel() as channel:
        channel.queue_delete("gen.test")
    # Made again at once by the web tier, it gives its messages to none who consumed from the one before.
    others = submit(stack, 3, steps=1)
    until(lambda: finished(stack, first), 30, "the one at work is done")
    # A turn takes the others from the line; these have messages alone to be had by.
    others += submit(stack, 3, steps=1)
    until(lambda: finished(stack, others), 60, "all are done")
    assert worker.process.poll() is None


def test_a_worker_told_to_stop_hands_its_job_to_another(stack):
    stack.start("web")
    stack.start("courier")
    leaving = stack.start("worker-1", WORKER_GRACE="1")
    stack.ready("steady")
    ticket = submit(stack, 1, steps=400)[0]
    running(stack, [ticket])
    leaving.kill(signal.SIGTERM)
    stack.start("worker-2")
    task = stack.client.wait(ticket, 60)
    assert (task["status"], task["attempt"]) == ("SUCCEEDED", 1)
    assert [attempt.get("ended") for attempt in task["attempts"]] == ["released", None]
    assert leaving.process.wait(10) in (0, 1)


def test_a_worker_told_to_stop_leaves_as_soon_as_its_job_is_done(stack):
    stack.start("web")
    leaving = stack.start("worker", WORKER_GRACE="100")
    stack.ready("steady")
    ticket = submit(stack, 1, steps=100)[0]
    running(stack, [ticket])
    leaving.kill(signal.SIGTERM)
    assert leaving.process.wait(30) == 0
    task = stack.client.task(ticket)
    assert (task["status"], task["attempt"]) == ("SUCCEEDED", 1)


def test_workers_cost_the_broker_nothing_among_themselves(stack):
    stack.start("web")
    stack.start("worker-1"), stack.start("worker-2")
    stack.ready("steady")
    until(lambda: len(stack.client.models()[0]["on_workers"]) == 2, 60, "both are ready")
    assert stack.client.wait(submit(stack, 1)[0], 60)["status"] == "SUCCEEDED"
    queues = requests.get(f"{GIVEN['RABBITMQ_MANAGEMENT_URL']}/api/queues{vhost(stack)}", timeout=30).json()
    # With gossip each of them hears each word of all others.
    assert [queue["name"] for queue in queues if queue["name"].startswith("celeryev")] == []


def vhost(stack):
    return urlsplit(stack.settings["BROKER_URL"]).path


def test_jobs_that_kill_their_workers_or_never_end_fail_and_the_others_go_on(stack):
    # Each attempt costs the test a fresh child.
    stack.start("web", MAX_ATTEMPTS="2")
    stack.start("courier")
    stack.start("worker", LEASE="2", TIME_LIMIT="4")
    stack.ready("steady", "exits", "hangs")
    poison = [stack.client.generate("x", model_version=model)["task_id"] for model in ("exits", "hangs")]
    healthy = submit(stack, 3)
    for ticket in poison:
        task = stack.client.wait(ticket, 200)
        assert (task["error"]["code"], task["attempt"]) == ("attempts_exhausted", 2)
    tasks = until(lambda: finished(stack, healthy), 60, "the healthy jobs are done")
    assert {task["status"] for task in tasks} == {"SUCCEEDED"}
    entries = {entry["id"]: entry["model_version"] for entry in stack.client.quarantine()}
    assert entries == dict(zip(poison, ("exits", "hangs"), strict=True))


def test_a_worker_whose_model_does_not_load_ends_with_its_reason(stack):
    worker = stack.start("worker", WORKER_QUEUE="gen.broken")
    until(lambda: worker.process.poll() is not None, 60, "the worker ends")
    assert worker.process.returncode != 0
    assert worker.wrote("fails-on-load cannot be loaded: the weights are not there")


@contextlib.contextmanager
def alarmed(services):
    """RabbitMQ finds that it has no memory left, and takes nothing from those who publish."""
    services("rabbitmqctl", "set_vm_memory_high_watermark", "absolute", "1")
    try:
        yield
    finally:
        services("rabbitmqctl", "set_vm_memory_high_watermark", "0.6")


def test_a_broker_that_takes_no_messages_now_keeps_no_worker_from_those_it_has_nor_from_leaving(stack, services):
    stack.start("web")
    # Each job is a message of its own, after which the worker tells of it by an event.
    worker = stack.start("worker", WORKER_TURN="0")
    stack.ready("steady")
    tickets = submit(stack, 12, steps=50)
    with alarmed(services):
        answer = requests.post(f"{stack.url}/generate", json={"prompt": "x", "model_version": "steady"}, timeout=30)
        assert (answer.status_code, answer.json()["code"]) == (503, "broker_unavailable")
        assert not finished(stack, tickets), "all were done before: this shows nothing"
        tasks = until(lambda: finished(stack, tickets), 60, "all that was queued is done")
        assert {task["status"] for task in tasks} == {"SUCCEEDED"}
        worker.process.terminate()
        assert worker.process.wait(20) == 0
    stack.roles.remove(worker)


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_without_a_broker_nothing_is_accepted_and_everything_can_be_read(stack, services, fault):
    stack.start("web")
    stack.start("worker")
    stack.ready("steady")
    done = stack.client.wait(submit(stack, 1, steps=2)[0], 30)["task_id"]
    records = keys(stack)
    with broken(services, "rabbitmq", fault):
        started = time.monotonic()
        answer = requests.post(f"{stack.url}/generate", json={"prompt": "x", "model_version": "steady"}, timeout=30)
        assert (answer.status_code, answer.json()["code"]) == (503, "broker_unavailable")
        assert "Retry-After" in answer.headers
        assert time.monotonic() - started < 2.2
        assert stack.client.task(done)["status"] == "SUCCEEDED"
        assert {key for key in keys(stack) - records if not discarded(stack, key)} == set()
    until(stack.client.ready, 60, "ready again")
    assert stack.client.wait(submit(stack, 1, steps=2)[0], 60)["status"] == "SUCCEEDED"


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_without_a_status_store_everything_is_refused_at_once(stack, services, fault):
    stack.start("web")
    stack.start("worker")
    stack.ready("steady")
    ticket = submit(stack, 1, steps=100)[0]
    running(stack, [ticket])
    with broken(services, "redis", fault):
        for method, path in (("POST", "/generate"), ("GET", f"/tasks/{ticket}"), ("GET", "/readyz")):
            started = time.monotonic()
            answer = requests.request(method, stack.url + path, json={"prompt": "x"}, timeout=30)
            assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
            assert time.monotonic() - started < 2.5
    assert stack.client.wait(ticket, 60)["status"] == "SUCCEEDED"


def test_a_job_waits_for_a_status_store_that_is_full_and_ends_once(stack):
    stack.start("web")
    stack.start("courier")
    stack.start("worker")
    stack.ready("steady")
    ticket = submit(stack, 1, steps=100)[0]
    running(stack, [ticket])
    with full(stack):
        answer = requests.post(f"{stack.url}/generate", json={"prompt": "x", "model_version": "steady"}, timeout=30)
        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
        # Its work would be over by then.
        started = time.monotonic()
        until(lambda: time.monotonic() > started + 4, 10, "more time has passed than the work takes")
        assert stack.client.task(ticket)["phase"] == "RUNNING"
    assert stack.client.wait(ticket, 60)["status"] == "SUCCEEDED"
    assert stored(stack) == [f"prefix/output/{ticket}.png"]


@contextlib.contextmanager
def full(stack):
    """Redis has no memory for anything new."""
    with redis.Redis.from_url(stack.settings["REDIS_URL"], decode_responses=True) as store:
        store.config_set("maxmemory", 1)
        try:
            yield
        finally:
            store.config_set("maxmemory", 0)


def keys(stack):
    with redis.Redis.from_url(stack.settings["REDIS_URL"], decode_responses=True) as store:
        return set(store.scan_iter("job:*"))


def discarded(stack, key):
    with redis.Redis.from_url(stack.settings["REDIS_URL"], decode_responses=True) as store:
        return store.hexists(key, "discarded")


class broken:  # noqa: N801, reads as a sentence
    """A service is dead or silent for the length of the block, and well again after it."""

    def __init__(self, services, name, fault):
        self._services, self._name, self._fault = services, name, fault

    def __enter__(self):
        if self._fault == signal.SIGKILL:
            self._services("kill", self._name)
        else:
            self._signal(signal.SIGSTOP)

    def __exit__(self, *_):
        if self._fault == signal.SIGKILL:
            self._services("restart", self._name)
        else:
            self._signal(signal.SIGCONT)

    def _signal(self, number):
        from tests.backends import service_processes

        for process in service_processes(self._name):
            process.send_signal(number)
