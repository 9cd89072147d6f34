"""The SDK against a small server on this machine: what it sends, how it bears what comes back, what it writes."""

import contextlib
import gzip
import json
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from app.client import ApiError, Client, write
from tests.stack import free_port

DONE = {"task_id": "t", "status": "SUCCEEDED"}
PENDING = {"task_id": "t", "status": "PENDING"}


class Server(ThreadingHTTPServer):
    """Answers with what `answers` holds, in its order, and notes what it was asked."""

    daemon_threads = True

    def __init__(self, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.answers = deque()
        self.left = threading.Event()
        self.requests = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_):
        """A client that goes is no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.command, self.path, dict(self.headers), body))
        self.server.answers.popleft()(self)

    do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815, the names that the library calls

    def finish(self):
        super().finish()
        self.server.left.set()

    def log_message(self, *_):
        """Quiet."""


@contextlib.contextmanager
def serving(port=0):
    with Server(port) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server():
    with serving() as server:
        yield server


@pytest.fixture
def client(server):
    client = Client(server.url, timeout=5, key="dk_mine")
    yield client
    client.close()


def says(document, status=200, **headers):
    """An answer in JSON."""
    kind = "application/json" if status < 400 else "application/problem+json"
    return raw(json.dumps(document).encode(), status, kind, **headers)


def raw(body, status=200, kind="application/json", **headers):
    def answer(handler):
        handler.send_response(status)
        told = {"Content-Type": kind, "Content-Length": str(len(body)), **headers}
        for name, value in told.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def streams(*pieces, chunked=True, ends=True, **headers):
    """Server-sent events in these pieces; without `ends` the connection breaks after them."""

    def answer(handler):
        handler.send_response(200)
        told = {"Content-Type": "text/event-stream", "Connection": "close", **headers}
        if chunked:
            told["Transfer-Encoding"] = "chunked"
        for name, value in told.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        for piece in pieces:
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
            handler.wfile.flush()
        if chunked and ends:
            handler.wfile.write(b"0\r\n\r\n")
        handler.close_connection = True

    return answer


def event(kind, data, number=1):
    return f"id: {number}\nevent: {kind}\ndata: {json.dumps(data)}\n\n".encode()


def refused(call, *arguments, **options):
    with pytest.raises(ApiError) as refusal:
        call(*arguments, **options)
    return refusal.value


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


# ---- Waiting


def test_waiting_heeds_a_plea_to_ask_less_often(server, client):
    server.answers += [says({}, 429, Retry_After="0"), says(PENDING), says(DONE)]
    assert client.wait("t", 10) == DONE


def test_waiting_outlasts_a_service_that_restarts(server, client, monkeypatch):
    monkeypatch.setattr("app.client.PAUSE", 0.01)
    server.answers += [says({}, 503), raw(b"", 502), says(PENDING), says(DONE)]
    assert client.wait("t", 10) == DONE


def test_waiting_ends_with_its_time(server, client):
    server.answers += [says(PENDING)] * 1000
    assert str(refused(client.wait, "t", 0.05)) == "Task t is not done after 0.05 s."


def test_another_refusal_ends_the_waiting(server, client):
    server.answers.append(says({"detail": "Gone."}, 410))
    assert refused(client.wait, "t", 10).status == 410


# ---- Events


def test_events_come_one_by_one_until_the_end(server, client):
    progress = event("progress", {"step": 1, "steps": 2}, 2)
    server.answers.append(streams(event("status", PENDING, 1), b": alive\n\n", progress, event("status", DONE, 3)))
    seen = [(e.kind, e.id, e.is_last) for e in client.events("t")]
    assert seen == [("status", "1", False), ("progress", "2", False), ("status", "3", True)]


@pytest.mark.parametrize("chunked", [True, False])
def test_events_may_be_cut_anywhere(server, client, chunked):
    whole = event("status", {**PENDING, "name": "où"}) + event("status", DONE)
    pieces = [whole[i : i + 1] for i in range(len(whole))]
    server.answers.append(streams(*pieces, chunked=chunked))
    assert [e.data["status"] for e in client.events("t")] == ["PENDING", "SUCCEEDED"]


def test_events_may_end_their_lines_like_the_web_does_and_be_compressed(server, client):
    text = (event("status", PENDING) + event("status", DONE)).replace(b"\n", b"\r\n")
    server.answers.append(streams(gzip.compress(text), Content_Encoding="gzip"))
    assert len(list(client.events("t"))) == 2


def test_an_event_is_there_before_the_next_one_is_sent(server, client):
    told = threading.Event()

    def answer(handler):
        streams(event("status", PENDING), ends=False)(handler)
        assert told.wait(10)
        last = event("status", DONE)
        handler.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(last), last))

    server.answers.append(answer)
    events = client.events("t")
    assert next(events).data == PENDING
    told.set()
    assert next(events).data == DONE


@pytest.mark.parametrize("ends", [True, False])
def test_a_stream_that_breaks_is_opened_again_where_it_was(server, client, monkeypatch, ends):
    monkeypatch.setattr("app.client.PAUSE", 0.01)
    server.answers += [streams(event("status", PENDING, 5), ends=ends), streams(event("status", DONE, 6))]
    assert [e.id for e in client.events("t")] == ["5", "6"]
    assert [headers.get("Last-Event-ID") for _, _, headers, _ in server.requests] == [None, "5"]


def test_a_service_that_restarts_is_waited_for(server, client, monkeypatch):
    monkeypatch.setattr("app.client.PAUSE", 0.01)
    server.answers += [says({}, 503), raw(b"", 502), streams(event("status", DONE))]
    assert [e.data for e in client.events("t")] == [DONE]


def test_patience_begins_when_a_quiet_stream_breaks_not_when_it_was_opened(server, client, monkeypatch):
    monkeypatch.setattr("app.client.PAUSE", 0.01)
    told = threading.Event()
    monkeypatch.setattr("app.client.time.monotonic", lambda: 1000 if told.is_set() else 0)

    def quiet(handler):
        streams(event("status", PENDING), ends=False)(handler)
        assert told.wait(10)
        handler.wfile.write(b"9\r\n: alive\n\n\r\n")

    server.answers += [quiet, says({}, 503), streams(event("status", DONE))]
    events = client.events("t", patience=60)
    assert next(events).data == PENDING
    told.set()
    assert next(events).data == DONE


def test_patience_has_an_end(server, client, monkeypatch):
    monkeypatch.setattr("app.client.PAUSE", 0.01)
    server.answers += [says({"detail": "Away."}, 503)] * 1000
    assert str(refused(list, client.events("t", patience=0.1))) == "Away."


@pytest.mark.parametrize("status", [401, 404, 410])
def test_a_refusal_that_does_not_pass_ends_the_events(server, client, status):
    server.answers.append(says({"detail": "No."}, status))
    assert refused(list, client.events("t")).status == status


# ---- Files


def test_a_picture_is_written_whole_and_its_folder_made(server, client, tmp_path):
    server.answers.append(raw(b"picture"))
    path = client.save("t", tmp_path / "a" / "b.png", 2)
    assert path.read_bytes() == b"picture"
    assert server.requests[0][1] == "/tasks/t/images/2"
    assert list(path.parent.iterdir()) == [path]


def test_a_file_is_written_over_only_when_told(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("mine")
    with pytest.raises(FileExistsError):
        write(path, b"new", overwrite=False)
    assert path.read_text() == "mine"
    write(path, b"new", overwrite=True)
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_device_keeps_its_place():
    with pytest.raises(OSError, match="No space left"):
        write(Path("/dev/full"), b"new", overwrite=True)
    write(Path("/dev/null"), b"new", overwrite=True)
    assert not Path("/dev/null").is_file()


def test_a_picture_that_does_not_come_leaves_no_file(server, client, tmp_path):
    server.answers.append(says({"detail": "No picture."}, 409))
    with contextlib.suppress(ApiError):
        client.save("t", tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_is_there_is_waited_for_while_the_service_asks_for_patience(client, server):
    busy = says({"detail": "At most 10 requests per second."}, 429, **{"Retry-After": "0"})
    server.answers.extend([busy, raw(b"PNG", kind="image/png")])
    assert client.image("t") == b"PNG"


def test_a_picture_that_is_not_there_is_not_waited_for(client, server):
    server.answers.append(says({"detail": "The task is not done."}, 409))
    with pytest.raises(ApiError, match="not done"):
        client.image("t")


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_no_proxy_stands_before_this_machine(client, server, monkeypatch, name):
    monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    server.answers.append(says(DONE))
    assert client.task("t") == DONE
