"""Requests to addresses that strangers choose: what they reach, what they never reach, and how long they may take."""

import contextlib
import datetime as dt
import http.server
import socket
import ssl
import threading
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from app import egress
from app.egress import Answer, Egress
from app.errors import AddressRefused, EgressError


class Receiver(http.server.BaseHTTPRequestHandler):
    """Notes what it gets, and answers what the server's `behave` says."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.path, dict(self.headers), body))
        self.server.behave(self)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """The client is meant to hang up on some."""


def plain(handler):
    handler.send_response(204)
    handler.end_headers()


@contextlib.contextmanager
def listening(behave=plain, tls=None):
    with Server(("127.0.0.1", 0), Receiver) as server:
        server.requests, server.behave, server.port = [], behave, server.server_address[1]
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(10)


def here(host, port):
    """A resolver to which every name is this machine."""
    return socket.getaddrinfo("127.0.0.1", port, type=socket.SOCK_STREAM)


def post(url, seconds=5, **options):
    return Egress(**{"allow_private": True, "resolve": here, **options}).post(url, b"{}", {"X-A": "1"}, seconds)


def test_a_request_arrives_as_it_was_written():
    with listening() as server:
        assert post(f"http://hooks.example:{server.port}/in?token=1").status == 204
    ((path, headers, body),) = server.requests
    assert (path, body, headers["X-A"]) == ("/in?token=1", b"{}", "1")
    assert (headers["Host"], headers["Connection"]) == (f"hooks.example:{server.port}", "close")


@pytest.mark.parametrize(
    "spelling", ["localhost", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "::ffff:127.0.0.1"]
)
def test_no_spelling_of_this_machine_gets_through_the_resolver(spelling):
    def spelt(host, port):
        return socket.getaddrinfo(spelling, port, type=socket.SOCK_STREAM)

    with listening() as server, pytest.raises(AddressRefused, match="not public"):
        post(f"https://hooks.example:{server.port}/", allow_private=False, resolve=spelt)
    assert server.requests == []


def test_one_private_address_among_public_ones_refuses_all():
    def mixed(host, port):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in ("93.184.216.34", "10.0.0.1")]

    with pytest.raises(AddressRefused):
        post("https://hooks.example/", allow_private=False, resolve=mixed)


@pytest.fixture
def connections(monkeypatch):
    """Where sockets are connected to; none of them gets there."""
    seen = []

    class Nowhere(socket.socket):
        def connect(self, place):
            seen.append(place)
            raise ConnectionRefusedError

    monkeypatch.setattr(egress.socket, "socket", Nowhere)
    return seen


def test_a_name_that_changes_its_address_reaches_only_what_was_checked(connections):
    answers = iter(["93.184.216.34", "127.0.0.1", "127.0.0.1"])

    def rebinding(host, port):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    with pytest.raises(EgressError, match="refused"):
        post("https://hooks.example/", allow_private=False, resolve=rebinding)
    assert connections == [("93.184.216.34", 443)]
    assert next(answers) == "127.0.0.1", "asked once"
    with pytest.raises(AddressRefused):
        post("https://hooks.example/", allow_private=False, resolve=rebinding)
    assert len(connections) == 1


def test_a_name_with_many_addresses_is_not_tried_for_ever(connections):
    def many(host, port):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"93.184.216.{n}", port)) for n in range(1, 100)]

    with pytest.raises(EgressError):
        post("https://hooks.example/", allow_private=False, resolve=many)
    assert len(connections) == egress.MOST_ADDRESSES


@pytest.fixture
def mute():
    """An address where nobody answers who knocks: as many knock already as may."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, contextlib.ExitStack() as knocking:
        with contextlib.suppress(TimeoutError):
            while True:
                knocking.enter_context(socket.create_connection(server.getsockname(), 0.2))
        yield server.getsockname()


def test_an_address_that_does_not_answer_leaves_the_next_one_its_turn(mute):
    def two(host, port):
        return [*here(*mute), *here(host, port)]

    with listening() as server:
        assert post(f"http://hooks.example:{server.port}/", seconds=2, resolve=two).status == 204


@pytest.mark.parametrize("status", [200, 299, 301, 302, 410, 500])
def test_every_answer_is_an_answer_and_a_redirect_leads_nowhere(status):
    def answer(handler):
        handler.send_response(status)
        handler.send_header("Location", "/elsewhere")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    with listening(answer) as server:
        assert post(f"http://hooks.example:{server.port}/").status == status
    assert len(server.requests) == 1


def test_what_the_receiver_asks_for_is_read():
    def busy(handler):
        handler.send_response(503)
        handler.send_header("Retry-After", "120")
        handler.end_headers()

    with listening(busy) as server:
        assert post(f"http://hooks.example:{server.port}/") == egress.Answer(503, "120")


