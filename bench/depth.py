"""F: submit, status and claim where few and where very many jobs wait; and what a job costs in Redis.

    python -m bench.depth --few 1000 --many 1000000 --asks 300

The line is filled by the same script calls that a submit makes, pipelined. Nobody works on it.
"""

import itertools
import uuid
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import click
from redis import Redis

from app.jobs import JobStore
from app.params import Params
from app.record import Job
from bench.rig import (
    NOTHING,
    PROMPT,
    Caller,
    Figure,
    benchmark,
    clocked,
    from_the_line,
    jobs_of,
    percentile,
    redis_of,
    running,
)
from tests.stack import Stack

QUEUE = "gen.bench"
PARAMS = Params(
    prompt=PROMPT, negative_prompt="", model_version=NOTHING, width=64, height=64, num_inference_steps=1,
    guidance_scale=1.0, strength=1.0, seed=1, num_images=1, output_format="png",
)  # fmt: skip
JOB = Job(task_id="", params=PARAMS, queue=QUEUE)
TOGETHER = 500


@benchmark
@click.option("--few", default=1000, show_default=True)
@click.option("--many", default=1_000_000, show_default=True)
@click.option("--asks", default=300, show_default=True, help="Of each kind at each depth.")
@click.option("--finished", default=300, show_default=True, help="Jobs whose end is weighed.")
def main(on: str, few: int, many: int, asks: int, finished: int) -> list[Figure]:
    """Submit, status and claim at two depths of the line, and the bytes of Redis that a job costs."""
    with running(on, "web", "worker", "courier") as stack:
        weights = finished_bytes(stack, finished)
    with running(on, "web") as stack:
        shallow = fill(stack, few)
        before = times(stack, shallow, asks)
        size = used(stack)
        deep = fill(stack, many - few)
        weights.append(Figure("Redis: a queued job", round((used(stack) - size) / (many - few)), "bytes"))
        after = times(stack, deep, asks)
    return [slower(name, before[name], after[name], (few, many)) for name in before] + weights


def slower(name: str, before: list[float], after: list[float], depths: tuple[int, int]) -> Figure:
    """The ratio of the two medians."""
    few, many = (1000 * percentile(seconds, 50) for seconds in (before, after))
    base = f"{few:.2f} ms at {depths[0]:,} queued, {many:.2f} ms at {depths[1]:,}"
    return Figure(f"{name}: slower by", round(many / few, 2), "times", base, most=1.1)


def times(stack: Stack, queued: list[str], asks: int) -> dict[str, list[float]]:
    """Seconds that each submit, status and claim took, in turns."""
    caller, jobs = Caller(stack), jobs_of(stack)
    ways = {
        "submit": lambda _: caller.submit(NOTHING),
        "status": lambda task_id: caller.ask("GET", f"/tasks/{task_id}"),
        "claim": lambda task_id: jobs.claim(task_id, uuid.uuid4().hex[:16], "bench"),
    }
    chosen = queued[:: max(1, len(queued) // asks)][:asks]
    each = [{name: clocked(partial(way, task_id)) for name, way in ways.items()} for task_id in chosen]
    return {name: [told[name] for told in each] for name in ways}


def fill(stack: Stack, count: int) -> list[str]:
    """Put so many jobs into the line, as accepted and confirmed; some of their ids."""
    redis, sparse = redis_of(stack), max(1, count // 100_000)
    ids = (str(uuid.uuid4()) for _ in range(count))
    return [task_id for batch in batches(ids) for task_id in put(redis, batch)[::sparse]]


def batches(ids: Iterator[str]) -> Iterator[list[str]]:
    """In parts that Redis answers soon."""
    while part := list(itertools.islice(ids, TOGETHER)):
        yield part


class Pipelined(JobStore):
    """Sends the same script calls without waiting for each answer."""

    def _move(self, name: str, task_id: str, *args: str | float) -> list[Any]:
        super()._move(name, task_id, *args)
        return ["", task_id]


def put(redis: Redis, ids: list[str]) -> list[str]:
    """Create and confirm these jobs by one pipeline."""
    with redis.pipeline(transaction=False) as pipeline:
        jobs = Pipelined(pipeline, result_ttl=604_800, lease=15)
        for task_id in ids:
            jobs.create(replace(JOB, task_id=task_id))
            jobs.confirm(task_id)
        pipeline.execute()
    return ids


def used(stack: Stack) -> int:
    """Bytes that Redis holds."""
    return int(redis_of(stack).info("memory")["used_memory"])


def finished_bytes(stack: Stack, count: int) -> list[Figure]:
    """What a job leaves in Redis when it is done: everything in the database, by the number of jobs."""
    redis, caller = redis_of(stack), Caller(stack)
    before = held(redis)
    from_the_line(stack, caller, NOTHING, count)
    grown = {kind: size - before.get(kind, 0) for kind, size in held(redis).items()}
    parts = ", ".join(f"{kind} {size / count:.0f}" for kind, size in sorted(grown.items(), key=lambda k: -k[1])[:4])
    return [Figure("Redis: a finished job", round(sum(grown.values()) / count), "bytes", parts, most=1024)]


def held(redis: Redis) -> dict[str, int]:
    """Bytes of all keys, by the first word of their names."""
    sizes: dict[str, int] = {}
    for key in redis.scan_iter(count=1000):
        kind = key if key.startswith("jobs:") else key.partition(":")[0].partition("-meta-")[0]
        sizes[kind] = sizes.get(kind, 0) + (redis.memory_usage(key, samples=0) or 0)
    return sizes


if __name__ == "__main__":
    main()
