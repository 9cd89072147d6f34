"""charts/observability: valid for Kubernetes; it mounts the files as they are, and what these name is there."""

import json
import os
import re
import shutil
import tempfile
from pathlib import Path

import pytest
import yaml

from tests.deploy.programs import HELMS, ROOT, TOOLS, pod_of, rendered, run, tool

CHART = ROOT / "charts/observability"
# By their nature: node-exporter sees the node, Filebeat reads root's files.
ON_THE_NODE = {"node", "filebeat"}

every_shape = pytest.mark.parametrize("shape", ["minikube", "production"])


def objects(shape, helm="helm4"):
    return rendered("observability", helm, f"values-{shape}.yaml")


@pytest.mark.parametrize(
    "wrong",
    [
        'prometheus__gce={"project": "p"}',
        'prometheus__gce={"project": "p", "zones": ["europe-west4"]}',
        'prometheus__gce={"project": "p", "zones": ["europe-west4-a"], "ports": [22]}',
        'prometheus__gce={"account": "prometheus"}',
    ],
)
def test_a_wrong_value_is_refused_before_anything_is_made(wrong):
    given = ["--set-json", wrong.replace("__", ".")]
    assert run(tool(TOOLS / "programs/helm4"), "template", "o", CHART, *given, check=False).returncode != 0


@pytest.mark.parametrize("helm", HELMS)
@every_shape
def test_helm_finds_nothing_to_complain_of(helm, shape):
    run(tool(TOOLS / "programs" / helm), "lint", "--strict", CHART, "--values", CHART / f"values-{shape}.yaml")


@every_shape
def test_both_majors_of_helm_make_the_same_and_kubernetes_takes_it(shape, tmp_path):
    assert objects(shape) == objects(shape, "helm3")
    (tmp_path / "all.yaml").write_text(yaml.dump_all(objects(shape).values()))
    told = run(tool(TOOLS / "deploy/bin/kubernetes-validate"), "--strict", "-k", "1.33", tmp_path / "all.yaml")
    assert "Couldn't find schema" not in told.stdout


def test_the_files_reach_the_pods_as_they_are():
    maps = {name: thing["data"] for (kind, name), thing in objects("minikube").items() if kind == "ConfigMap"}
    found = {key: text for data in maps.values() for key, text in data.items()}
    files = [path for path in (CHART / "files").rglob("*") if path.is_file() and "prometheus/tests" not in str(path)]
    assert len(files) > 10
    assert [path for path in files if found.get(path.name) != path.read_text()] == []


def pods(chart=CHART, **sets):
    # Without its memory, since files change here.
    made = rendered.__wrapped__(chart, values="values-production.yaml", **sets)
    return {name: thing["spec"]["template"] for (_, name), thing in made.items() if "template" in thing.get("spec", {})}


def test_another_address_restarts_nobody():
    """Prometheus reads its targets again by itself."""
    moved = {"prometheus__machines": '[{"targets": ["10.10.16.9:9464"], "labels": {"role": "worker"}}]'}
    assert pods(**moved, prometheus__probes='["https://other.example.com"]') == pods()


def test_a_new_file_restarts_only_who_reads_it(tmp_path):
    before = pods()
    copy = tmp_path / CHART.name
    shutil.copytree(CHART, copy)
    for path, reader in [
        ("prometheus/rules/causes.yml", "prometheus"),
        ("prometheus/prometheus.yml", "prometheus"),
        ("alertmanager/templates/discord.tmpl", "alertmanager"),
        ("grafana/dashboards/jobs.json", "grafana"),
        ("traces/collector.yaml", "collector"),
        ("logs/filebeat.yml", "filebeat"),
    ]:
        file = copy / "files" / path
        text = file.read_text()
        file.write_text(text + "\n")
        after = pods(copy)
        assert {name for name in before if after[name] != before[name]} == {reader}, path
        file.write_text(text)


def test_prometheus_finds_its_rules_targets_and_probes_where_its_configuration_says():
    config = yaml.safe_load((CHART / "files/prometheus/prometheus.yml").read_text())
    pod = pod_of(objects("production")["StatefulSet", "prometheus"])
    volume = next(volume for volume in pod["volumes"] if volume["name"] == "config")
    placed = [
        item["path"] for source in volume["projected"]["sources"] for item in source["configMap"].get("items", [])
    ]
    asked = config["rule_files"] + [
        pattern for job in config["scrape_configs"] for sd in job.get("file_sd_configs", []) for pattern in sd["files"]
    ]
    for pattern in asked:
        assert any(re.fullmatch(pattern.replace("*", "[^/]+"), path) for path in placed), pattern
    given = {"prometheus__machines": json.dumps([{"targets": ["10.10.16.2:9464"], "labels": {"role": "worker"}}])}
    targets = rendered("observability", **given)["ConfigMap", "prometheus-targets"]["data"]
    assert {label for each in yaml.safe_load(targets["machines.yml"]) for label in each["labels"]} == {"role"}


