"""The small server, and a client of it."""

import pytest

from app.client import Client
from tests.unit.client.service import serving


@pytest.fixture
def server():
    with serving() as server:
        yield server


@pytest.fixture
def client(server):
    client = Client(server.url, timeout=5, key="dk_mine")
    yield client
    client.close()
