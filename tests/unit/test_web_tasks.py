"""Looking at tasks over WSGI: one or many, while they wait and when they are done; their pictures, and what is gone."""

import dataclasses
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from app import listing
from app.errors import Internal, StorageUnavailable
from app.intake import input_name, mask_name
from app.jobs import JobStore
from app.listing import SIGNERS
from app.record import output_name
from app.web import create_app
from app.workers import WorkerState
from tests.answers import assert_problem, finished, local, queued
from tests.things import job, picture

# ---- GET /tasks/{id}


def test_a_task_that_is_not_done_asks_to_come_again(client, services):
    answer = client.get(f"/tasks/{queued(services)}")
    assert (answer.status_code, answer.json["status"], answer.headers["Retry-After"]) == (200, "PENDING", "1")


def test_the_time_left_is_that_of_all_in_front_over_all_workers_and_of_the_job_itself(client, services):
    for name in ("one", "two"):
        services.workers.announce(WorkerState(f"{name}@host", "gen.tiny", "ready", ("tiny-scenes-1",)))
    ids = [queued(services) for _ in range(5)]
    services.redis.hset("models:step_seconds", "tiny-scenes-1", "0.5")
    # Four steps of half a second; those at work are half done on average.
    assert [client.get(f"/tasks/{task_id}").json["eta_seconds"] for task_id in ids[::2]] == [3.0, 5.0, 7.0]
    answer = client.get(f"/tasks/{ids[4]}")
    assert answer.headers["Retry-After"] == "4"


@pytest.mark.parametrize(("step_seconds", "header"), [("0.001", "1"), ("5", "15"), ("1000", "30")])
def test_who_asks_is_to_come_again_after_half_the_time_within_bounds(client, services, step_seconds, header):
    services.workers.announce(WorkerState("one@host", "gen.tiny", "ready", ("tiny-scenes-1",)))
    services.redis.hset("models:step_seconds", "tiny-scenes-1", step_seconds)
    assert client.get(f"/tasks/{queued(services)}").headers["Retry-After"] == header


def test_a_running_task_tells_progress_and_attempt(client, services):
    task_id = queued(services)
    services.jobs.claim(task_id, "t1", "worker-1")
    services.jobs.renew(task_id, "t1", 3, 4)
    task = client.get(f"/tasks/{task_id}").json
    assert (task["phase"], task["attempt"], task["queue_position"]) == ("STARTING", 1, None)
    assert task["progress"] == {"value": 0.75, "step": 3, "steps": 4}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", task["attempts"][0]["started_at"])


def test_a_finished_task_tells_its_pictures_and_is_never_asked_again(client, services):
    answer = client.get(f"/tasks/{finished(services, num_images=2)}")
    task = answer.json
    assert (task["status"], task["phase"], len(task["images"]), task["metrics"]) == (
        "SUCCEEDED", "DONE", 2, {"inference_ms": 9},
    )  # fmt: skip
    assert task["image_url"] == task["images"][0]["url"]
    assert "Retry-After" not in answer.headers
    assert client.get(local(task["images"][1]["url"]), buffered=True).data == picture()


def test_a_failed_task_tells_why(client, services):
    task_id = queued(services)
    services.jobs.fail(task_id, Internal("over"))
    task = client.get(f"/tasks/{task_id}").json
    assert (task["status"], task["image_url"]) == ("FAILED", None)
    assert task["error"] == {"code": "internal", "message": "over", "retryable": True}


def test_the_picture_comes_inline_when_asked_for(client, services):
    import base64

    task = client.get(f"/tasks/{finished(services)}?include=image").json
    assert base64.b64decode(task["image_base64"]) == picture()
    assert client.get(f"/tasks/{queued(services)}?include=image").json["image_base64"] is None


def test_a_picture_that_was_not_there_to_come_inline_is_told_to_who_asks_again(client, services):
    task_id = finished(services)
    address, name = f"/tasks/{task_id}?include=image", output_name(task_id, 0)
    services.storage.delete(name)
    without = client.get(address)
    assert without.json["image_base64"] is None
    services.storage.put(name, picture(), "image/png")
    again = client.get(address, headers={"If-None-Match": without.headers["ETag"]})
    assert (again.status_code, bool(again.json["image_base64"])) == (200, True)
    assert client.get(address, headers={"If-None-Match": again.headers["ETag"]}).status_code == 304


