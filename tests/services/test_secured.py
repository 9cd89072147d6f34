"""RabbitMQ and Redis with users, passwords and TLS, as docs/security.md says: it suffices, and more is refused."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
import uuid
from pathlib import Path
from urllib.parse import urlsplit

import amqp.exceptions
import kombu
import pytest
import redis
import requests

from app import tls
from app.broker import Broker
from app.errors import BrokerUnavailable
from app.models import load_catalogue
from app.services import make_redis
from app.settings import Settings
from app.tasks import make_celery
from tests.backends import GIVEN, TLS, signed_by_itself, skip_or_fail, virtual_host
from tests.stack import ROOT, Stack, free_port, until

pytestmark = [pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(240)]
PAGE = (ROOT / "docs" / "security.md").read_text()


def stated(name):
    """What the page gives under this name: the rights that an operator copies."""
    return re.search(rf"^{name} +(.+)$", PAGE, re.MULTILINE)[1]


@pytest.fixture(scope="module")
def certificate():
    if not TLS["RABBITMQ_TLS"]:
        skip_or_fail("needs RABBITMQ_TLS: script/services starts a RabbitMQ with TLS where one is installed")
    return Path(TLS["RABBITMQ_CERTIFICATE"])


@pytest.fixture(scope="module")
def broker_url(certificate):
    """A user without any tag, who has a virtual host and in it the rights that the page states."""
    management, name, password = GIVEN["RABBITMQ_MANAGEMENT_URL"], f"limited-{uuid.uuid4().hex[:8]}", uuid.uuid4().hex
    with virtual_host() as url:
        host = urlsplit(url).path[1:]
        user = {"password": password, "tags": ""}
        requests.put(f"{management}/api/users/{name}", json=user, timeout=30).raise_for_status()
        rights = {right: stated(right) for right in ("configure", "write", "read")}
        requests.put(f"{management}/api/permissions/{host}/{name}", json=rights, timeout=30).raise_for_status()
        try:
            yield f"amqps://{name}:{password}@{TLS['RABBITMQ_TLS']}/{host}"
        finally:
            requests.delete(f"{management}/api/users/{name}", timeout=30).raise_for_status()


@pytest.fixture(scope="module")
def redis_url(certificate, tmp_path_factory):
    """A Redis of its own that speaks TLS only and knows one user, with the rights that the page states."""
    program, port, folder = shutil.which("redis-server"), free_port(), tmp_path_factory.mktemp("redis")
    if not program:
        skip_or_fail("needs redis-server: the bundled valkey is built without TLS")
    password = uuid.uuid4().hex
    (folder / "users.acl").write_text(f"user default off\nuser darkroom on >{password} {stated('user darkroom')}\n")
    command = [program, "--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    command += ["--tls-cert-file", certificate / "tls.crt", "--tls-key-file", certificate / "tls.key"]
    command += ["--tls-ca-cert-file", certificate / "tls.crt", "--tls-auth-clients", "no", "--save", ""]
    with subprocess.Popen([*command, "--aclfile", folder / "users.acl"], stdout=subprocess.DEVNULL) as server:
        url = f"rediss://darkroom:{password}@localhost:{port}/0"
        try:
            until(lambda: answers(url, certificate), 10, "redis answers")
            yield url
        finally:
            server.terminate()


def answers(url, certificate):
    with (
        contextlib.suppress(redis.ConnectionError),
        redis.Redis.from_url(url, ssl_ca_certs=certificate / "tls.crt") as r,
    ):
        return r.ping()


@pytest.fixture
def told(broker_url, redis_url):
    """Settings with this CA_FILE."""
    return lambda ca_file: Settings(
        broker_url=broker_url, redis_url=redis_url, signing_key="x" * 32, ca_file=str(ca_file)
    )


def broker(settings):
    return Broker(make_celery(settings, load_catalogue("config/models.yaml", ""), "web"))


@pytest.fixture
def stranger(tmp_path):
    """A certificate of the same name that nobody here vouches for."""
    return signed_by_itself(tmp_path, "localhost") / "tls.crt"


def test_servers_that_ca_file_does_not_vouch_for_are_refused(told, certificate, stranger):
    broker(told(certificate / "tls.crt")).check()
    with pytest.raises(BrokerUnavailable):
        broker(told(stranger)).check()
    with make_redis(told(certificate / "tls.crt"), "web") as store:
        assert store.ping()
    with make_redis(told(stranger), "web") as store, pytest.raises(redis.ConnectionError, match="certificate"):
        store.ping()


def test_the_stated_rights_suffice_for_the_life_of_a_job(broker_url, redis_url, certificate, tmp_path):
    settings = {"BROKER_URL": broker_url, "REDIS_URL": redis_url, "CA_FILE": str(certificate / "tls.crt")}
    settings |= {"STORAGE_URL": f"file://{tmp_path}/storage", "SIGNING_KEY": uuid.uuid4().hex}
    with Stack(tmp_path, **settings) as stack:
        ticket = stack.start_all("steady").client.generate("a red star", model_version="steady")
        assert stack.client.wait(ticket["task_id"], 60)["status"] == "SUCCEEDED"
        rejected(stack)
        [entry] = until(lambda: list(stack.client.quarantine()), 20, "the message is in quarantine")
        stack.client.requeue(entry["id"])
        assert doctor(stack) == {"redis": True, "broker": True}
    for role in stack.roles:
        assert [word for word in ("ACCESS_REFUSED", "NOPERM", "NOAUTH") if role.wrote(word)] == []
        assert [url for url in (broker_url, redis_url) if role.wrote(urlsplit(url).password)] == []


def doctor(stack):
    """What it says of the two servers, by name."""
    ran = subprocess.run(
        [sys.executable, "-m", "app", "doctor", "--json"],
        env={"PATH": "", **stack.settings}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    checks = json.loads(ran.stdout)["checks"]
    return {check["name"]: check["ok"] for check in checks if check["name"] in ("redis", "broker")}


def rejected(stack):
    """A message that the worker refuses to read."""
    options = tls.amqp_options(Settings(**{name.lower(): value for name, value in stack.settings.items()}))
    with kombu.Connection(stack.settings["BROKER_URL"], ssl=options["broker_use_ssl"]) as connection:
        connection.Producer().publish(
            b"garbage", exchange="gen.test", routing_key="gen.test", content_type="text/plain"
        )


def test_what_is_not_stated_is_refused(told, certificate):
    settings = told(certificate / "tls.crt")
    app = make_celery(settings, load_catalogue("config/models.yaml", ""), "web")
    with app.connection_for_write() as connection, pytest.raises(amqp.exceptions.AccessRefused):
        connection.default_channel.queue_declare("another")
    with make_redis(settings, "web") as store:
        for forbidden in (("CONFIG", "GET", "*"), ("FLUSHALL",), ("KEYS", "*"), ("SHUTDOWN",)):
            with pytest.raises(redis.exceptions.NoPermissionError):
                store.execute_command(*forbidden)
    nobody = kombu.Connection(f"amqps://nobody:x@{TLS['RABBITMQ_TLS']}//", ssl=app.conf.broker_use_ssl)
    with nobody as connection, pytest.raises(amqp.exceptions.AccessRefused):
        connection.ensure_connection(max_retries=1, timeout=2)