def test_every_host_that_the_files_name_is_a_service():
    made = objects("production")
    services = {name: thing["spec"] for (kind, name), thing in made.items() if kind == "Service"}
    answered = {(name, port["port"]) for name, spec in services.items() for port in spec["ports"]}
    texts = [path.read_text() for path in (CHART / "files").rglob("*.y*ml") if "tests" not in path.parts]
    named = {(host, int(port)) for text in texts for host, port in re.findall(r"\b([a-z][a-z-]+):(\d{4,5})\b", text)}
    named |= {("jaeger", 4317), ("elasticsearch", 9200)}
    ours = {(host, port) for host, port in named if host not in ("http", "localhost")}
    assert ours
    assert ours - answered == set()


def test_darkroom_sends_its_traces_to_the_collectors_service():
    values = yaml.safe_load((ROOT / "charts/darkroom/values-production.yaml").read_text())
    host, port = re.fullmatch(r"http://(\w+)\.observability:(\d+)", values["traces"]["endpoint"]).groups()
    service = objects("production")["Service", host]["spec"]
    assert int(port) in {each["port"] for each in service["ports"]}
    assert service["internalTrafficPolicy"] == "Local"


@every_shape
def test_only_what_looks_at_the_node_has_more_than_plain_rights(shape):
    for (kind, name), thing in objects(shape).items():
        if not (pod := pod_of(thing)):
            continue
        container = pod["containers"][0]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True, name
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
        assert not container["image"].endswith(":latest"), name
        assert {"livenessProbe", "readinessProbe"} <= container.keys(), f"{kind} {name}"
        if name not in ON_THE_NODE:
            assert pod["securityContext"]["runAsNonRoot"] is True, name
            assert not [volume for volume in pod["volumes"] if "hostPath" in volume], name


def test_elasticsearchs_user_copies_its_configuration_into_a_volume_that_is_roots():
    """As the kubelet makes it: an emptyDir belongs to root, and to the group fsGroup."""
    pod = pod_of(objects("production")["StatefulSet", "elasticsearch"])
    user, group = pod["securityContext"]["runAsUser"], pod["securityContext"]["fsGroup"]
    image, volume = "/usr/share/elasticsearch/config", "/config"
    with tempfile.TemporaryDirectory() as folder:
        there = {image: Path(folder, "image"), volume: Path(folder, "volume")}
        (there[image] / "jvm.options.d").mkdir(parents=True)
        (there[image] / "elasticsearch.yml").write_text("cluster.name: darkroom\n")
        there[volume].mkdir()
        Path(folder).chmod(0o755)
        as_in_the_pod = {}
        if os.geteuid() == 0:  # Nobody else can be somebody else: there the folder is the tests' own.
            os.chown(there[volume], 0, group)
            as_in_the_pod = {"user": user, "group": group, "extra_groups": []}
        there[volume].chmod(0o2777)
        command = [
            re.sub(rf"^({image}|{volume})", lambda m: str(there[m[1]]), w) for w in pod["initContainers"][0]["command"]
        ]
        run(*command, **as_in_the_pod)
        assert {path.name for path in there[volume].iterdir()} == {"jvm.options.d", "elasticsearch.yml"}


def test_grafana_logs_in_to_elasticsearch_as_elasticsearch_expects():
    path = CHART / "files/grafana/provisioning/datasources.yml"
    (source,) = (each for each in yaml.safe_load(path.read_text())["datasources"] if each["type"] == "elasticsearch")
    assert (source["basicAuth"], source["basicAuthUser"]) == (True, "elastic")
    variable = source["secureJsonData"]["basicAuthPassword"].removeprefix("$")
    made = objects("production")
    (given,) = (
        each for each in pod_of(made["Deployment", "grafana"])["containers"][0]["env"] if each["name"] == variable
    )
    server = pod_of(made["StatefulSet", "elasticsearch"])["containers"][0]["env"]
    assert given in server
    assert {"name": "xpack.security.enabled", "value": "true"} in server
    # Where no lines are kept its Secret needs no password for them.
    assert variable not in str(pod_of(objects("minikube")["Deployment", "grafana"]))


def test_each_secret_value_has_a_key_that_the_values_tell_of():
    made = objects("production")
    assert "Secret" not in {kind for kind, _ in made}
    pods = str([pod_of(thing) for thing in made.values()])
    asked = set(re.findall(r"'secretKeyRef': {[^}]*'key': '([a-z-]+)'", pods)) | {"discord-webhook-url"}
    told = re.search(r"# -- (Secret with.*)", (CHART / "values.yaml").read_text())[1]
    assert set(re.findall(r"`([a-z-]+)`", told)) == asked
    assert "'secretName': 'observability'" in pods
