"""Publishing while the broker hangs: many who wait at once are told as soon as one."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.broker import Broker
from app.errors import BrokerUnavailable
from app.models import load_catalogue
from app.tasks import make_celery
from tests.things import job


@pytest.fixture
def silent():
    """The port of a server that lets everybody in and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=200) as server:
        yield server.getsockname()[1]


def test_whoever_submits_while_the_broker_hangs_is_told_in_time(settings, silent):
    stuck = settings.model_copy(update={"broker_url": f"amqp://127.0.0.1:{silent}//"})
    broker = Broker(make_celery(stuck, load_catalogue(settings.models_file, ""), "web"))
    start, took = threading.Barrier(100), []

    def submit():
        start.wait(20)
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable):
            broker.publish(job())
        took.append(time.monotonic() - began)

    with ThreadPoolExecutor(100) as clients:
        for asked in [clients.submit(submit) for _ in range(100)]:
            asked.result(60)
    # One after the other, ten at a time, the last of them would wait for 6 s.
    assert max(took) < 4
