"""The SDK against a small server on this machine: what it sends, and how it bears what comes back."""

import json
import threading

import pytest

from app.client import ApiError, Client
from tests.stack import free_port
from tests.unit.client.service import DONE, PENDING, Server, raw, refused, says, serving

# ---- Requests


def test_the_key_goes_with_every_request_to_the_service(server, client):
    server.answers += [says({"models": []}), says({**PENDING})]
    client.models()
    client.generate("x")
    assert [headers["Authorization"] for _, _, headers, _ in server.requests] == ["Bearer dk_mine"] * 2


def test_the_key_does_not_go_to_the_bucket(server, client):
    """Neither with the upload nor with the redirect to a picture."""
    with Server() as bucket:
        thread = threading.Thread(target=bucket.serve_forever, args=(0.01,))
        thread.start()
        # Another name for this machine is another host, as a bucket is.
        elsewhere = bucket.url.replace("127.0.0.1", "localhost")
        ticket = {
            **PENDING, "upload_url": f"{elsewhere}/put", "upload_method": "PUT", "upload_headers": {"x-a": "b"},
            "upload_max_bytes": 9,
        }  # fmt: skip
        server.answers += [says(ticket, 202), says(PENDING, 202), raw(b"", 302, Location=f"{elsewhere}/get")]
        bucket.answers += [raw(b""), raw(b"picture", kind="image/png")]
        client.generate("x", input_image=b"123")
        assert client.image("t") == b"picture"
        bucket.shutdown()
        thread.join()
    assert ["Authorization" in headers for _, _, headers, _ in bucket.requests] == [False, False]
    assert (bucket.requests[0][3], bucket.requests[0][2]["x-a"]) == (b"123", "b")
    assert [path for _, path, _, _ in server.requests] == ["/generate", "/tasks/t/start", "/tasks/t/images/0"]


def test_without_a_key_none_is_sent(server):
    server.answers.append(says({"version": "1"}))
    assert Client(server.url + "/").version() == "1"
    [(_, path, headers, _)] = server.requests
    assert (path, "Authorization" in headers, headers["User-Agent"][:9]) == ("/version", False, "darkroom/")


def test_an_input_that_is_too_large_is_not_sent(server, client):
    server.answers += [says({**PENDING, "upload_url": "x", "upload_max_bytes": 2}), says(PENDING)]
    assert "3 bytes" in str(refused(client.generate, "x", input_image=b"123"))
    # Else it would be one of those that a caller may have open, until its upload's time is over.
    assert [path for _, path, _, _ in server.requests] == ["/generate", "/tasks/t/cancel"]


def test_a_picture_that_is_there_is_started_as_soon_as_the_rate_allows(server, client, monkeypatch):
    monkeypatch.setattr("app.client.PAUSE", 0.01)
    ticket = {
        **PENDING,
        "upload_url": f"{server.url}/put",
        "upload_method": "PUT",
        "upload_headers": {},
        "upload_max_bytes": 9,
    }
    busy = says({"detail": "At most 1 requests per second."}, 429, Retry_After="0")
    server.answers += [says(ticket, 202), raw(b""), busy, busy, says(PENDING, 202)]
    assert client.generate("x", input_image=b"123") == PENDING
    assert [path for _, path, _, _ in server.requests[2:]] == ["/tasks/t/start"] * 3


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_json_cannot_hold_is_not_told_of_the_service(server, client, number):
    assert "not finite" in str(refused(client.generate, "x", guidance_scale=number))
    assert server.requests == []


def test_the_idempotency_key_and_the_wishes_are_sent_as_given(server, client):
    server.answers.append(says(PENDING, 202))
    client.submit("où?", idempotency_key="one", seed=7, num_images=2)
    [(_, _, headers, body)] = server.requests
    assert headers["Idempotency-Key"] == "one"
    assert json.loads(body) == {"prompt": "où?", "seed": 7, "num_images": 2}


def test_whatever_someone_types_as_an_id_is_one_part_of_the_path(server, client):
    server.answers += [says({}, 404)] * 2
    for task_id in ("../models", "a/b?c#d"):
        refused(client.cancel, task_id)
    assert [path for _, path, _, _ in server.requests] == ["/tasks/..%2Fmodels/cancel", "/tasks/a%2Fb%3Fc%23d/cancel"]


