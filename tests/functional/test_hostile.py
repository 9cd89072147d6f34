"""What a hostile client sends to the running web tier, byte by byte: gunicorn, nothing in between."""

import re
import socket
import uuid
from urllib.parse import urlsplit

import pytest
import requests

pytestmark = pytest.mark.functional

NEXT = "GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n"
ENDED = f"\r\n\r\n0\r\n\r\n{NEXT}"

# Each could be read as one request or as two.
SMUGGLED = {
    "a length and chunks": f"Content-Length: 4\r\nTransfer-Encoding: chunked{ENDED}",
    "chunks and a length": f"Transfer-Encoding: chunked\r\nContent-Length: 4{ENDED}",
    "chunks twice": f"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked{ENDED}",
    "a list of encodings": f"Transfer-Encoding: chunked, identity{ENDED}",
    "an unknown encoding": f"Transfer-Encoding: xchunked{ENDED}",
    "an encoding after a control character": f"Transfer-Encoding: \x0bchunked{ENDED}",
    "two lengths": f"Content-Length: 0\r\nContent-Length: 4\r\n\r\n{NEXT}",
    "a list of lengths": f"Content-Length: 0, 0\r\n\r\n{NEXT}",
    "a length with a sign": f"Content-Length: +0\r\n\r\n{NEXT}",
    "a space before the colon": f"Content-Length : 0\r\n\r\n{NEXT}",
    "a folded line": f"X-A: b\r\n Content-Length: 9\r\n\r\n{NEXT}",
    "a folded encoding": f"Transfer-Encoding:\r\n chunked{ENDED}",
    "a bare line feed": f"X-A: b\nTransfer-Encoding: chunked{ENDED}",
    "a bare carriage return": f"X-A: b\rTransfer-Encoding: chunked{ENDED}",
    "a zero byte": f"X-A: b\0c\r\n\r\n{NEXT}",
    "two hosts": f"Host: evil.example\r\n\r\n{NEXT}",
}
CHUNKS = [
    "ZZ\r\n\r\n",
    "0x0\r\n\r\n",
    "+0\r\n\r\n",
    "0\n\n",
    "0;a\nb\r\n\r\n",
    "1\r\nXX0\r\n\r\n",
    "2\r\n{}\r\n0\r\nbad\r\n\r\n",
]


def said(stack, text):
    """Everything that is answered to these bytes until the connection is closed, and the statuses in it."""
    with socket.create_connection(("127.0.0.1", stack.port), timeout=10) as connection:
        connection.sendall(text.encode("latin-1"))
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    return answer, [int(status) for status in re.findall(rb"HTTP/1.1 (\d+) ", answer)]


@pytest.mark.parametrize("how", SMUGGLED)
def test_a_request_that_could_be_read_in_two_ways_is_refused_and_the_connection_closed(stack, how):
    _, statuses = said(stack, f"POST /tasks/x/cancel HTTP/1.1\r\nHost: localhost\r\n{SMUGGLED[how]}")
    assert statuses in ([400], [501])


@pytest.mark.parametrize(
    "head",
    [
        "GET /tasks HTTP/1.1\r\nHost: localhost\r\nAuthorization Bearer {}",
        "GET  /files/{}/x.png HTTP/1.1\r\nHost: localhost",
        '{{"prompt": "{}"}}',
        '{{"prompt":"{}"}}',
        'POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n{{"prompt": "{}"}}',
        "GET /version HTTP/{}\r\nHost: localhost",
    ],
)
def test_nothing_of_a_head_that_cannot_be_read_is_in_a_log(stack, head):
    secret, web = uuid.uuid4().hex, stack.roles[0]
    before = web.log.read_text().count("Invalid request from")
    said(stack, head.format(secret) + "\r\n\r\n")
    assert web.log.read_text().count("Invalid request from") > before
    assert not web.wrote(secret)


@pytest.mark.parametrize("host", ["[::::]", "[1:2:3:4:5:6:7:8:9]", "[zz]", "[::1", "evil.example"])
def test_a_host_that_is_none_is_a_bad_request(stack, host):
    answer, statuses = said(stack, f"GET /version HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
    assert statuses == [400]
    assert b"application/problem+json" in answer


@pytest.mark.parametrize("chunks", CHUNKS)
def test_a_body_of_broken_chunks_is_a_bad_request_and_nothing_after_it_is_read(stack, chunks):
    head = "POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked"
    answer, statuses = said(stack, f"{head}\r\n\r\n{chunks}{NEXT}")
    assert statuses == [400]
    assert b"application/problem+json" in answer


@pytest.mark.parametrize(
    "name", ["Script_Name: /tasks", "Path_Info: /tasks", "Remote_User: boss", "X_Request_ID: mine"]
)
def test_a_header_that_poses_as_the_servers_own_word_is_not_heard(stack, name):
    answer, statuses = said(stack, f"GET /version HTTP/1.1\r\nHost: localhost\r\n{name}\r\nConnection: close\r\n\r\n")
    assert statuses == [200]
    assert b"mine" not in answer


@pytest.mark.parametrize("header", ["X-Request-ID", "Idempotency-Key"])
@pytest.mark.parametrize("value", ["a\rX-Evil: 1", "a\nX-Evil: 1", "a\0b", "a\x85X-Evil: 1", "x" * 300])
def test_no_header_that_comes_in_becomes_another_that_goes_out(stack, header, value):
    body = '{"prompt": 1}'
    head = f"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{header}: {value}\r\n"
    answer, [status] = said(stack, f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}")
    assert status in (400, 422)
    assert b"evil" not in answer.lower()


def test_what_a_client_writes_comes_back_as_data_and_never_as_a_header(stack):
    reference = "a\r\nX-Evil: 1\r\n\r\n<script>alert(1)</script>"
    answer = requests.post(f"{stack.url}/generate", json={"prompt": "x", "client_ref": reference}, timeout=10)
    assert (answer.json()["client_ref"], answer.headers["Content-Type"]) == (reference, "application/json")
    assert "X-Evil" not in answer.headers
    stack.client.cancel(answer.json()["task_id"])


@pytest.mark.parametrize("backend", ["embedded"], indirect=True)
def test_an_upload_that_breaks_off_is_no_picture(stack):
    ticket = stack.client.submit("x", input_image=True, model_version="steady")
    path = urlsplit(ticket["upload_url"]).path
    for length, body in (("Content-Length: 100", "abc"), ("Transfer-Encoding: chunked", "5\r\nabcde\r\n")):
        with socket.create_connection(("127.0.0.1", stack.port), timeout=10) as connection:
            connection.sendall(f"PUT {path} HTTP/1.1\r\nHost: localhost\r\n{length}\r\n\r\n{body}".encode())
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(12) == b"HTTP/1.1 400"
    assert stack.client.task(ticket["task_id"])["phase"] == "AWAITING_UPLOAD"
    stack.client.cancel(ticket["task_id"])
