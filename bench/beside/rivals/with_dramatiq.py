"""dramatiq: RabbitMQ with its confirmation, acknowledged when done, results in Redis, told by a blocking read."""

import os

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.results import ResultMissing, Results, ResultTimeout
from dramatiq.results.backends import RedisBackend

from bench.beside.rivals import work

broker = RabbitmqBroker(url=os.environ["BESIDE_BROKER"], confirm_delivery=True)
broker.add_middleware(Results(backend=RedisBackend(url=os.environ["BESIDE_REDIS"]), store_results=True))
dramatiq.set_broker(broker)
job = dramatiq.actor(work.sleep)


def enqueue(task_id: str, steps: int) -> None:
    """See the package."""
    broker.enqueue(job.message(task_id, steps).copy(message_id=task_id))


def ended(task_id: str, seconds: float) -> bool:
    """See the package."""
    message = job.message().copy(message_id=task_id)
    try:
        message.get_result(block=seconds > 0, timeout=int(1000 * seconds) or None)
    except (ResultMissing, ResultTimeout):
        return False
    return True
