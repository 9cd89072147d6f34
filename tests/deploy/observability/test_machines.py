"""GPU machines that come and go: Prometheus finds them by asking Google, whom a file of targets stands for here."""

import json
import re

import pytest
import requests
import yaml

from tests.deploy.observability.files import alerts, run
from tests.deploy.observability.monitor import Monitor
from tests.deploy.observability.test_rules import without_kubernetes
from tests.deploy.programs import pod_of, rendered
from tests.stack import ROOT, until

pytestmark = pytest.mark.deploy

METADATA = {"169.254.169.252/32", "169.254.169.254/32"}


def chart(**sets):
    return rendered("observability", values="values-production.yaml", **sets)


def configuration(**sets):
    return yaml.safe_load(chart(**sets)["ConfigMap", "prometheus"]["data"]["prometheus.yml"])


def jobs(**sets):
    return {job["job_name"]: job for job in configuration(**sets)["scrape_configs"]}


def test_prometheus_takes_its_configuration_with_what_the_chart_adds(tmp_path):
    (tmp_path / "rules").symlink_to(ROOT / "charts/observability/files/prometheus/rules")
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(without_kubernetes(configuration())))
    assert "SUCCESS" in run("promtool", "check", "config", "prometheus.yml", cwd=tmp_path)


def test_google_is_asked_for_every_port_in_every_zone_and_for_our_machines_alone():
    asked = jobs()["gce"]["gce_sd_configs"]
    zones = {f"europe-west4-{zone}" for zone in "abc"}
    assert {(each["zone"], each["port"]) for each in asked} == {(z, p) for z in zones for p in (9464, 9100, 9400)}
    assert {each["project"] for each in asked} == {"PROJECT"}
    label = re.search(r'labels +=.*\brole += "(.+?)"', (ROOT / "infra/modules/gpu_worker/main.tf").read_text())[1]
    assert {each["filter"] for each in asked} == {f'(labels.role = "{label}") AND (status = "RUNNING")'}


def test_what_terraform_tells_of_the_machines_is_what_the_chart_asks_for():
    told = re.search(r"gce = {(.*?)}", (ROOT / "infra/modules/stack/outputs.tf").read_text(), re.DOTALL)[1]
    asked = yaml.safe_load((ROOT / "charts/observability/values.yaml").read_text())["prometheus"]
    assert set(re.findall(r"^ +(\w+) +=", told, re.MULTILINE)) == asked["gce"].keys()
    assert "machineNetworks" in asked
    # Two GPUs a machine: whole numbers, as JSON has them.
    two = jobs(prometheus__gce__ports="[9464, 9465, 9100, 9400]")["gce"]["gce_sd_configs"]
    assert {each["port"] for each in two} == {9464, 9465, 9100, 9400}


def test_nobody_is_asked_where_no_project_is_named():
    off = chart(prometheus__gce__project='""')
    assert "gce" not in off["ConfigMap", "prometheus"]["data"]["prometheus.yml"].partition("global:")[2]
    assert not METADATA & reached(off)
    assert reached(chart()) >= METADATA


def reached(made):
    """The networks that Prometheus may reach besides pods."""
    rules = made["NetworkPolicy", "prometheus"]["spec"]["egress"]
    return {to["ipBlock"]["cidr"] for rule in rules for to in rule.get("to", []) if "ipBlock" in to}


def test_prometheus_is_the_account_that_may_list_machines():
    made = rendered("observability", prometheus__gce__account='"darkroom-prometheus@p.iam.gserviceaccount.com"')
    account = pod_of(made["StatefulSet", "prometheus"])["serviceAccountName"]
    # By this name Terraform lets it be that account: in the namespace observability, of workload identity.
    assert account == "prometheus"
    assert made["ServiceAccount", account]["metadata"]["annotations"] == {
        "iam.gke.io/gcp-service-account": "darkroom-prometheus@p.iam.gserviceaccount.com"
    }
    assert "annotations" not in rendered("observability")["ServiceAccount", account]["metadata"]


def test_a_machine_that_google_names_is_a_worker_a_node_and_a_gpu(tmp_path):
    """Its labels by the real Prometheus; two GPUs, so two workers."""
    job = jobs()["gce"]
    del job["gce_sd_configs"]
    machines = [
        {"targets": [f"127.0.0.1:{port}"], "labels": {"__meta_gce_instance_name": "darkroom-gpu-x1y2"}}
        for port in (9464, 9471, 9100, 9400)
    ]
    (tmp_path / "machines.json").write_text(json.dumps(machines))
    config = {"scrape_configs": [job | {"file_sd_configs": [{"files": ["machines.json"]}]}]}
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    monitor = Monitor(tmp_path, None)
    monitor.launch(
        "prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=series",
        f"--web.listen-address={monitor.prometheus}",
    )  # fmt: skip
    try:
        until(lambda: monitor.answers(monitor.prometheus), 30, "Prometheus is ready")
        found = until(lambda: targets(monitor), 10, "it has read its targets")
    finally:
        monitor.stop()
    assert found == {
        ("worker", "darkroom-gpu-x1y2:9464"),
        ("worker", "darkroom-gpu-x1y2:9471"),
        ("node", "darkroom-gpu-x1y2:9100"),
        ("gpu", "darkroom-gpu-x1y2:9400"),
    }
    # Whom a rule names.
    assert 'job="worker"' in alerts()["WorkerDown"]["expr"]


def targets(monitor):
    answer = requests.get(f"http://{monitor.prometheus}/api/v1/targets", timeout=10).json()["data"]["activeTargets"]
    return {(each["labels"]["job"], each["labels"]["instance"]) for each in answer}


def test_a_new_machine_has_as_long_to_answer_as_the_group_of_machines_gives_it():
    variables = (ROOT / "infra/modules/gpu_worker/variables.tf").read_text()
    seconds = int(re.search(r'"first_start_seconds" {[^}]*default += (\d+)', variables)[1])
    minutes = int(re.search(r"offset (\d+)m", alerts()["WorkerDown"]["expr"])[1])
    assert minutes * 60 >= seconds