def test_the_environment_brings_no_proxy(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with listening() as server:
        assert post(f"http://hooks.example:{server.port}/").status == 204


def silent(handler):
    handler.server.released.wait(20)


def trickling(handler):
    with contextlib.suppress(OSError):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-A: ")
        while not handler.server.released.wait(0.05):
            handler.wfile.write(b"x")


@pytest.mark.parametrize("behave", [silent, trickling])
def test_the_time_is_for_everything_together(behave):
    with listening(behave) as server:
        server.released = threading.Event()
        started = time.monotonic()
        with pytest.raises(EgressError, match=r"no answer within 0\.5 s"):
            post(f"http://hooks.example:{server.port}/", seconds=0.5)
        assert time.monotonic() - started < 2
        server.released.set()


def test_a_resolver_that_hangs_is_given_up_on():
    released = threading.Event()

    def hanging(host, port):
        released.wait(20)
        return here(host, port)

    with pytest.raises(EgressError, match="no answer"):
        post("http://hooks.example:1/", seconds=0.2, resolve=hanging)
    released.set()


def test_a_body_without_an_end_is_not_read():
    def endless(handler):
        handler.send_response(200)
        handler.end_headers()
        with contextlib.suppress(OSError):
            while True:
                handler.wfile.write(b"x" * 65536)

    with listening(endless) as server:
        assert post(f"http://hooks.example:{server.port}/").status == 200


@pytest.mark.parametrize("number", [100, 102, 103])
def test_an_answer_before_the_answer_is_not_the_answer(number):
    def hint(handler):
        handler.wfile.write(b"HTTP/1.1 %d Wait\r\nLink: </a>\r\n\r\n" % number * 2)
        handler.wfile.write(b"HTTP/1.1 204 Done\r\nRetry-After: 7\r\n\r\n")

    with listening(hint) as server:
        assert post(f"http://hooks.example:{server.port}/") == Answer(204, "7")


@pytest.mark.parametrize("line", [b"X-A: " + b"x" * 1000 + b"\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_a_head_without_an_end_is_refused(line):
    def endless(handler):
        handler.wfile.write(b"HTTP/1.1 100 Continue\r\n")
        with contextlib.suppress(OSError):
            for _ in range(10_000):
                handler.wfile.write(line)

    with listening(endless) as server, pytest.raises(EgressError, match=r"too long|no HTTP"):
        post(f"http://hooks.example:{server.port}/")


@pytest.mark.parametrize(
    ("said", "reason"),
    [(b"", "closed without an answer"), (b"SSH-2.0-sesame\r\n", "no HTTP"), (b"\x00" * 100, "no HTTP")],
)
def test_what_is_no_http_is_told_in_our_own_words(said, reason):
    def talk(handler):
        handler.wfile.write(said)
        handler.close_connection = True

    with listening(talk) as server, pytest.raises(EgressError, match=reason) as failure:
        post(f"http://hooks.example:{server.port}/")
    assert "sesame" not in str(failure.value)


def test_who_is_not_there_is_told_apart():
    def unknown(host, port):
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    with pytest.raises(EgressError, match="refused"):
        post("http://hooks.example:1/")
    with pytest.raises(EgressError, match="not found"):
        post("http://hooks.example/", resolve=unknown)


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """A certificate authority of its own: how to trust it, and a server's context for a host name."""
    key, now = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "An authority of these tests")])
    folder = tmp_path_factory.mktemp("authority")

    def certificate(subject, public_key, *extensions):
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(name).public_key(public_key)
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - dt.timedelta(hours=1))
        builder = builder.not_valid_after(now + dt.timedelta(hours=1))
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def serve(host):
        own = ec.generate_private_key(ec.SECP256R1())
        leaf = certificate(x509.Name([]), own.public_key(), x509.SubjectAlternativeName([x509.DNSName(host)]))
        private = own.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path = folder / f"{host}.pem"
        path.write_bytes(private + leaf)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context

    root = certificate(name, key.public_key(), x509.BasicConstraints(ca=True, path_length=None))
    return root.decode(), serve


def trusting(root):
    return ssl.create_default_context(cadata=root)


def test_tls_is_spoken_with_the_name_of_the_url_though_an_address_is_connected_to(authority):
    root, serve = authority
    with listening(tls=serve("hooks.example")) as server:
        assert post(f"https://hooks.example:{server.port}/", tls=trusting(root)).status == 204
        assert post(f"https://hooks.example.:{server.port}/", tls=trusting(root)).status == 204
    assert len(server.requests) == 2


def test_a_certificate_for_another_name_is_refused(authority):
    root, serve = authority
    with listening(tls=serve("other.example")) as server, pytest.raises(EgressError, match="certificate"):
        post(f"https://hooks.example:{server.port}/", tls=trusting(root))
    assert server.requests == []


def test_a_certificate_of_an_unknown_authority_is_refused(authority):
    _, serve = authority
    with listening(tls=serve("hooks.example")) as server, pytest.raises(EgressError, match="certificate"):
        post(f"https://hooks.example:{server.port}/")
    assert server.requests == []


def test_a_server_without_tls_is_told(authority):
    with listening() as server, pytest.raises(EgressError, match=r"TLS|no answer|broke"):
        post(f"https://hooks.example:{server.port}/", seconds=2)
