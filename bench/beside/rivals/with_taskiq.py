"""taskiq: RabbitMQ by aio-pika, acknowledged when the result is saved, results in Redis.

Told by asking for the result, as taskiq's own clients do: every 10 ms, where the default is 200 ms.
"""

import os

from taskiq import AsyncTaskiqTask, TaskiqResultTimeoutError
from taskiq_aio_pika import AioPikaBroker
from taskiq_redis import RedisAsyncResultBackend

from bench.beside.rivals import loop, work

ASK = 0.01
results: RedisAsyncResultBackend[str] = RedisAsyncResultBackend(os.environ["BESIDE_REDIS"])
broker = AioPikaBroker(os.environ["BESIDE_BROKER"], qos=1).with_result_backend(results)
job = broker.task(task_name="job")(work.sleep)
_begun: list[bool] = []


def enqueue(task_id: str, steps: int) -> None:
    """See the package."""
    loop.run(_enqueue(task_id, steps))


def ended(task_id: str, seconds: float) -> bool:
    """See the package."""
    return bool(loop.run(_ended(task_id, seconds)))


async def _enqueue(task_id: str, steps: int) -> None:
    if not _begun:
        _begun.append(True)
        await broker.startup()
    await job.kicker().with_task_id(task_id).kiq(task_id, steps)


async def _ended(task_id: str, seconds: float) -> bool:
    task = AsyncTaskiqTask[str](task_id, results)
    if not seconds:
        return bool(await task.is_ready())
    try:
        await task.wait_result(check_interval=ASK, timeout=seconds)
    except TaskiqResultTimeoutError:
        return False
    return True
