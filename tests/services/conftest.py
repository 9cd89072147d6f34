"""The whole service on RabbitMQ, Redis and the GCS double, for tests that break parts of it."""

import contextlib
import subprocess

import pytest

from tests.backends import real_services
from tests.stack import ROOT, Stack


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
