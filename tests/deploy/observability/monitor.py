"""Prometheus, Alertmanager and the exporters as they are deployed, on loopback, with the project's own files."""

import os
import re
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import requests
import yaml

from tests.backends import GIVEN, skip_or_fail
from tests.deploy.observability.files import FILES, PROMETHEUS, load, tool
from tests.deploy.observability.test_rules import with_address, without_kubernetes
from tests.stack import ROOT, free_port, until


class Monitor:
    """Starts everything in a folder; `ask` is a query to Prometheus."""

    def __init__(self, folder, discord):
        self.folder = folder
        self.discord = discord
        self.prometheus, self.alertmanager = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        self.blackbox = f"127.0.0.1:{free_port()}"
        self._processes = []

    def start(self, pods, machines, probes=()):
        """Watch these: pods by their component and machines by their role, each at an address; probes by their URL."""
        self._write_alertmanager()
        self._write_prometheus(pods, machines, probes)
        self.launch(
            "prometheus-alertmanager", "--config.file=alertmanager.yml", "--storage.path=alerts",
            "--cluster.listen-address=", f"--web.listen-address={self.alertmanager}",
        )  # fmt: skip
        self.launch(
            "prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=series",
            f"--web.listen-address={self.prometheus}",
        )  # fmt: skip
        until(lambda: self.answers(self.prometheus) and self.answers(self.alertmanager), 30, "the monitor is ready")

    def launch(self, program, *arguments, **environment):
        log = (self.folder / f"{Path(program).name}-{len(self._processes)}.log").open("wb")
        with log:
            command = [tool(program) if "/" not in program else program, *arguments]
            self._processes.append(
                subprocess.Popen(
                    command, cwd=self.folder, env=os.environ | environment, stdout=log, stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )  # fmt: skip

    def stop(self):
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            process.wait(20)

    def ask(self, query):
        """Prometheus' answer: a list of {metric, value}."""
        answer = requests.get(f"http://{self.prometheus}/api/v1/query", params={"query": query}, timeout=10).json()
        assert answer["status"] == "success", answer
        return answer["data"]["result"]

    def names(self):
        """Every metric that Prometheus has seen."""
        answer = requests.get(f"http://{self.prometheus}/api/v1/label/__name__/values", timeout=10).json()
        return set(answer["data"])

    @staticmethod
    def answers(address, path="/-/ready"):
        try:
            return requests.get(f"http://{address}{path}", timeout=5).ok
        except requests.ConnectionError:
            return False

    def _write_alertmanager(self):
        config = with_address(load("alertmanager/alertmanager.yml"), self.discord.url)
        text = yaml.safe_dump(config)
        # As it is, but without the patience.
        text = re.sub(r"group_wait: \w+", "group_wait: 1s", re.sub(r"group_interval: \w+", "group_interval: 2s", text))
        (self.folder / "templates").symlink_to(FILES / "alertmanager/templates")
        (self.folder / "alertmanager.yml").write_text(text)

    def _write_prometheus(self, pods, machines, probes):
        config = without_kubernetes(load("prometheus/prometheus.yml"))
        config["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s"}
        # celery-exporter asks every worker first, and waits a second or more for answers.
        [slow] = [job for job in config["scrape_configs"] if job["job_name"] == "machines"]
        slow |= {"scrape_interval": "5s", "scrape_timeout": "5s"}
        config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [self.alertmanager]
        for name in ("rules", "pods", "targets", "probes"):
            (self.folder / name).mkdir()
        for path in PROMETHEUS.glob("rules/*.yml"):
            (self.folder / "rules" / path.name).write_text(re.sub(r"for: \w+", "for: 1s", path.read_text()))
        (self.folder / "pods/pods.yml").write_text(yaml.safe_dump([_pod(*pod) for pod in pods.items()]))
        groups = [{"targets": [address], "labels": {"role": role}} for role, address in machines.items()]
        (self.folder / "targets/machines.yml").write_text(yaml.safe_dump(groups))
        (self.folder / "probes/public.yml").write_text(yaml.safe_dump([{"targets": list(probes)}]))
        text = yaml.safe_dump(config).replace("blackbox-exporter:9115", self.blackbox)
        (self.folder / "prometheus.yml").write_text(text)


def _pod(component, address):
    """What Kubernetes says of a pod, so that the rules of relabelling have their work."""
    host, _, port = address.partition(":")
    meta = "__meta_kubernetes_pod"
    labels = {
        f"{meta}_annotation_prometheus_io_scrape": "true", f"{meta}_annotation_prometheus_io_port": port,
        f"{meta}_annotation_prometheus_io_path": "/metrics", f"{meta}_label_app_kubernetes_io_component": component,
        f"{meta}_ip": host, f"{meta}_name": f"darkroom-{component}-0", "__meta_kubernetes_namespace": "darkroom",
    }  # fmt: skip
    return {"targets": [address], "labels": labels}


def start_exporters(monitor, settings, trusted):
    """The exporters of machines, Redis and Celery; their addresses, with RabbitMQ's own, by their role.

    And the one of the public address, which trusts the certificates of this file.
    """
    found = {name: f"127.0.0.1:{free_port()}" for name in ("node", "redis", "celery-exporter")}
    monitor.launch("prometheus-node-exporter", f"--web.listen-address={found['node']}")
    address = urlsplit(settings["REDIS_URL"])._replace(path="").geturl()
    monitor.launch("prometheus-redis-exporter", f"-redis.addr={address}", f"-web.listen-address={found['redis']}")
    _start_blackbox(monitor, trusted)
    python = ROOT / "var/tools/celery_exporter/bin/python"
    if not python.exists():
        skip_or_fail("needs celery-exporter: script/tools installs it")
    host, _, port = found["celery-exporter"].partition(":")
    run = "from src.cli import cli; cli(auto_envvar_prefix='CE')"
    monitor.launch(str(python), "-c", run, f"--broker-url={settings['BROKER_URL']}", f"--host={host}", f"--port={port}")
    return found | {"rabbitmq": GIVEN["RABBITMQ_METRICS"]}


def _start_blackbox(monitor, trusted):
    # The module of its image's own file.
    (monitor.folder / "blackbox.yml").write_text(yaml.safe_dump({"modules": {"http_2xx": {"prober": "http"}}}))
    listen = f"--web.listen-address={monitor.blackbox}"
    monitor.launch(
        "prometheus-blackbox-exporter", "--config.file=blackbox.yml", listen, SSL_CERT_FILE=str(trusted)
    )  # fmt: skip
