"""The caller's own tasks, newest first, a page at a time."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from app.documents import task_document
from app.errors import InvalidRequest, TaskExpired, TaskNotFound
from app.record import Job
from app.schemas import Task, TaskList, TaskListQuery
from app.services import Services

BATCH = 100
# A filter that hardly any of very many tasks fits is looked for in so many batches; the cursor leads on.
MOST_BATCHES = 10
# Without a key of our own Google is asked to sign each picture's URL (storage.py): for so many tasks at once.
SIGNERS = 16


def page(services: Services, caller: str, query: TaskListQuery) -> TaskList:
    """The next page, and the cursor of the one after it; raises InvalidRequest for a cursor that is none of ours."""
    since, jobs = before(query.cursor), list[Job]()
    for _ in range(MOST_BATCHES):
        batch = services.jobs.of(caller, since, BATCH)
        for task_id, made in batch:
            since = made
            if (job := _read(services, task_id)) and _fits(job, query):
                jobs.append(job)
            if len(jobs) == query.limit:
                break
        if not batch or len(jobs) == query.limit:
            break
    more = bool(services.jobs.of(caller, since, 1))
    return TaskList(tasks=_documents(jobs, services), next_cursor=repr(since) if more else None)


def _documents(jobs: Sequence[Job], services: Services) -> list[Task]:
    return list(_signers().map(lambda job: task_document(job, services), jobs))


@cache
def _signers() -> ThreadPoolExecutor:
    """One pool for all pages of this process: many readers at once must not make many times as many threads."""
    return ThreadPoolExecutor(SIGNERS, "listing")


def before(cursor: str | None) -> float:
    """The time at which a page begins, going back; raises InvalidRequest for a cursor that is none of ours."""
    try:
        since = float(cursor) if cursor else math.inf
    except ValueError:
        since = math.nan
    if math.isnan(since):
        raise InvalidRequest("cursor: not one of ours", [{"field": "cursor", "reason": "not one of ours"}])
    return since


def _read(services: Services, task_id: str) -> Job | None:
    try:
        return services.jobs.get(task_id)
    except (TaskNotFound, TaskExpired):
        return None


def _fits(job: Job, query: TaskListQuery) -> bool:
    return query.status in (None, job.status) and query.model_version in (None, job.params.model_version)
