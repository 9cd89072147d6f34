"""A receiver of webhooks that is down for ten minutes by the clock, and what it gets afterwards.

    python -m bench.webhook_outage --minutes 10 --tasks 20

With the settings' own pauses. Half-way the courier is killed and started anew. The next try after an outage of ten
minutes comes about 20 to 35 minutes after the first one.
"""

import base64
import collections
import http.server
import json
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Self

import click
from standardwebhooks import Webhook

from tests.backends import embedded
from tests.stack import Stack, free_port, until

SECRET = "whsec_" + base64.b64encode(os.urandom(32)).decode()


@click.command()
@click.option("--minutes", default=10.0, show_default=True)
@click.option("--tasks", default=20, show_default=True)
def main(minutes: float, tasks: int) -> None:
    """Measure and print one JSON document."""
    with tempfile.TemporaryDirectory() as folder, embedded(Path(folder)) as backend:
        hooks = {"WEBHOOK_SECRET": SECRET, "WEBHOOK_ALLOW_PRIVATE": "true"}
        with Stack(Path(folder), **backend, **hooks) as stack:
            stack.start_all("steady")
            click.echo(json.dumps(measure(stack, 60 * minutes, tasks), indent=1))


def measure(stack: Stack, seconds: float, tasks: int) -> dict[str, float]:
    """Times in seconds since the receiver went down, or since it came back where that is said."""
    port, down_at = free_port(), time.monotonic()
    ids = [submit(stack, port) for _ in range(tasks)]
    time.sleep(seconds / 2)
    restart_courier(stack)
    time.sleep(max(seconds / 2 - (time.monotonic() - down_at - seconds / 2), 0))
    with Receiver(port) as receiver:
        up_at = time.monotonic()
        until(lambda: len(receiver.arrived) >= tasks, 3 * 3600, "everything arrives")
        last_at = time.monotonic()
        # Whatever might come twice would come within the time of one delivery and its lease.
        time.sleep(20)
        counts = collections.Counter(name for name, _ in receiver.arrived)
        arrivals = [at - up_at for _, at in receiver.arrived]
    documents = [stack.client.task(task_id) for task_id in ids]
    tries = [len(document["webhook"]["deliveries"]) for document in documents]
    return {
        "tasks": tasks,
        "down_seconds": round(up_at - down_at),
        "succeeded": sum(document["status"] == "SUCCEEDED" for document in documents),
        "told": len(counts),
        "told_more_than_once": sum(count > 1 for count in counts.values()),
        "first_after_return": round(min(arrivals)),
        "last_after_return": round(last_at - up_at),
        "tries_least_and_most": [min(tries), max(tries)],
    }


def submit(stack: Stack, port: int) -> str:
    """A task that tells a receiver at this port of its end."""
    url = f"http://127.0.0.1:{port}/in"
    return str(stack.client.submit("x", model_version="steady", webhook_url=url)["task_id"])


def restart_courier(stack: Stack) -> None:
    """As after a crash: nobody is told beforehand."""
    courier = next(role for role in stack.roles if role.name == "courier")
    courier.kill()
    stack.roles.remove(courier)
    stack.start("courier")


class Receiver:
    """Verifies and accepts everything; `arrived` holds its id and time."""

    def __init__(self, port: int) -> None:
        self.arrived: list[tuple[str, float]] = []
        arrived = self.arrived

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                Webhook(SECRET).verify(body, dict(self.headers))
                arrived.append((self.headers["webhook-id"], time.monotonic()))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


if __name__ == "__main__":
    main()