def test_pages_that_many_read_at_once_are_signed_by_a_few(client, services, monkeypatch):
    signers, document = set(), listing.task_document

    def signed(*given):
        signers.add(threading.current_thread())
        return document(*given)

    def read(_):
        return client.application.test_client().get("/tasks").status_code

    finished(services)
    monkeypatch.setattr(listing, "task_document", signed)
    with ThreadPoolExecutor(30) as readers:
        assert set(readers.map(read, range(60))) == {200}
    assert 0 < len(signers) <= SIGNERS


@pytest.mark.parametrize("method", ["GET /tasks/nothing", "POST /tasks/nothing/start", "GET /tasks/nothing/image"])
def test_an_unknown_task_is_not_found(client, method):
    verb, path = method.split()
    assert_problem(client.open(path, method=verb), 404, "task_not_found")


def test_a_task_that_is_no_longer_kept_is_gone(client, services):
    short = JobStore(services.redis, result_ttl=0, lease=15)
    new = job()
    short.create(new)
    short.fail(new.task_id, Internal("over"))
    for path in (f"/tasks/{new.task_id}", f"/tasks/{new.task_id}/image"):
        assert_problem(client.get(path), 410, "task_expired")


@pytest.mark.parametrize("query", ["wait=-1", "wait=61", "wait=nan", "wait=x", "include=all", "wiat=5"])
def test_a_wrong_query_is_refused(client, services, query):
    answer = client.get(f"/tasks/{queued(services)}?{query}")
    errors = assert_problem(answer, 422, "invalid_request")["errors"]
    assert [error["field"] for error in errors] == [query.partition("=")[0]]


def test_a_waiting_client_has_its_answer_as_soon_as_the_task_is_done(client, services):
    task_id = queued(services)
    answers = []
    waiter = threading.Thread(target=lambda: answers.append(client.get(f"/tasks/{task_id}?wait=60").json))
    waiter.start()
    services.jobs.fail(task_id, Internal("over"))
    waiter.join(10)
    assert [answer["status"] for answer in answers] == ["FAILED"]


def test_a_waiting_client_has_its_answer_when_its_time_is_over(client, services):
    assert client.get(f"/tasks/{queued(services)}?wait=0.05").json["status"] == "PENDING"


def test_a_stream_that_is_opened_again_goes_on_after_the_last_event(client, services):
    task_id = queued(services)

    def first_event(**headers):
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with client.get(f"/tasks/{task_id}/events", headers=named, buffered=False) as answer:
            return next(answer.response).decode()

    number = re.match(r"id: (\d+)\nevent: status\n", first_event())[1]
    assert first_event(Last_Event_ID=number) == ": alive\n\n"
    for other in ("0", "none", "9" * 400):
        assert "event: status\n" in first_event(Last_Event_ID=other)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_stream_that_nobody_reads_gives_its_place_back(services, method):
    narrow = services.settings.model_copy(update={"web_threads": 1})
    client = create_app(dataclasses.replace(services, settings=narrow)).test_client()
    task_id = queued(services)
    for _ in range(3):
        with client.open(f"/tasks/{task_id}/events", method=method, buffered=False) as answer:
            assert answer.status_code == 200
    with client.open(f"/tasks/{task_id}/events", buffered=False):
        assert_problem(client.get(f"/tasks/{task_id}/events"), 429, "rate_limited")
        assert client.get(f"/tasks/{task_id}?wait=60").json["status"] == "PENDING"


def test_no_proxy_keeps_the_events_of_a_stream_back(client, services):
    with client.get(f"/tasks/{queued(services)}/events", buffered=False) as answer:
        assert answer.headers["X-Accel-Buffering"] == "no"


def test_a_filter_that_few_tasks_fit_is_looked_for_page_by_page(client, services, monkeypatch):
    monkeypatch.setattr(listing, "BATCH", 2)
    monkeypatch.setattr(listing, "MOST_BATCHES", 2)
    failed = queued(services)
    services.jobs.fail(failed, Internal("It broke."))
    for _ in range(5):
        queued(services)
    first = client.get("/tasks?status=FAILED").json
    assert (first["tasks"], bool(first["next_cursor"])) == ([], True)
    second = client.get(f"/tasks?status=FAILED&cursor={first['next_cursor']}").json
    assert ([task["task_id"] for task in second["tasks"]], second["next_cursor"]) == ([failed], None)


