"""The whole service, once on what `script/server` bundles and once on RabbitMQ, Redis and Google Cloud Storage."""

import pytest

from tests.backends import embedded, real_services
from tests.stack import Stack


@pytest.fixture(scope="session", params=["embedded", "services"])
def backend(request, tmp_path_factory):
    """The URLs of one set of backends, as settings."""
    make = embedded if request.param == "embedded" else real_services
    with make(tmp_path_factory.mktemp(request.param)) as settings:
        yield settings


@pytest.fixture(scope="session")
def stack(backend, tmp_path_factory):
    """One web process, one worker, one courier."""
    with Stack(tmp_path_factory.mktemp("stack"), **backend) as stack:
        yield stack.start_all("steady", "raises")


@pytest.fixture
def client(stack):
    return stack.client
