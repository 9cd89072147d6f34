"""A Redis as broker: which messages end in quarantine, and which go back."""

import kombu.transport
import pytest

from app.broker import Broker
from app.tasks import make_celery


@pytest.fixture
def celery(settings, services, monkeypatch):
    # Where another test has spoken to a Redis without our transport, kombu goes on with its own.
    monkeypatch.delitem(kombu.transport._transport_cache, "redis", raising=False)
    embedded = settings.model_copy(update={"broker_url": settings.redis_url})
    return make_celery(embedded, services.catalogue, "web")


@pytest.fixture
def message(celery):
    """One that a consumer holds."""
    with celery.connection_for_write() as connection:
        queue = celery.amqp.queues["gen.tiny"](connection.default_channel)
        queue.declare()
        connection.Producer().publish({}, exchange=queue.exchange, routing_key=queue.routing_key)
        yield queue.get()


@pytest.mark.parametrize(("requeue", "waiting", "dead"), [(True, 1, []), (False, 0, ["gen.tiny"])])
def test_a_message_goes_back_or_into_quarantine_and_never_both(celery, message, requeue, waiting, dead):
    message.reject(requeue=requeue)
    broker = Broker(celery)
    assert broker.waiting("gen.tiny") == waiting
    assert [letter.queue for letter in broker.dead_letters(10)] == dead
