"""A small server on this machine in place of the service, and what it answers."""

import contextlib
import json
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from app.client import ApiError

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
