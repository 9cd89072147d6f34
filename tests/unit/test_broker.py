"""Publishing while the broker hangs: many who wait at once are told as soon as one."""

import contextlib
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from app.broker import Broker, DeadLetter
from app.errors import BrokerUnavailable, NotRequeuable
from app.models import load_catalogue
from app.tasks import declare_queues, make_celery
from tests.things import job


@pytest.fixture
def silent_server():
    """Lets everybody in and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=200) as server:
        yield server


@pytest.fixture
def silent(silent_server):
    """Its port."""
    return silent_server.getsockname()[1]


def test_whoever_asks_often_whether_the_broker_answers_makes_few_connections(settings, silent_server):
    stuck = settings.model_copy(update={"broker_url": f"amqp://127.0.0.1:{silent_server.getsockname()[1]}//"})
    broker = Broker(make_celery(stuck, load_catalogue(settings.models_file, ""), "web"))

    def ask(_):
        with pytest.raises(BrokerUnavailable):
            broker.check()

    with ThreadPoolExecutor(20) as clients:
        list(clients.map(ask, range(20)))
    # Each try of one check is a connection; without an answer that is kept, each thread would make as many.
    assert 1 <= len(knocks(silent_server)) < 20


def test_a_message_whose_queue_is_served_no_more_cannot_go_back_there(settings):
    broker = Broker(make_celery(settings, load_catalogue(settings.models_file, ""), "web"))
    with pytest.raises(NotRequeuable, match="served no more"):
        broker.send_again(DeadLetter("gen.gone", b"{}", {}, "application/json", "utf-8"))


def knocks(server):
    """From where connections were made until now."""
    server.setblocking(False)
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            connection, address = server.accept()
            connection.close()
            found.append(address)
    return found


LETTER = DeadLetter("gen.tiny", b"{}", {}, "application/json", "utf-8")
WAYS = {"a job": lambda broker: broker.publish(job()), "a dead letter": lambda broker: broker.send_again(LETTER)}


@pytest.mark.parametrize("send", WAYS.values(), ids=WAYS)
def test_whoever_sends_while_the_broker_hangs_is_told_in_time(settings, silent, send):
    stuck = settings.model_copy(update={"broker_url": f"amqp://127.0.0.1:{silent}//"})
    broker = Broker(make_celery(stuck, load_catalogue(settings.models_file, ""), "web"))
    start, took = threading.Barrier(100), []

    def submit():
        start.wait(20)
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable):
            send(broker)
        took.append(time.monotonic() - began)

    with ThreadPoolExecutor(100) as clients:
        for asked in [clients.submit(submit) for _ in range(100)]:
            asked.result(60)
    # Half a second for the broker, and less for a turn: one after the other, ten at a time, the last would wait for 5.
    assert max(took) < 1.3


def test_a_worker_that_finds_no_broker_says_which_and_when_it_asks_again_and_lives(settings, monkeypatch, tmp_path):
    class Told(Exception):
        """Instead of a log line, so that the wait ends."""

    def tell(event, **fields):
        raise Told(event, fields)

    monkeypatch.setattr("app.tasks.log", SimpleNamespace(warning=tell))
    settings = settings.model_copy(update={"alive_file": str(tmp_path / "alive")})
    celery = make_celery(settings, load_catalogue(settings.models_file, ""), "worker")
    with pytest.raises(Told) as told:
        declare_queues(celery, settings)
    event, fields = told.value.args
    assert (event, fields["broker"], fields["again_in"]) == ("broker.away", "amqp://guest:**@127.0.0.1:1//", 2)
    assert "refused" in fields["reason"]
    assert (tmp_path / "alive").exists(), "an outage of the broker must not have it restarted"
