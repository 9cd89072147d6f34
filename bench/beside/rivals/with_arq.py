"""arq: Redis with its append-only file; told by asking for the result, as arq's own clients do.

It asks every 10 ms, and its worker as often for work, where the defaults are 500 ms. A job whose worker died comes back
`job_timeout` and 10 seconds after it began: with 30 here, 300 by default.
"""

import asyncio
import os
from typing import Any, ClassVar

from arq import create_pool, func
from arq.connections import ArqRedis, RedisSettings
from arq.jobs import Job

from bench.beside.rivals import loop, work

REDIS = RedisSettings.from_dsn(os.environ["BESIDE_REDIS"])
ASK = 0.01
_pools: list[ArqRedis] = []


async def sleep(_: dict[str, Any], task_id: str, steps: int) -> str:
    """The job, in a thread: it would hold the worker's loop."""
    return await asyncio.to_thread(work.sleep, task_id, steps)


class WorkerSettings:
    """What arq's worker reads."""

    functions: ClassVar = [func(sleep, name="job")]
    redis_settings = REDIS
    max_jobs = 1
    poll_delay = ASK
    job_timeout = 30


def enqueue(task_id: str, steps: int) -> None:
    """See the package."""
    loop.run(_enqueue(task_id, steps))


def ended(task_id: str, seconds: float) -> bool:
    """See the package."""
    return bool(loop.run(_ended(task_id, seconds)))


async def _enqueue(task_id: str, steps: int) -> None:
    await (await _pool()).enqueue_job("job", task_id, steps, _job_id=task_id)


async def _ended(task_id: str, seconds: float) -> bool:
    job = Job(task_id, await _pool())
    if not seconds:
        return await job.result_info() is not None
    try:
        await job.result(timeout=seconds, poll_delay=ASK)
    except TimeoutError:
        return False
    return True


async def _pool() -> ArqRedis:
    if not _pools:
        _pools.append(await create_pool(REDIS))
    return _pools[0]
