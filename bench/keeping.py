"""What keeping jobs costs: memory per job, and how long a look at one is held up while very many expire or are swept.

    python -m bench.keeping --jobs 100000

On a bundled valkey of its own, set as production's Redis is; no broker, no web tier.
"""

import logging
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import redis
import structlog

from app.courier import Courier
from app.jobs import JobStore
from app.record import Phase, compact
from app.settings import Settings
from tests.backends import valkey
from tests.things import job, recording

DAY = 86_400


@dataclass
class Gaze:
    """How long each look at one record took, in seconds."""

    longest: float = 0.0
    looks: int = 0


def store_of(url: str) -> JobStore:
    return JobStore(redis.Redis.from_url(url, decode_responses=True), result_ttl=7 * DAY, lease=15)


def make(jobs: JobStore, count: int) -> list[str]:
    """So many queued jobs of one caller, with a prompt of usual length."""
    ids = [str(uuid.uuid4()) for _ in range(count)]
    for task_id in ids:
        jobs.create(job(task_id=task_id, prompt="a lighthouse on a cliff above a stormy sea, oil on canvas, wide view"))
        jobs.confirm(task_id)
    return ids


def finish(jobs: JobStore, ids: list[str]) -> None:
    image = {"sha256": "0" * 64, "bytes": 1, "width": 64, "height": 64}
    metrics = {"queue_ms": 50, "load_ms": 0, "inference_ms": 900, "upload_ms": 5, "batch_size": 1}
    result = {"images": compact([image]), "metrics": compact(metrics), "worker_version": "1.0"}
    for task_id in ids:
        jobs.claim(task_id, "t", "gen.tiny-0123abcd@host")
        for phase in (Phase.RUNNING, Phase.UPLOADING):
            jobs.advance(task_id, "t", phase)
        jobs.succeed(task_id, "t", result)


@contextmanager
def looking(url: str, task_id: str) -> Iterator[Gaze]:
    """Looks at one job again and again for the length of the block."""
    gaze, over, jobs = Gaze(), threading.Event(), store_of(url)

    def look() -> None:
        while not over.wait(0.002):
            began = time.perf_counter()
            jobs.get(task_id)
            gaze.longest, gaze.looks = max(gaze.longest, time.perf_counter() - began), gaze.looks + 1

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield gaze
    finally:
        over.set()
        thread.join()


def tell(what: str, gaze: Gaze, seconds: float) -> None:
    print(f"{what}: {seconds:.1f} s, longest of {gaze.looks} looks {1000 * gaze.longest:.0f} ms", flush=True)


@click.command()
@click.option("--jobs", "count", type=int, default=100_000, show_default=True)
def main(count: int) -> None:
    """Make, finish, expire and sweep that many jobs."""
    # The sweep tells of each job that it moves.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with tempfile.TemporaryDirectory(prefix="keeping-") as name, valkey(Path(name)) as server:
        url = f"{server}/0"
        client, jobs = redis.Redis.from_url(url, decode_responses=True), store_of(url)
        client.config_set("hash-max-listpack-value", 1024)
        own = make(jobs, 1)[0]
        empty = client.info("memory")["used_memory"]
        ids = make(jobs, count)
        print(f"a queued job: {(client.info('memory')['used_memory'] - empty) / count:.0f} bytes")
        finish(jobs, ids)
        print(f"a finished job: {(client.info('memory')['used_memory'] - empty) / count:.0f} bytes")
        _expire(client, url, own, ids)
        _sweep(client, url, own, make(jobs, count), Path(name))


def _expire(client: "redis.Redis", url: str, own: str, ids: list[str]) -> None:
    """All of a day's records reach their end within one second."""
    pipeline = client.pipeline(transaction=False)
    for task_id in ids:
        pipeline.pexpire(f"job:{task_id}", 1000)
    pipeline.execute()
    began = time.monotonic()
    with looking(url, own) as gaze:
        while client.dbsize() > 100:
            time.sleep(0.05)
    tell(f"{len(ids)} records expired", gaze, time.monotonic() - began)


def _sweep(client: "redis.Redis", url: str, own: str, ids: list[str], folder: Path) -> None:
    """All of them are overdue at once."""
    settings = Settings(redis_url=url, storage_url=f"file://{folder}/storage", signing_key="x" * 32)
    courier = Courier(recording(settings, []))
    client.zadd("jobs:deadlines", dict.fromkeys(ids, 1))
    began = time.monotonic()
    with looking(url, own) as gaze:
        while client.zcard("jobs:deadlines") > 1:
            courier.sweep()
    tell(f"{len(ids)} overdue jobs swept", gaze, time.monotonic() - began)


if __name__ == "__main__":
    main()
