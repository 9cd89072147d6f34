"""How fast those who wait are told: so many clients on one web process, each waiting for a task of its own.

    python -m bench.waiting_clients --clients 1000
    GUNICORN_CMD_ARGS="--worker-class gevent --worker-connections 2000" python -m bench.waiting_clients

The tasks are ended one after the other, `--pause` apart, by writing their records as a worker does. Measured is the
time from the record's change to the last byte of the answer, and the memory of the web process.
"""

import json
import selectors
import socket
import statistics
import tempfile
import time
import uuid
from pathlib import Path

import click
import psutil

from app.jobs import JobStore
from app.record import Job
from app.schemas import Params
from app.services import make_redis
from app.settings import Settings
from tests.backends import embedded
from tests.stack import Role, Stack, until

PARAMS = Params(
    prompt="x", negative_prompt="", model_version="steady", width=64, height=64, num_inference_steps=1,
    guidance_scale=1.0, strength=1.0, seed=1, num_images=1, output_format="png",
)  # fmt: skip


@click.command()
@click.option("--clients", default=1000, show_default=True)
@click.option("--pause", default=0.01, show_default=True, help="Seconds between two tasks' ends.")
def main(clients: int, pause: float) -> None:
    """Measure and print one JSON document."""
    with tempfile.TemporaryDirectory() as folder, embedded(Path(folder)) as backend:
        stack = Stack(Path(folder), WEB_THREADS=str(clients + 24), **backend)
        web = stack.start("web")
        try:
            until(stack.client.ready, 60, "the web tier is ready")
            click.echo(json.dumps(measure(stack, web, clients, pause), indent=1))
        finally:
            stack.stop()


def measure(stack: Stack, web: Role, clients: int, pause: float) -> dict:
    """Seconds in milliseconds, memory in megabytes."""
    names = Settings.model_fields
    settings = Settings(**{k.lower(): v for k, v in stack.settings.items() if k.lower() in names})
    jobs = JobStore(make_redis(settings, "courier"), result_ttl=3600, lease=600)
    before = memory(web)
    waiting = [Waiter(stack.port, claimed(jobs)) for _ in range(clients)]
    until(lambda: subscribed(stack, clients), 60, "everyone waits")
    delays = end_one_by_one(jobs, waiting, pause)
    return {
        "clients": clients,
        "told": len(delays),
        "median_ms": round(1000 * statistics.median(delays), 1),
        "p99_ms": round(1000 * statistics.quantiles(delays, n=100)[98], 1),
        "most_ms": round(1000 * max(delays), 1),
        "web_mb": round(memory(web)),
        "web_mb_idle": round(before),
    }


def claimed(jobs: JobStore) -> tuple[str, str]:
    """A task under way, and the token of its claim."""
    task_id, token = str(uuid.uuid4()), uuid.uuid4().hex[:16]
    jobs.create(Job(task_id=task_id, params=PARAMS, queue="gen.test"))
    jobs.claim(task_id, token, "bench", 3)
    return task_id, token


class Waiter:
    """A client that waits for its task on a connection of its own."""

    def __init__(self, port: int, task: tuple[str, str]) -> None:
        self.task = task
        self.ended_at = 0.0
        self.answer = b""
        self.socket = socket.create_connection(("127.0.0.1", port))
        head = f"GET /tasks/{task[0]}?wait=60 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        self.socket.sendall(head.encode())

    def told(self) -> bool:
        """Read what is there; whether the answer is whole and says that the task is done."""
        self.answer += self.socket.recv(65536)
        return b'"DONE"' in self.answer and self.answer.endswith(b"}")


def subscribed(stack: Stack, clients: int) -> bool:
    """Whether as many requests have come in; the web process says so in its connections."""
    connections = psutil.net_connections("tcp")
    return sum(c.laddr.port == stack.port and c.status == "ESTABLISHED" for c in connections) >= clients


def end_one_by_one(jobs: JobStore, waiting: list[Waiter], pause: float) -> list[float]:
    """Seconds from each task's end to its waiter's answer."""
    delays: list[float] = []
    with selectors.DefaultSelector() as selector:
        for waiter in waiting:
            selector.register(waiter.socket, selectors.EVENT_READ, waiter)
        for waiter in waiting:
            waiter.ended_at = time.monotonic()
            jobs.succeed(*waiter.task, {"images": "[]", "metrics": "{}"})
            listen(selector, delays, pause)
        listen(selector, delays, 10, len(waiting))
    return delays


def listen(selector: selectors.BaseSelector, delays: list[float], seconds: float, enough: int = 10**9) -> None:
    """Note who is told within the next `seconds`."""
    end = time.monotonic() + seconds
    while len(delays) < enough and (left := end - time.monotonic()) > 0:
        for key, _ in selector.select(left):
            if key.data.told():
                delays.append(time.monotonic() - key.data.ended_at)
                selector.unregister(key.fileobj)
                key.data.socket.close()


def memory(web: Role) -> float:
    """Megabytes that the web processes hold."""
    return sum(p.memory_info().rss for p in [psutil.Process(web.process.pid), *web.children]) / 1e6


if __name__ == "__main__":
    main()
