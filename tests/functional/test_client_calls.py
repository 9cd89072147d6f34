"""Cancel, rerun, list, delete, repeat, watch: what a client may do with its tasks."""

import base64
import io
import json
import threading
import time
import uuid

import pytest
import requests
from PIL import Image

from tests.stack import until

pytestmark = [pytest.mark.functional, pytest.mark.services]

LONG, SHORT = 300, 2


def submit(stack, steps=SHORT, **fields):
    body = {"prompt": "x", "model_version": "steady", "num_inference_steps": steps, **fields}
    return requests.post(f"{stack.url}/generate", json=body, timeout=10).json()


def call(stack, method, ticket, action="", **options):
    path = f"/tasks/{ticket['task_id']}{action}"
    return requests.request(method, stack.url + path, **{"timeout": 70, "allow_redirects": False, **options})


def running(stack, ticket):
    return until(lambda: call(stack, "GET", ticket).json()["phase"] == "RUNNING", 60, "it runs")


def test_a_running_task_is_canceled_at_its_next_step(stack):
    ticket = submit(stack, LONG)
    running(stack, ticket)
    call(stack, "POST", ticket, "/cancel")
    task = call(stack, "GET", ticket, "?wait=5").json()
    assert (task["status"], task["error"]["code"]) == ("FAILED", "canceled")
    assert call(stack, "GET", ticket, "/image").status_code == 409


def test_a_queued_task_is_canceled_at_once_and_never_runs(stack):
    first, second = submit(stack, LONG), submit(stack)
    assert call(stack, "POST", second, "/cancel").json()["error"]["code"] == "canceled"
    call(stack, "POST", first, "/cancel")
    after = submit(stack)
    assert call(stack, "GET", after, "?wait=60").json()["status"] == "SUCCEEDED"
    assert call(stack, "GET", second).json()["attempts"] == []


def test_cancel_says_the_same_again_and_leaves_a_finished_task_alone(stack):
    ticket = submit(stack)
    assert call(stack, "GET", ticket, "?wait=60").json()["status"] == "SUCCEEDED"
    assert call(stack, "POST", ticket, "/cancel").json()["status"] == "SUCCEEDED"
    assert call(stack, "POST", ticket, "/cancel").status_code == 200


def test_a_rerun_is_the_same_picture_under_a_new_ticket(stack):
    ticket = submit(stack)
    call(stack, "GET", ticket, "?wait=60")
    again = call(stack, "POST", ticket, "/rerun")
    assert (again.status_code, again.json()["rerun_of"]) == (202, ticket["task_id"])
    task = call(stack, "GET", again.json(), "?wait=60").json()
    assert task["task_id"] != ticket["task_id"]
    assert task["images"][0]["sha256"] == call(stack, "GET", ticket).json()["images"][0]["sha256"]


def test_a_deleted_task_is_gone_with_its_picture(stack):
    ticket = submit(stack)
    picture = call(stack, "GET", ticket, "?wait=60").json()["image_url"]
    assert call(stack, "DELETE", ticket).status_code == 204
    assert (call(stack, "GET", ticket).status_code, call(stack, "DELETE", ticket).status_code) == (410, 410)
    assert requests.get(picture, timeout=10).status_code == 404
    listed = requests.get(f"{stack.url}/tasks?limit=100", timeout=10).json()["tasks"]
    assert ticket["task_id"] not in {task["task_id"] for task in listed}


def test_a_task_under_way_cannot_be_deleted(stack):
    ticket = submit(stack, LONG)
    assert call(stack, "DELETE", ticket).status_code == 409
    call(stack, "POST", ticket, "/cancel")


def test_the_list_goes_back_page_by_page_and_misses_nothing(stack):
    tickets = [submit(stack)["task_id"] for _ in range(7)]
    seen, cursor = [], ""
    while cursor is not None:
        url = f"{stack.url}/tasks?limit=3&model_version=steady" + (f"&cursor={cursor}" if cursor else "")
        page = requests.get(url, timeout=10).json()
        seen += [task["task_id"] for task in page["tasks"]]
        cursor = page["next_cursor"]
    assert seen[:7] == tickets[::-1]
    assert len(seen) == len(set(seen))


def test_the_list_can_be_asked_for_one_status(stack):
    call(stack, "GET", submit(stack, model_version="raises"), "?wait=60")
    tasks = requests.get(f"{stack.url}/tasks?status=FAILED", timeout=10).json()["tasks"]
    assert {task["status"] for task in tasks} == {"FAILED"}


def test_the_same_key_and_request_are_one_task(stack):
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    body = {"prompt": "x", "model_version": "steady"}
    answers = [requests.post(f"{stack.url}/generate", json=body, headers=headers, timeout=10) for _ in range(3)]
    assert len({answer.json()["task_id"] for answer in answers}) == 1
    assert [answer.headers.get("Idempotency-Replayed") for answer in answers] == [None, "true", "true"]
    other = requests.post(f"{stack.url}/generate", json={**body, "prompt": "y"}, headers=headers, timeout=10)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reuse")


def test_who_has_the_current_document_is_told_so(stack):
    ticket = submit(stack)
    answer = call(stack, "GET", ticket, "?wait=60")
    again = call(stack, "GET", ticket, headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_a_task_that_waits_says_when_it_will_be_done(stack):
    call(stack, "GET", submit(stack, 100), "?wait=60")
    tickets = [submit(stack, 100) for _ in range(3)]
    last = call(stack, "GET", tickets[-1]).json()
    started = time.monotonic()
    assert last["queue_position"] >= 1
    call(stack, "GET", tickets[-1], "?wait=60")
    assert 0.4 < last["eta_seconds"] / (time.monotonic() - started) < 2.5


def test_events_tell_a_task_from_its_ticket_to_its_picture(stack):
    ticket = submit(stack, 100)
    events = list(read_events(call(stack, "GET", ticket, "/events", stream=True)))
    assert [event["kind"] for event in events if event["kind"] != "status"].count("progress") > 10
    phases = [event["data"]["phase"] for event in events if event["kind"] == "status"]
    assert phases[-1] == "DONE"
    assert phases == sorted(phases, key=["QUEUED", "STARTING", "RUNNING", "UPLOADING", "DONE"].index)
    assert [int(e["id"]) for e in events] == sorted(int(e["id"]) for e in events)


def test_who_follows_a_running_task_sees_what_becomes_of_it(stack):
    ticket = submit(stack, LONG, seed=255, width=256)
    with call(stack, "GET", ticket, "/events", stream=True) as answer:
        event = next(event for event in read_events(answer) if event["kind"] == "preview")
    with Image.open(io.BytesIO(base64.b64decode(event["data"]["preview"]))) as preview:
        assert (preview.format, preview.size) == ("JPEG", (256, 64))
        assert preview.getpixel((10, 10))[0] > 240
    assert call(stack, "POST", ticket, "/cancel").json()["phase"] == "RUNNING"


def read_events(answer):
    event = {}
    for line in answer.iter_lines(decode_unicode=True):
        name, _, value = line.partition(": ")
        if name == "event":
            event["kind"] = value
        elif name in ("id", "data"):
            event[name] = json.loads(value)
        elif not line and event:
            yield event
            event = {}


def test_everyone_who_waits_is_told(stack):
    ticket, answers = submit(stack, 100), []
    threads = [
        threading.Thread(target=lambda: answers.append(call(stack, "GET", ticket, "?wait=60").json()["status"]))
        for _ in range(30)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == ["SUCCEEDED"] * 30
