"""One stack that everything here looks into: two web processes, a worker and a courier on real services."""

import base64
import contextlib
import os
from urllib.parse import quote

import pytest
import requests

from tests.backends import GIVEN, real_services
from tests.deploy.observability.doubles import Collector, Sink
from tests.stack import Stack, free_port, until
from tests.things import picture

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
    with real_services(tmp_path_factory.mktemp("services")) as settings, contextlib.ExitStack() as held:
        settings |= {
            "WEB_WORKERS": "2",
            "LOG_FORMAT": "json",
            "LEASE": "2",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            # Seen at once, not after five seconds.
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "WEBHOOK_SECRET": "whsec_" + base64.b64encode(os.urandom(32)).decode(),
            "WEBHOOK_ALLOW_PRIVATE": "true",
        }
        stack = held.enter_context(Stack(tmp_path_factory.mktemp("stack"), **settings))
        stack.targets = {"web": f"127.0.0.1:{stack.port}"}
        stack.running = {}
        for role in ("web", "worker", "courier"):
            stack.targets.setdefault(role, f"127.0.0.1:{free_port()}")
            stack.running[role] = stack.start(role, METRICS_BIND=stack.targets[role])
        yield stack.ready("steady")


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


@pytest.fixture(scope="session")
def lost(stack, receiver, done):
    """A task with an input, whose first attempt died with the child of its worker; its second one went all the way."""
    asked = {"model_version": "steady", "num_inference_steps": 100, "webhook_url": receiver.url}
    task_id = stack.client.generate(PROMPT, picture(), **asked)["task_id"]
    until(lambda: stack.client.task(task_id)["phase"] == "RUNNING", 20, "it runs")
    [child] = [each for each in stack.running["worker"].children if "spawn_main" in " ".join(each.cmdline())]
    child.kill()
    task = stack.client.wait(task_id, 60)
    assert (task["status"], task["attempt"]) == ("SUCCEEDED", 2)
    return task


@pytest.fixture(scope="session")
def unlucky(stack, lost):
    """A task that failed, one that was canceled as it ran, and then the broker cut every connection."""
    failed = stack.client.generate(PROMPT, model_version="raises")["task_id"]
    assert stack.client.wait(failed, 30)["status"] == "FAILED"
    canceled = stack.client.generate(PROMPT, model_version="steady", num_inference_steps=1000)["task_id"]
    until(lambda: stack.client.task(canceled)["phase"] == "RUNNING", 20, "it runs")
    stack.client.cancel(canceled)
    assert stack.client.wait(canceled, 30)["error"]["code"] == "canceled"
    cut_connections(stack.settings["BROKER_URL"])
    until(lambda: stack.running["worker"].wrote("Connection to broker lost"), 20, "the worker has missed the broker")
    after = stack.client.generate(PROMPT, model_version="steady")["task_id"]
    assert stack.client.wait(after, 30)["status"] == "SUCCEEDED"
    return failed, canceled, after


def cut_connections(broker_url):
    """What a restart of the broker does to those who hold a connection."""
    host = broker_url.rpartition("/")[2]
    management = GIVEN["RABBITMQ_MANAGEMENT_URL"]

    def held():
        told = requests.get(f"{management}/api/vhosts/{host}/connections", timeout=10).json()
        return [quote(each["name"]) for each in told]

    for name in until(held, 20, "the broker knows its connections"):
        requests.delete(f"{management}/api/connections/{name}", timeout=10)


def scrape(address):
    """What Prometheus gets there, as text."""
    answer = requests.get(f"http://{address}/metrics", timeout=10)
    assert answer.status_code == 200
    return answer.text
