"""How fast those who wait are told: so many clients on one web process, each waiting for a task of its own.

    python -m bench.waiting_clients --clients 1000
    GUNICORN_CMD_ARGS="--worker-class gevent --worker-connections 2000" python -m bench.waiting_clients

The tasks are ended one after the other, `--pause` apart, by writing their records as a worker does. Measured is the
time from the record's change to the last byte of the answer, and the memory of the web process.
"""

import selectors
import socket
import time
import uuid
from dataclasses import replace

import click
import psutil
import requests
from prometheus_client.parser import text_string_to_metric_families

from app.jobs import JobStore
from bench.depth import JOB
from bench.rig import Figure, benchmark, jobs_of, milliseconds, running
from tests.stack import Role, Stack, until

NAME = "darkroom_waiting_clients"


@benchmark
@click.option("--clients", default=1000, show_default=True)
@click.option("--pause", default=0.01, show_default=True, help="Seconds between two tasks' ends.")
def main(on: str, clients: int, pause: float) -> list[Figure]:
    """How soon each of many clients that wait on one web process is told, and the memory of that."""
    with running(on, "web", WEB_THREADS=str(clients + 24)) as stack:
        web, jobs = stack.roles[0], jobs_of(stack)
        before = memory(web)
        waiting = [Waiter(stack.port, claimed(jobs)) for _ in range(clients)]
        until(lambda: waiting_now(stack) == clients, 60, "everyone waits")
        during = memory(web)
        delays = end_one_by_one(jobs, waiting, pause)
        return [
            Figure("clients told", len(delays), "", f"{clients} waited", least=clients),
            *milliseconds("from the task's end to its client", delays),
            Figure("the same, at most", round(1000 * max(delays), 2), "ms"),
            Figure("web process while they wait", round(during), "MB", f"{before:.0f} MB idle"),
        ]


def claimed(jobs: JobStore) -> tuple[str, str]:
    """A task under way, and the token of its claim."""
    task_id, token = str(uuid.uuid4()), uuid.uuid4().hex[:16]
    jobs.create(replace(JOB, task_id=task_id))
    jobs.claim(task_id, token, "bench")
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


def waiting_now(stack: Stack) -> float:
    """How many requests wait in the web process, by its own word: a connection alone is not yet heard."""
    told = requests.get(f"http://127.0.0.1:{stack.port}/metrics", timeout=10).text
    families = text_string_to_metric_families(told)
    return sum(sample.value for family in families for sample in family.samples if sample.name == NAME)


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
