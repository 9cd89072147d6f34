"""How the SDK waits for a task, follows its events and writes its pictures."""

import contextlib
import gzip
import threading
from pathlib import Path

import pytest

from app.client import ApiError, write
from tests.stack import free_port
from tests.unit.client.service import DONE, PENDING, event, raw, refused, says, streams

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
