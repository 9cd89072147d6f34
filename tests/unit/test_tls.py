"""TLS to the broker and the store: both are known by name and by who vouches for them, before a password is sent."""

import socket
import ssl
import threading
from contextlib import contextmanager

import pytest
import redis
from kombu.exceptions import OperationalError

from app.models import load_catalogue
from app.services import make_redis
from app.settings import Settings
from app.tasks import make_celery
from tests.backends import signed_by_itself

KEY = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """For `localhost` and no other name, and its own authority."""
    folder = tmp_path_factory.mktemp("tls")
    return signed_by_itself(folder, "localhost", "-addext", "subjectAltName=DNS:localhost")


@pytest.fixture(scope="module")
def nameless(tmp_path_factory):
    """As Memorystore's is said to be: the address is its common name, which no client takes for a name."""
    return signed_by_itself(tmp_path_factory.mktemp("nameless"), "127.0.0.1")


@contextmanager
def server(certificate):
    """A TLS server that hangs up after the handshake; yields its port and what clients said after it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "tls.crt", certificate / "tls.key")
    heard = []

    def serve():
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(plain, server_side=True) as client:
                    heard.append(client.recv(8))
            except OSError:
                plain.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1], heard
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def settings(port, host="localhost", ca_file=""):
    return Settings(
        broker_url=f"amqps://user:pw@{host}:{port}//",
        redis_url=f"rediss://:pw@{host}:{port}/0",
        signing_key=KEY,
        ca_file=str(ca_file),
    )


def knock_at_broker(told):
    app = make_celery(told, load_catalogue("config/models.yaml", ""), "web")
    with pytest.raises((OperationalError, OSError)), app.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1, timeout=1)


def knock_at_store(told):
    with make_redis(told, "web") as client, pytest.raises(redis.ConnectionError):
        client.ping()


knocks = pytest.mark.parametrize("knock", [knock_at_broker, knock_at_store])


@knocks
def test_a_server_that_ca_file_vouches_for_is_talked_to(certificate, knock):
    with server(certificate) as (port, heard):
        knock(settings(port, ca_file=certificate / "tls.crt"))
    assert heard
    assert heard[0]


@knocks
def test_a_server_that_nobody_vouches_for_hears_nothing(certificate, knock):
    with server(certificate) as (port, heard):
        knock(settings(port))
    assert not heard


@knocks
def test_a_server_of_another_name_hears_nothing(certificate, knock):
    with server(certificate) as (port, heard):
        knock(settings(port, host="127.0.0.1", ca_file=certificate / "tls.crt"))
    assert not heard


def test_the_result_backend_of_a_worker_checks_certificates_too(certificate):
    ca_file = certificate / "tls.crt"
    app = make_celery(settings(1, ca_file=ca_file), load_catalogue("config/models.yaml", ""), "worker")
    told = app.backend.connparams
    assert (told["ssl_cert_reqs"], told["ssl_ca_certs"]) == (ssl.CERT_REQUIRED, str(ca_file))


def knock_at_results(told):
    backend = make_celery(told, load_catalogue("config/models.yaml", ""), "worker").backend
    with pytest.raises(redis.ConnectionError):
        backend.client.ping()
    backend.client.close()


@pytest.mark.parametrize("knock", [knock_at_store, knock_at_results])
@pytest.mark.parametrize(
    ("query", "by_itself", "talked_to"),
    [("?ssl_check_hostname=false", True, True), ("", True, False), ("?ssl_check_hostname=false", False, False)],
)
def test_a_store_without_a_name_is_known_by_its_authority_where_the_url_says_so(
    certificate, nameless, knock, query, by_itself, talked_to
):
    authority = nameless if by_itself else certificate
    with server(nameless) as (port, heard):
        url = f"rediss://:pw@127.0.0.1:{port}/0{query}"
        told = Settings(redis_url=url, broker_url="amqp://", signing_key=KEY, ca_file=str(authority / "tls.crt"))
        knock(told)
    assert any(heard) == talked_to
