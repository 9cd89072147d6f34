"""One stack that everything here looks into: two web processes, a worker and a courier on real services."""

import base64
import os

import pytest
import requests

from tests.backends import real_services
from tests.deploy.observability.doubles import Collector, Sink
from tests.stack import Stack, free_port, until

PROMPT = "a most secret prompt"


@pytest.fixture(scope="session")
def collector():
    with Collector().running() as collector:
        yield collector


@pytest.fixture(scope="session")
def receiver():
    with Sink().running() as receiver:
        yield receiver


@pytest.fixture(scope="session")
def stack(collector, tmp_path_factory):
    with real_services(tmp_path_factory.mktemp("services")) as settings:
        stack = Stack(
            tmp_path_factory.mktemp("stack"),
            **settings,
            WEB_WORKERS="2",
            LOG_FORMAT="json",
            LEASE="2",
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
            # Seen at once, not after five seconds.
            OTEL_BSP_SCHEDULE_DELAY="100",
            WEBHOOK_SECRET="whsec_" + base64.b64encode(os.urandom(32)).decode(),
            WEBHOOK_ALLOW_PRIVATE="true",
        )
        stack.targets = {"web": f"127.0.0.1:{stack.port}"}
        stack.running = {}
        for role in ("web", "worker", "courier"):
            stack.targets.setdefault(role, f"127.0.0.1:{free_port()}")
            stack.running[role] = stack.start(role, METRICS_BIND=stack.targets[role])
        try:
            yield stack.ready("steady")
        finally:
            stack.stop()


@pytest.fixture(scope="session")
def done(stack, receiver):
    """A task that has gone all the way, asked for within a trace of the client's own, to its webhook."""
    asked = "4bf92f3577b34da6a3ce929d0e0e4736"
    answer = requests.post(
        f"{stack.url}/generate",
        json={"prompt": PROMPT, "model_version": "steady", "webhook_url": receiver.url},
        headers={"traceparent": f"00-{asked}-00f067aa0ba902b7-01"},
        timeout=10,
    )
    task = stack.client.wait(answer.json()["task_id"], 30)
    assert task["status"] == "SUCCEEDED"
    until(lambda: receiver.got, 10, "the webhook is delivered")
    return task | {"answered": answer.headers, "asked": asked}


def scrape(address):
    """What Prometheus gets there, as text."""
    answer = requests.get(f"http://{address}/metrics", timeout=10)
    assert answer.status_code == 200
    return answer.text
