"""A: what an idle Darkroom adds to a job: from the request that submits it until its client is told, without the model.

Pictures go into a folder: how long a bucket takes is the bucket's. On services once more into its double.

python -m bench.overhead --jobs 50 --on services
"""

import json
import secrets
import tempfile
import time
from collections.abc import Callable
from typing import Any

import click

from bench.rig import SLEEPING, Caller, Figure, benchmark, milliseconds, running

# Between two jobs, so that each one finds everybody idle.
PAUSE = 0.1


@benchmark
@click.option("--jobs", default=50, show_default=True)
def main(on: str, jobs: int) -> list[Figure]:
    """Submit to told, minus the model's time, one job after the other: with ?wait= and with server-sent events."""
    with tempfile.TemporaryDirectory() as folder:
        told = measured(on, jobs, STORAGE_URL=f"file://{folder}", SIGNING_KEY=secrets.token_hex(16))
    base = f"the job's inference_ms; {jobs} jobs of 50 ms"
    figures = [
        figure
        for name, seconds in told.items()
        for figure in milliseconds(f"overhead with {name}", seconds, base, most=12)
    ]
    if on == "services":
        wait, *_ = measured(on, jobs).values()
        figures += milliseconds("the same with ?wait= and the bucket's double", wait)[:1]
    return figures


def measured(on: str, jobs: int, **settings: str) -> dict[str, list[float]]:
    """Seconds of so many jobs, by the way in which their client is told."""
    with running(on, "web", "worker", "courier", **settings) as stack:
        caller = Caller(stack)
        ways = {"?wait=": caller.done, "events": lambda task_id: followed(caller, task_id)}
        for way in ways.values():
            one(caller, way)
        # In turns, so that both meet the same moments of the machine.
        rounds = [{name: one(caller, way) for name, way in ways.items()} for _ in range(jobs)]
    return {name: [times[name] for times in rounds] for name in ways}


def one(caller: Caller, tell: Callable[[str], dict[str, Any]]) -> float:
    """Seconds from the request to the last byte that tells of the picture, minus those of the model."""
    time.sleep(PAUSE)
    start = time.perf_counter()
    document = tell(caller.submit(SLEEPING))
    return time.perf_counter() - start - document["metrics"]["inference_ms"] / 1000


def followed(caller: Caller, task_id: str) -> dict[str, Any]:
    """The task's document as its events told of its end."""
    document: dict[str, Any] = {}
    with caller.open("GET", f"/tasks/{task_id}/events") as events:
        for line in events:
            if line.startswith(b'data: {"task_id"'):
                document = json.loads(line[6:])
    return document


if __name__ == "__main__":
    main()
