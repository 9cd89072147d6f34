"""The numbers of running processes, by a real Prometheus; and an alert on its way to Discord."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import kombu
import pytest
import requests

from tests.backends import GIVEN
from tests.deploy.observability.conftest import scrape
from tests.deploy.observability.doubles import Discord
from tests.deploy.observability.files import alerts, metrics_in, queries, run
from tests.deploy.observability.monitor import Monitor, start_exporters
from tests.nginx import Nginx
from tests.stack import ROOT, until

pytestmark = [pytest.mark.deploy, pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(300)]

# What no machine of ours can show: a GPU (dcgm-exporter), a cluster's node.
ELSEWHERE = {
    "DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_XID_ERRORS",
    "kubelet_volume_stats_available_bytes", "kubelet_volume_stats_capacity_bytes",
}  # fmt: skip


@pytest.fixture(scope="session")
def entry(stack, tmp_path_factory):
    """The public address: NGINX with a certificate that is good for a day."""
    nginx = Nginx(tmp_path_factory.mktemp("entry") / "nginx", [stack.targets["web"]])
    yield nginx
    nginx.stop()


@pytest.fixture(scope="session")
def monitor(stack, done, entry, tmp_path_factory):
    with Discord().running() as discord, contextlib.ExitStack() as stop:
        monitor = Monitor(tmp_path_factory.mktemp("monitor"), discord)
        stop.callback(monitor.stop)
        machines = start_exporters(monitor, stack.settings, entry.folder / "tls/tls.crt")
        pods = {
            "web": stack.targets["web"],
            "courier": stack.targets["courier"],
            "worker-test": stack.targets["worker"],
        }
        monitor.start(pods, machines, [f"https://127.0.0.1:{entry.port}/readyz"])
        until(lambda: all_up(monitor), 40, "Prometheus reaches everything")
        yield monitor


def all_up(monitor):
    up = {found["metric"]["job"]: found["value"][1] for found in monitor.ask("up")}
    wanted = {"web", "worker", "courier", "node", "redis", "rabbitmq", "celery-exporter", "probe"}
    return up.keys() == wanted and set(up.values()) == {"1"}


@pytest.mark.parametrize("role", ["web", "worker", "courier"])
def test_prometheus_finds_no_fault_in_what_a_role_tells(stack, done, role):
    run("promtool", "check", "metrics", input=scrape(stack.targets[role]))


def test_every_web_process_is_in_every_answer(stack, done):
    assert all("darkroom_waiting_clients 0.0" in scrape(stack.targets["web"]) for _ in range(4))
    labels = 'http_request_method="POST",http_response_status_code="202",http_route="/generate"'
    count = f"http_server_request_duration_seconds_count{{{labels}}}"
    told = {line for _ in range(4) for line in scrape(stack.targets["web"]).splitlines() if line.startswith(count)}
    assert [float(line.split()[-1]) >= 1 for line in told] == [True]


def test_a_job_is_counted_on_its_whole_way(stack, done):
    worker, courier = scrape(stack.targets["worker"]), scrape(stack.targets["courier"])
    for name in ("job_queue_wait", "job_duration", "model_load_duration", "inference_step_duration"):
        assert f'darkroom_{name}_seconds_count{{model_version="steady"}}' in worker
    assert 'darkroom_jobs_finished_total{model_version="steady",outcome="succeeded"}' in courier
    assert 'darkroom_model_workers{model_version="steady",queue="gen.test",without_worker="accept"} 1.0' in courier


def test_every_metric_of_rules_and_dashboards_is_told_by_somebody(monitor):
    asked = {name for _, query in queries() for name in metrics_in(query)}
    asked |= {name for alert in alerts().values() for name in metrics_in(alert["expr"])}
    assert len(asked) > 40
    until(lambda: asked - ELSEWHERE <= monitor.names(), 30, f"told: {asked - ELSEWHERE - monitor.names()}")
    assert asked >= ELSEWHERE


def test_every_query_of_the_dashboards_answers(monitor):
    # No limit is set here, so that there is none to compare with.
    silent = {"redis_memory_max_bytes > 0"}
    here = [query for _, query in queries() if not metrics_in(query) & ELSEWHERE and query not in silent]
    with_answer = set()

    def all_answer():
        with_answer.update(query for query in here if query not in with_answer and monitor.ask(query))
        return with_answer == set(here)

    with contextlib.suppress(AssertionError):
        until(all_answer, 40, "every query answers")
    assert set(here) - with_answer == set()


def test_a_certificate_that_ends_is_told_of_while_there_is_time(monitor, entry):
    told = until(lambda: message(monitor, "TICKET: CertificateExpires", "23h"), 40, "Discord is told")
    assert f"The certificate of https://127.0.0.1:{entry.port}/readyz" in told["description"]


def test_who_comes_through_the_public_address_gets_no_numbers(entry):
    assert entry.ask("GET", "/metrics")[0] == 404


def test_the_commands_of_the_operators_page_do_what_they_are_there_for(stack, lost, monitor):
    """All of them, in their order, on a deployment with a message in quarantine."""
    with kombu.Connection(stack.settings["BROKER_URL"]) as connection, connection.Producer() as producer:
        producer.publish(
            b"garbage", content_type="text/plain", content_encoding="utf-8", exchange="gen.test", routing_key="gen.test"
        )
    until(lambda: message(monitor, "TICKET: QuarantineNotEmpty", "1 in quarantine (message)"), 40, "Discord is told")
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/operations.md").read_text(), re.DOTALL)
    assert len(blocks) == 7
    environment = os.environ | stack.settings | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "task": lost["task_id"], "DARKROOM_API_KEY": "",
        "DARKROOM_URL": stack.url, "PROMETHEUS_URL": f"http://{monitor.prometheus}",
        "RABBITMQ_MANAGEMENT_URL": GIVEN["RABBITMQ_MANAGEMENT_URL"],
    }  # fmt: skip
    ran = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", "".join(blocks).replace("curl -s", "curl -sf")],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for said in ('"QuarantineNotEmpty"', "unreadable_message", "steady", "maxmemory_human", '"name":"quarantine"'):
        assert said in ran.stdout, said
    assert requests.get(f"{stack.url}/admin/quarantine", timeout=10).json()["entries"] == []


def test_a_killed_worker_is_told_of_and_its_job_is_done_by_the_next_one_in_the_same_trace(stack, collector, monitor):
    ticket = stack.client.generate("a star", model_version="steady", num_inference_steps=200)
    task_id, worker = ticket["task_id"], stack.running["worker"]
    until(lambda: stack.client.task(task_id)["phase"] == "RUNNING", 20, "it runs")
    os.killpg(worker.process.pid, signal.SIGKILL)
    worker.process.wait(10)
    stack.roles.remove(worker)

    told = until(lambda: message(monitor, "PAGE: NoWorkerForModel", "steady"), 60, "Discord is told")
    assert "**No worker serves steady**" in told["description"]
    assert "Jobs for it wait in gen.test" in told["description"]
    assert "What to do: docs/operations.md#noworkerformodel" in told["description"]

    stack.running["worker"] = stack.start("worker", METRICS_BIND=stack.targets["worker"])
    task = stack.client.wait(task_id, 90)
    assert (task["status"], task["attempt"]) == ("SUCCEEDED", 2)
    until(lambda: message(monitor, "OVER: NoWorkerForModel", "steady"), 30, "Discord is told that it is over")
    until(lambda: "job.finish" in names(collector, task), 15, "the end is in the trace")
    senders = {span.service for span in collector.trace(task["trace_id"]) if span.name == "send gen.test"}
    assert senders == {"darkroom-web", "darkroom-courier"}


def names(collector, task):
    return [span.name for span in collector.trace(task["trace_id"])]


def message(monitor, title, text):
    told = (m for m in monitor.discord.messages if m["title"].startswith(title) and text in m["description"])
    return next(told, None)
