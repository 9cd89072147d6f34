"""Plain Celery: RabbitMQ with the broker's confirmation, acknowledged late, results in Redis, told by their channel."""

import os

from celery import Celery
from celery.exceptions import TimeoutError as NotYet

from bench.beside.rivals import work

app = Celery("beside", broker=os.environ["BESIDE_BROKER"], backend=os.environ["BESIDE_REDIS"])
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    broker_transport_options={"confirm_publish": True},
    broker_connection_retry_on_startup=True,
)
job = app.task(work.sleep, name="job")


def enqueue(task_id: str, steps: int) -> None:
    """See the package."""
    job.apply_async((task_id, steps), task_id=task_id)


def ended(task_id: str, seconds: float) -> bool:
    """See the package."""
    result = app.AsyncResult(task_id)
    if not seconds:
        return bool(result.successful())
    try:
        result.get(timeout=seconds)
    except NotYet:
        return False
    return True
