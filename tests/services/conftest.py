"""The whole service on RabbitMQ, Redis and the GCS double, for tests that break parts of it."""

import subprocess

import pytest

from tests.backends import embedded, real_services
from tests.stack import ROOT, Stack


@pytest.fixture
def stack(tmp_path):
    """Settings for a service of its own on real services; the test starts what it needs."""
    with real_services(tmp_path) as settings:
        stack = Stack(tmp_path, **settings)
        try:
            yield stack
        finally:
            stack.stop()


@pytest.fixture
def bundled_stack(tmp_path):
    """The same on what `script/server` bundles."""
    with embedded(tmp_path) as settings:
        stack = Stack(tmp_path, **settings)
        try:
            yield stack
        finally:
            stack.stop()


@pytest.fixture
def services():
    """`services("restart", "rabbitmq")` is script/services; what is dead at the end is started again."""

    def run(*arguments):
        subprocess.run([ROOT / "script" / "services", *arguments], check=True, timeout=100)

    yield run
    run("start")