# ---- pictures


def test_the_image_redirects_to_a_url_that_gives_the_picture(client, services):
    answer = client.get(f"/tasks/{finished(services)}/image")
    assert answer.status_code == 302
    got = client.get(local(answer.headers["Location"]), buffered=True)
    assert (got.data, got.content_type) == (picture(), "image/png")


def test_each_of_several_images_has_its_own_address(client, services):
    task_id = finished(services, num_images=2)
    places = [client.get(f"/tasks/{task_id}/images/{index}").headers["Location"] for index in (0, 1)]
    assert [place.rpartition("/")[2] for place in places] == [f"{task_id}.png", f"{task_id}-1.png"]
    assert_problem(client.get(f"/tasks/{task_id}/images/2"), 404, "task_not_found")
    assert_problem(client.get(f"/tasks/{task_id}/images/101"), 422, "invalid_request")


def test_there_is_no_picture_before_the_task_has_succeeded(client, services):
    pending, failed = queued(services), queued(services)
    services.jobs.fail(failed, Internal("over"))
    early = client.get(f"/tasks/{pending}/image")
    assert_problem(early, 409, "not_ready")
    assert early.headers["Retry-After"]
    refused = client.get(f"/tasks/{failed}/image")
    assert_problem(refused, 409, "no_picture")
    assert ("Retry-After" in early.headers, "Retry-After" in refused.headers) == (True, False)


def test_what_a_failed_task_left_is_deleted_too(client, services, tmp_path):
    failed = queued(services, num_images=3)
    for index in range(2):
        services.storage.put(output_name(failed, index), picture(), "image/png")
    for name in (input_name(failed), mask_name(failed)):
        services.storage.put(name, picture(), "image/png")
    services.jobs.fail(failed, Internal("It broke at the third."))
    assert client.delete(f"/tasks/{failed}").status_code == 204
    assert [file for file in (tmp_path / "storage").rglob("*") if file.is_file()] == []


def test_a_deletion_that_the_bucket_did_not_answer_may_be_asked_for_again(client, services, monkeypatch):
    task_id = finished(services)

    def away(name):
        raise StorageUnavailable

    with monkeypatch.context() as outage:
        outage.setattr(services.storage, "delete", away)
        assert_problem(client.delete(f"/tasks/{task_id}"), 503, "storage_failed")
    assert client.delete(f"/tasks/{task_id}").status_code == 204
    assert services.storage.size(output_name(task_id, 0)) is None


def test_what_was_asked_for_with_a_key_and_deleted_is_gone_and_not_made_again(client, published):
    asked = {"json": {"prompt": "a red star"}, "headers": {"Idempotency-Key": "one"}}
    url = client.post("/generate", **asked).json["urls"]["self"]
    client.post(f"{url}/cancel")
    assert client.delete(url).status_code == 204
    assert_problem(client.post("/generate", **asked), 410, "task_expired")
    assert len(published) == 1
    assert "410" in client.get("/openapi.json").json["paths"]["/generate"]["post"]["responses"]


def test_a_tag_is_good_while_the_document_is(client, services):
    first, second = queued(services), queued(services)
    assert "ETag" not in client.get(f"/tasks/{second}").headers, "the line before it moves without it"
    services.jobs.claim(first, "t1", "worker-1")
    running = client.get(f"/tasks/{first}").headers["ETag"]
    assert client.get(f"/tasks/{first}", headers={"If-None-Match": running}).status_code == 304
    services.jobs.renew(first, "t1", 1, 4)
    assert client.get(f"/tasks/{first}", headers={"If-None-Match": running}).status_code == 200


def test_a_tag_ends_before_the_pictures_url_does(services):
    task_id, now = finished(services), 1_000_000.0
    tags = []
    for clock in (now, now, now + services.settings.signed_url_ttl / 2):
        web = create_app(dataclasses.replace(services, clock=lambda clock=clock: clock)).test_client()
        tags.append(web.get(f"/tasks/{task_id}").headers["ETag"])
    assert tags[0] == tags[1] != tags[2]
