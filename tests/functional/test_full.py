"""A disk that is full, and a Redis that takes no writes: everything waits or is refused, and nothing is lost."""

import contextlib
import io

import pytest
import redis
import requests
from PIL import Image

from tests.backends import embedded, full, small_disk
from tests.stack import Stack, until

pytestmark = [pytest.mark.functional, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Small disks of their own for the store, which is the queue as well, and for the pictures."""
    folder = tmp_path_factory.mktemp("embedded")
    with small_disk(folder / "valkey", 4_000_000), small_disk(folder / "storage", 4_000_000):
        yield folder


@pytest.fixture(scope="module")
def stack(folder, tmp_path_factory):
    with embedded(folder) as settings, Stack(tmp_path_factory.mktemp("stack"), **settings) as stack:
        yield stack.start_all("steady")


def start(stack, steps):
    """The id of a job that runs, with one behind it that waits."""
    asked = {"model_version": "steady", "num_inference_steps": steps}
    tickets = [stack.client.generate("x", **asked)["task_id"] for _ in range(2)]
    until(lambda: stack.client.task(tickets[0])["phase"] == "RUNNING", 30, "it runs")
    return tickets


def refusal(stack):
    """The code of the refusal of a new job; None when it is taken."""
    answer = requests.post(f"{stack.url}/generate", json={"prompt": "x", "model_version": "steady"}, timeout=30)
    assert answer.status_code in (202, 503), answer.text
    return answer.json().get("code")


def all_succeed(stack, tickets):
    tasks = [stack.client.wait(ticket, 60) for ticket in tickets]
    assert [(task["status"], task["attempt"]) for task in tasks] == [("SUCCEEDED", 1)] * len(tickets)
    assert all(Image.open(io.BytesIO(stack.client.image(ticket))).size == (64, 64) for ticket in tickets)


def alive(stack):
    return all(role.process.poll() is None for role in stack.roles)


def test_a_picture_waits_for_room_on_its_disk_and_is_then_stored(stack, folder):
    # What another test left has ended when this has; its end would have to wait for room first.
    all_succeed(stack, [stack.client.generate("x", model_version="steady")["task_id"]])
    with full(folder / "storage"):
        tickets = start(stack, 20)
        [worker] = [role for role in stack.roles if role.name == "worker"]
        # Of a full disk the worker may have told before: Redis' own, in the other test.
        until(lambda: stack.client.task(tickets[0])["phase"] == "UPLOADING", 30, "the first picture is to be stored")
        until(lambda: worker.wrote("No space left on device"), 30, "the worker has tried")
        upload = stack.client.submit("x", model_version="steady", input_image=True)
        answer = requests.put(upload["upload_url"], data=picture(), timeout=30)
        assert (answer.status_code, answer.json()["code"]) == (503, "storage_failed")
        assert [path.name for path in (folder / "storage").rglob(".*")] == []
    all_succeed(stack, tickets)
    assert requests.put(upload["upload_url"], data=picture(), timeout=30).status_code == 200
    all_succeed(stack, [upload["task_id"]])
    assert alive(stack)


@contextlib.contextmanager
def replica(stack):
    """What a failover leaves behind: a Redis that follows one that is not there."""
    with redis.Redis.from_url(stack.settings["REDIS_URL"]) as store:
        store.replicaof("127.0.0.1", 1)
        try:
            yield
        finally:
            store.replicaof("NO", "ONE")


@pytest.mark.parametrize("fault", ["its disk is full", "it is a replica"])
def test_jobs_wait_for_a_redis_that_takes_no_writes(stack, folder, fault):
    tickets = start(stack, 60)
    with full(folder / "valkey") if fault == "its disk is full" else replica(stack):
        until(lambda: refusal(stack) == "store_unavailable", 30, "Redis takes no writes")
        assert stack.client.task(tickets[0])["phase"] == "RUNNING"
        assert stack.client.task(tickets[1])["phase"] == "QUEUED"
    all_succeed(stack, tickets)
    until(lambda: refusal(stack) is None, 30, "new jobs are taken")
    assert alive(stack)


def picture():
    target = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(target, "PNG")
    return target.getvalue()
