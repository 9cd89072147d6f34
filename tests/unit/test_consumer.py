"""What a worker does about a broker that has forgotten it."""

import contextlib
import socket
import ssl
from types import SimpleNamespace

from app.consumer import hang_up


def worker_on(sock):
    transport = SimpleNamespace(transport=SimpleNamespace(sock=sock))
    return SimpleNamespace(consumer=SimpleNamespace(connection=SimpleNamespace(_connection=transport)))


def test_who_reads_from_a_connection_in_tls_that_is_hung_up_meets_its_end_and_no_fault():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    ours, theirs = socket.socketpair()
    with theirs, context.wrap_socket(ours, do_handshake_on_connect=False) as wrapped:
        hang_up(worker_on(wrapped))
        # OSError is what Celery takes for a connection that was lost.
        with contextlib.suppress(OSError):
            assert wrapped.read(1) == b""


def test_where_there_is_no_connection_there_is_nothing_to_hang_up():
    hang_up(SimpleNamespace(consumer=None))