def test_the_pages_of_a_list_are_asked_for_as_they_are_needed(server, client):
    pages = [{"tasks": [{"task_id": str(n)}], "next_cursor": str(n) if n < 2 else None} for n in range(3)]
    server.answers += [says(page) for page in pages]
    found = client.tasks(status="FAILED", model_version=None)
    assert next(found)["task_id"] == "0"
    assert len(server.requests) == 1
    assert [task["task_id"] for task in found] == ["1", "2"]
    asked = [path for _, path, _, _ in server.requests]
    assert asked[1:] == ["/tasks?cursor=0&status=FAILED", "/tasks?cursor=1&status=FAILED"]


# ---- Refusals


def test_a_refusal_carries_the_problem_the_status_and_the_time(server, client):
    problem = {"detail": "At most 2.", "code": "rate_limited"}
    server.answers.append(says(problem, 429, Retry_After="7"))
    error = refused(client.models)
    assert (str(error), error.problem, error.status, error.retry_after) == ("At most 2.", problem, 429, 7)
    assert error.is_passing


@pytest.mark.parametrize(
    ("body", "kind"), [(b"<html>", "text/html"), (b"{", "application/json"), (b"[1]", "application/json"), (b"", "")]
)
def test_a_refusal_by_something_else_names_who_refused(server, client, body, kind):
    server.answers.append(raw(body, 502, kind))
    error = refused(client.models)
    assert (str(error), error.problem, error.status) == (f"GET to {server.url.removeprefix('http://')}: 502", {}, 502)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"<html>", "text/html"),
        (b"{", "application/json"),
        (b"[]", "text/json"),
        (b"{}", "application/json"),
        (b"[" * 100_000, "application/json"),
        (b"9" * 6000, "application/json"),
    ],
)
def test_an_address_where_something_else_answers_is_told(server, client, body, kind):
    server.answers.append(raw(body, 200, kind))
    assert str(refused(client.models)) == f"{server.url} is no Darkroom: GET /models gave another document."


def test_an_event_that_is_none_of_ours_is_told(server, client):
    for data in (b"data: []\n\n", b"event: status\ndata: {}\n\n"):
        server.answers.append(raw(data, 200, "text/event-stream"))
        with pytest.raises(ApiError):
            next(client.events("t", patience=0))


def test_who_says_come_back_in_a_thousand_years_is_not_believed(server, client):
    server.answers.append(raw(b"", 503, "", **{"Retry-After": "9" * 400}))
    assert refused(client.models).retry_after is None


def test_who_sends_us_on_to_no_address_is_told(server, client):
    server.answers.append(raw(b"", 302, "", Location="http://[::1"))
    assert refused(client.models).status == 0


def test_what_is_no_key_is_refused_before_anything_is_asked(server):
    with pytest.raises(ValueError, match="no key"):
        Client(server.url, key="dk_\N{HORIZONTAL ELLIPSIS}")


@pytest.mark.parametrize("status", [403, 502])
@pytest.mark.parametrize("path", ["put?signature=hunter2", "files/hunter2/x.png"])
def test_no_signature_is_repeated_in_an_error(server, client, path, status):
    ticket = {"upload_url": f"{server.url}/{path}", "upload_method": "PUT", "upload_headers": {}}
    server.answers.append(raw(b"", status))
    assert "hunter2" not in str(refused(client.upload, {**ticket, "upload_max_bytes": 9}, b"1"))


def test_a_service_that_was_waited_for_need_not_wait_for_the_client():
    port = free_port()
    client = Client(f"http://127.0.0.1:{port}", timeout=5)
    assert refused(client.task, "t").status == 0
    with serving(port) as server:
        server.answers.append(says(DONE))
        assert client.task("t") == DONE
        assert not server.left.is_set()
        client.close()
        assert server.left.wait(5)


def test_nobody_there_is_status_0_without_the_key(server):
    error = refused(Client(f"http://127.0.0.1:{free_port()}", key="hunter2").models)
    assert (error.status, error.is_passing) == (0, True)
    assert str(error).endswith("does not answer (ConnectionError).")
    assert not Client(f"http://127.0.0.1:{free_port()}").ready()
