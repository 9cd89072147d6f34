"""RQ: Redis with its append-only file, three retries; told by a blocking read of the job's results."""

import os

from redis import Redis
from rq import Queue, Retry
from rq.job import Job
from rq.results import Result

from bench.beside.rivals import work

redis = Redis.from_url(os.environ["BESIDE_REDIS"])
queue = Queue("beside", connection=redis)


def enqueue(task_id: str, steps: int) -> None:
    """See the package."""
    queue.enqueue(work.sleep, task_id, steps, job_id=task_id, job_timeout=60, retry=Retry(max=3))


def ended(task_id: str, seconds: float) -> bool:
    """See the package."""
    result = Job(task_id, connection=redis).latest_result(timeout=int(seconds))
    return bool(result and result.type == Result.Type.SUCCESSFUL)
