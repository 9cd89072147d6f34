"""Pictures in a folder, brought and fetched by signed URLs of the web tier."""

import contextlib
import dataclasses
import json
import threading
from http.client import HTTPConnection
from wsgiref.simple_server import make_server

import pytest

from app.web import create_app
from tests.answers import assert_problem, local, upload
from tests.things import picture


def test_an_upload_may_be_repeated_while_its_url_is_good(client, services):
    path = upload(client)
    assert [client.put(path, data=picture()).status_code, client.put(path, data=b"better").status_code] == [200, 200]


def test_an_upload_larger_than_allowed_is_refused_and_leaves_nothing(services, tmp_path):
    small = services.settings.model_copy(update={"upload_max_bytes": 10})
    client = create_app(dataclasses.replace(services, settings=small)).test_client()
    path = upload(client)
    assert_problem(client.put(path, data=b"12345678901"), 413, "content_too_large")
    # Chunked: its length is not told.
    import io

    told_nothing = {"input_stream": io.BytesIO(b"12345678901"), "environ_overrides": {"wsgi.input_terminated": True}}
    assert_problem(client.put(path, **told_nothing), 413, "content_too_large")
    assert [file for file in (tmp_path / "storage").rglob("*") if file.is_file()] == []
    assert client.put(path, data=b"1234567890").status_code == 200


@contextlib.contextmanager
def listening(services):
    """The web tier on a socket, behind a server that leaves what the app does not read; its port."""
    with make_server("127.0.0.1", 0, create_app(services)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join(10)


def test_who_is_refused_while_still_sending_gets_the_reason(services):
    more_than_a_socket_holds = b"x" * (16 << 20)
    with listening(services) as port, contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request("PUT", "/files/forged/x.png", more_than_a_socket_holds)
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["code"]) == (403, "forbidden")


def test_an_upload_may_be_larger_than_a_request_of_the_api(client):
    assert client.put(upload(client), data=b"x" * 100_000).status_code == 200


def test_a_part_of_a_picture_is_not_taken_for_the_whole(client, services):
    url = services.storage.upload_url("input/part", 60, 100).url
    answer = client.put(local(url), data=b"0123456789", headers={"Content-Range": "bytes 0-9/100"})
    assert_problem(answer, 400, "invalid_request")
    assert services.storage.size("input/part") is None


@pytest.mark.parametrize(
    ("asked", "status", "told"),
    [
        ("bytes=0-3", 206, b"0123"),
        ("bytes=-2", 206, b"89"),
        ("bytes=99-", 416, None),
        ("lines=0-1", 200, b"0123456789"),
        ("bytes=a-b", 200, b"0123456789"),
        ("bytes=0-0,5-6", 200, b"0123456789"),
    ],
)
def test_one_range_of_bytes_is_heeded_and_any_other_left_aside(client, services, asked, status, told):
    services.storage.put("output/range.png", b"0123456789", "image/png")
    url = local(services.storage.download_url("output/range.png", 60))
    answer = client.get(url, headers={"Range": asked})
    assert (answer.status_code, answer.data if told else None) == (status, told)


def test_a_signed_url_whose_picture_is_gone_is_not_found(client, services):
    path = local(services.storage.download_url("output/gone.png", 60))
    assert_problem(client.get(path), 404, "not_found")


@pytest.mark.parametrize("token", ["x", "x.y.z", "é", "." * 200])
def test_a_forged_url_is_refused(client, token):
    assert_problem(client.get(f"/files/{token}/x.png"), 403, "forbidden")
    assert_problem(client.put(f"/files/{token}/x.png", data=b""), 403, "forbidden")


def test_a_picture_that_is_not_the_one_asked_for_is_a_problem_and_no_picture(client, services):
    services.storage.put("output/one.png", b"picture", "image/png")
    path = local(services.storage.download_url("output/one.png", 60))
    answer = client.get(path, headers={"If-Match": '"another"'})
    assert_problem(answer, 412, "precondition_failed")
    assert answer.headers["X-Request-ID"]
    answer.close()
