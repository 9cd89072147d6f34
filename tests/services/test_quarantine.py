"""Messages that nobody can read, and messages that the broker lost: on RabbitMQ and on the bundled Redis broker."""

import json
import subprocess
import sys
from urllib.parse import unquote, urlsplit

import kombu
import pytest
import redis

from app.tasks import GENERATE
from tests.backends import embedded, real_services
from tests.services.conftest import on
from tests.services.test_faults import finished, submit
from tests.stack import until
from tests.things import job

pytestmark = [pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(params=["services", "embedded"])
def stack(request, tmp_path):
    with on(real_services if request.param == "services" else embedded, tmp_path) as stack:
        yield stack


def unreadable():
    """Body, headers and content type of messages, each broken in a way of its own."""
    message = job(queue="gen.test", model_version="steady").message()
    ours = {"task": GENERATE, "id": "x"}
    yield b"garbage", {}, "text/plain"
    yield b"[[], {}, {}]", {"task": "celery.ping", "id": "x"}, "application/json"
    yield b"{no json", ours, "application/json"
    yield b"\x80\x04K\x01.", ours, "application/x-python-serialize"
    yield json.dumps([[], {"message": {**message, "prompt": 7}}, {}]).encode(), ours, "application/json"
    yield json.dumps([[], {"message": message}, {}]).encode(), ours, "application/json"
    for wrong in ({"caller": {"a": 1}}, {"max_attempts": 1e300}, {"traceparent": "x"}):
        yield json.dumps([[], {"message": {**message, **wrong}}, {}]).encode(), ours, "application/json"
    yield b"as it is", {**ours, "compression": "application/x-gzip"}, "application/json"
    # Jobs as they should be, but for what Celery itself reads.
    for header in ({"eta": "soon"}, {"timelimit": {"a": 1}}, {"expires": []}):
        message = job(queue="gen.test", model_version="steady").message()
        right = json.dumps([[], {"message": message}, {}]).encode()
        yield right, {**ours, "id": message["task_id"], **header}, "application/json"


RAW = [b"by hand", b"\xff\xfe", b"null", b"[1, 2]", b"{}", b'{"properties": {"delivery_tag": "1"}}', b"[" * 100_000]


def send_raw(stack):
    """What no client of the queue writes, where a queue is a list that anybody can write to; how many."""
    if not stack.settings["BROKER_URL"].startswith("redis"):
        return 0
    with redis.Redis.from_url(stack.settings["BROKER_URL"]) as broker:
        broker.lpush("gen.test", *RAW)
    return len(RAW)


def send(stack, messages):
    with kombu.Connection(stack.settings["BROKER_URL"]) as connection, connection.Producer() as producer:
        for body, headers, content_type in messages:
            producer.publish(
                body, headers=headers, content_type=content_type, content_encoding="utf-8",
                exchange="gen.test", routing_key="gen.test",
            )  # fmt: skip


def lose_all_messages(stack):
    """What an operator's mistake or a disk does to a broker: the queue is gone with all that it held."""
    url = stack.settings["BROKER_URL"]
    if url.startswith("redis"):
        with redis.Redis.from_url(url) as broker:
            broker.flushdb()
    else:
        with kombu.Connection(url) as connection, connection.channel() as channel:
            channel.queue_delete("gen.test")


def command(stack, *arguments):
    ran = subprocess.run(
        [sys.executable, "-m", "app", "quarantine", *arguments, "--json"],
        env={"DARKROOM_URL": stack.url, "PATH": ""}, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return json.loads(ran.stdout)


def test_nothing_that_is_broken_or_lost_stops_the_rest(stack):
    stack.start("web")
    stack.start("courier", UNCONFIRMED_AFTER="1")
    worker = stack.start("worker")
    stack.ready("steady")
    broken = list(unreadable())
    send(stack, broken)
    count = len(broken) + send_raw(stack)
    healthy = submit(stack, 2, steps=2)
    until(lambda: finished(stack, healthy), 30, "the healthy jobs are done")
    entries = until(lambda: len(found := list(stack.client.quarantine())) == count and found, 30, "all are kept")
    assert {(entry["reason"], entry["queue"]) for entry in entries} == {("unreadable_message", "gen.test")}

    # As they were, and so they come back, once each.
    assert command(stack, "requeue", entries[0]["id"]) == {"id": entries[0]["id"], "task_id": None}
    until(lambda: len(list(stack.client.quarantine())) == count, 30, "it is back in quarantine")
    first, *others = command(stack, "list")["entries"]
    command(stack, "drop", first["id"])
    for entry in others:
        stack.client.drop(entry["id"])
    assert command(stack, "list") == {"entries": []}

    running = submit(stack, 4, steps=100)
    until(lambda: stack.client.task(running[0])["phase"] == "RUNNING", 30, "one runs")
    lose_all_messages(stack)
    tasks = until(lambda: finished(stack, running), 60, "every job is done though its message was lost")
    assert {(task["status"], task["attempt"]) for task in tasks} == {("SUCCEEDED", 1)}
    assert worker.process.poll() is None


def test_jobs_whose_messages_a_policy_threw_away_are_done_all_the_same(tmp_path, services):
    """One that bounds the age of messages, say, which RabbitMQ then drops to quarantine unread."""
    with on(real_services, tmp_path) as stack:
        host = unquote(urlsplit(stack.settings["BROKER_URL"]).path[1:]) or "/"
        stack.start("web")
        courier = stack.start("courier", UNCONFIRMED_AFTER="1")
        worker = stack.start("worker")
        stack.ready("steady")
        worker.process.terminate()
        assert worker.process.wait(20) == 0
        stack.roles.remove(worker)
        services("rabbitmqctl", "set_policy", "--vhost", host, "aged", ".*", '{"message-ttl": 300}')
        try:
            tickets = submit(stack, 2, steps=2)
            until(lambda: courier.wrote("quarantine.dropped_by_policy"), 30, "they were thrown away")
        finally:
            services("rabbitmqctl", "clear_policy", "--vhost", host, "aged")
        stack.start("worker-2")
        tasks = until(lambda: finished(stack, tickets), 60, "they are done")
    assert {(task["status"], task["attempt"]) for task in tasks} == {("SUCCEEDED", 1)}
