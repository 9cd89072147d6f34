"""RabbitMQ and Redis as charts/darkroom runs and watches them: as the application wants, and with the real programs."""

import contextlib
import json
import re
import subprocess
from pathlib import Path

import pytest
import requests
import yaml
from kombu import Exchange

from app.models import load_catalogue
from app.settings import Settings
from app.tasks import QUARANTINE, make_celery
from tests.backends import signed_by_itself, skip_or_fail
from tests.deploy.programs import ROOT, pod_of, rendered, run, tool
from tests.deploy.shapes import CHART, objects
from tests.stack import free_port, until

# ---- RabbitMQ


@pytest.fixture(scope="module")
def broker_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rabbitmq")
    for name, text in objects("everything")["ConfigMap", "darkroom-rabbitmq"]["data"].items():
        (folder / name).write_text(text)
    return folder


def test_the_queues_of_the_chart_are_those_that_the_application_declares(broker_files):
    """A queue that exists with other arguments is refused, and with it every worker."""
    catalogue = load_catalogue(str(ROOT / "config/models.yaml"), "")
    celery = make_celery(Settings(signing_key="x" * 32), catalogue, "worker")
    told = json.loads((broker_files / "definitions.json").read_text())
    assert {queue["name"]: queue["arguments"] for queue in told["queues"]} == {
        queue.name: queue.queue_arguments for queue in celery.conf.task_queues
    }
    assert {exchange["name"]: exchange["type"] for exchange in told["exchanges"]} == {
        queue.exchange.name: queue.exchange.type for queue in celery.conf.task_queues
    }
    assert all(b["source"] == b["destination"] == b["routing_key"] for b in told["bindings"])
    assert QUARANTINE in {queue["name"] for queue in told["queues"]}
    assert isinstance(celery.conf.task_queues[0].exchange, Exchange)


def test_the_definitions_hold_hashes_of_the_secrets_passwords(broker_files, tmp_path):
    import base64
    import hashlib

    secrets = {"password": "correct", "monitor-password": "other", "erlang-cookie": "cookie"}
    (tmp_path / "secrets").mkdir()
    for name, value in secrets.items():
        (tmp_path / "secrets" / name).write_text(value + "\n")
    run(
        tool("escript"),
        broker_files / "definitions.escript",
        broker_files / "definitions.json",
        tmp_path / "secrets",
        tmp_path,
    )
    users = {user["name"]: user for user in json.loads((tmp_path / "definitions.json").read_text())["users"]}
    for user, password in (("darkroom", b"correct"), ("monitor", b"other")):
        salted = base64.b64decode(users[user]["password_hash"])
        assert salted[4:] == hashlib.sha256(salted[:4] + password).digest()
    assert users["monitor"]["tags"] == "monitoring"
    assert (tmp_path / ".erlang.cookie").read_text() == "cookie"
    assert (tmp_path / ".erlang.cookie").stat().st_mode & 0o777 == 0o400


def test_the_broker_waits_longer_for_a_job_than_a_job_may_take(broker_files):
    waits = int(re.search(r"consumer_timeout = (\d+)", (broker_files / "rabbitmq.conf").read_text())[1])
    assert waits / 1000 > Settings.model_fields["time_limit"].default


def test_rabbitmq_has_three_nodes_that_know_each_other(broker_files):
    told = (broker_files / "rabbitmq.conf").read_text()
    stateful = objects("everything")["StatefulSet", "darkroom-rabbitmq"]["spec"]
    domain = f"{stateful['serviceName']}.darkroom.svc.cluster.local"
    nodes = re.findall(r"nodes\.\d+ = (\S+)", told)
    assert nodes == [f"rabbit@darkroom-rabbitmq-{number}.{domain}" for number in range(3)]
    assert "target_group_size = 3" in told
    assert "listeners.tcp = none" in told


@pytest.mark.parametrize("shape", ["minikube", "production"])
def test_the_broker_takes_its_containers_limit_for_its_memory_and_not_the_nodes(shape):
    """By its own code: what it then calls all memory, of which its alarm wants a part."""
    made = objects(shape)
    (container,) = pod_of(made["StatefulSet", "darkroom-rabbitmq"])["containers"]
    config = made["ConfigMap", "darkroom-rabbitmq"]["data"]["rabbitmq.conf"]
    told = dict(re.findall(r"^(\S+) = (\S+)$", config, re.MULTILINE))
    value = told["total_memory_available_override_value"]
    code = f'application:set_env(rabbit, total_memory_available_override_value, "{value}"),'
    code += 'io:format("~p", [vm_memory_monitor:get_total_memory()]), halt().'
    libraries = list(Path("/usr/lib/rabbitmq/lib").glob("*/plugins/rabbit*-*/ebin"))
    if not libraries:
        skip_or_fail("needs RabbitMQ: script/services")
    taken = int(run(tool("erl"), "-noshell", "-pa", *libraries, "-eval", code).stdout)
    number, unit = re.fullmatch(r"(\d+)(\wi)", container["resources"]["limits"]["memory"]).groups()
    assert taken == int(number) * {"Mi": 2**20, "Gi": 2**30}[unit]
    assert 0 < float(told["vm_memory_high_watermark.relative"]) <= 0.6


@pytest.mark.parametrize("shape", ["minikube", "production"])
def test_the_broker_can_write_where_it_does_in_compose(shape):
    """Its root is read-only in both; compose.yaml runs in tests."""
    service = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["rabbitmq"]
    places = {
        *service["tmpfs"],
        *(volume.split(":")[1] for volume in service["volumes"] if not volume.startswith("./")),
    }
    (container,) = pod_of(objects(shape)["StatefulSet", "darkroom-rabbitmq"])["containers"]
    assert places <= {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}


def test_rabbitmq_and_redis_are_those_that_the_tests_run_with():
    services = (ROOT / "script/services").read_text()
    images = dict(re.findall(r"^(\w+)_image=(\S+)", services, re.MULTILINE))
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    for name in ("rabbitmq", "redis"):
        assert values[name]["image"] == f"docker.io/library/{images[name]}"


def test_the_autoscaler_of_the_gpu_machines_reads_what_rabbitmq_tells_of_each_queue():
    made = objects("production")
    (asked,) = (thing["spec"] for (kind, *_), thing in made.items() if kind == "PodMonitoring")
    (broker,) = (thing for (kind, *_), thing in made.items() if kind == "StatefulSet")
    assert asked["selector"]["matchLabels"].items() <= broker["spec"]["template"]["metadata"]["labels"].items()
    ports = {port["name"]: port["containerPort"] for port in pod_of(broker)["containers"][0]["ports"]}
    assert ports[asked["endpoints"][0]["port"]] == 15692
    # What it is called there: with the queue for a label, on this page alone.
    assert asked["endpoints"][0]["path"] == "/metrics/per-object"
    metric = (ROOT / "infra/modules/gpu_worker/variables.tf").read_text()
    assert "prometheus.googleapis.com/rabbitmq_queue_messages/gauge" in metric
    assert not [kind for kind, *_ in objects("minikube") if kind == "PodMonitoring"]


# ---- Redis


def test_a_real_redis_takes_the_charts_configuration_and_the_secrets_password(tmp_path):
    """The command of the pod, its folders moved here: it must keep its data and know nobody without a password."""
    server, client = tool("redis-server"), tool("redis-cli")
    made = objects("minikube")
    socket = tmp_path / "redis.sock"
    config = made["ConfigMap", "darkroom-redis"]["data"]["redis.conf"]
    assert "port 6379" in config
    moved = config.replace("dir /data", f"dir {tmp_path}").replace("port 6379", f"port 0\nunixsocket {socket}")
    (tmp_path / "redis.conf").write_text(moved)
    container = pod_of(made["StatefulSet", "darkroom-redis"])["containers"][0]
    shell, option, script = container["command"]
    process = subprocess.Popen(
        [shell, option, script.replace("/etc/redis/redis.conf", str(tmp_path / "redis.conf"))],
        env={"REDISCLI_AUTH": "correct", "PATH": f"{server.rpartition('/')[0]}:/usr/bin:/bin"},
        stdout=subprocess.DEVNULL,
    )

    def ask(*words, password):
        return run(client, "-s", socket, *words, check=False, env={"REDISCLI_AUTH": password}).stdout.strip()

    try:
        while ask("ping", password="correct") != "PONG":
            assert process.poll() is None
        assert "NOAUTH" in ask("ping", password="")
        assert ask("config", "get", "maxmemory-policy", password="correct").endswith("noeviction")
        assert ask("config", "get", "appendonly", password="correct").endswith("yes")
        assert "correct" not in run("ps", "-o", "args=", "-p", process.pid).stdout
        process.terminate()
        process.wait(10)
        # The signal reached Redis itself, which took the time to end well.
        assert not socket.exists()
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def external_redis(tmp_path_factory):
    """Like Memorystore: a certificate without a name, a limit, and no CONFIG. Its URL and its certificate."""
    folder, port = signed_by_itself(tmp_path_factory.mktemp("external"), "127.0.0.1"), free_port()
    certificate = folder / "tls.crt"
    # What docs/security.md grants, and what it says that the exporter needs besides.
    page = (ROOT / "docs/security.md").read_text()
    rights = re.search(r"^user darkroom (.+)$", page, re.MULTILINE)[1]
    besides = re.search(r"exporter.* `(\+\w+)`", page)[1]
    (folder / "users.acl").write_text(f"user default off\nuser darkroom on >sesame {rights} {besides}\n")
    options = {"port": 0, "tls-port": port, "bind": "127.0.0.1", "dir": folder, "save": "", "maxmemory": "100mb"}
    options |= {"tls-cert-file": certificate, "tls-key-file": folder / "tls.key", "tls-ca-cert-file": certificate}
    options |= {"tls-auth-clients": "no", "aclfile": folder / "users.acl"}
    command = [tool("redis-server"), *(str(word) for name, value in options.items() for word in (f"--{name}", value))]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        # The query is redis-py's.
        yield f"rediss://darkroom:sesame@127.0.0.1:{port}/0?ssl_check_hostname=false", certificate
        server.terminate()


@pytest.mark.parametrize("skips", [True, False])
def test_a_real_exporter_tells_how_full_an_external_redis_is(external_redis, skips):
    """With the variables of the chart. Without a look at the certificate, since it refuses one without a name."""
    url, certificate = external_redis
    sets = {"redis__exporter__skipTlsVerification": json.dumps(skips)}
    made = rendered("darkroom", values="values-production.yaml", **sets)
    (container,) = pod_of(made["Deployment", "darkroom-redis-exporter"])["containers"]
    given = {each["name"]: each.get("value", url) for each in container["env"]}
    if not skips:
        (mount,) = container["volumeMounts"]
        assert given["REDIS_EXPORTER_TLS_CA_CERT_FILE"] == f"{mount['mountPath']}/ca.crt"
        given["REDIS_EXPORTER_TLS_CA_CERT_FILE"] = str(certificate)
    address = f"127.0.0.1:{free_port()}"
    given["REDIS_EXPORTER_WEB_LISTEN_ADDRESS"] = address
    exporter = subprocess.Popen([tool("prometheus-redis-exporter")], env=given, stderr=subprocess.PIPE, text=True)
    try:
        told = until(lambda: numbers(address, up=skips), 20, "the exporter tells")
    finally:
        exporter.terminate()
        said = exporter.communicate()[1]
    assert "sesame" not in said
    if skips:
        # What RedisMemory compares: both from INFO.
        assert float(told["redis_memory_max_bytes"]) == 100 * 2**20
        assert float(told["redis_memory_used_bytes"]) > 0


def numbers(address, *, up):
    """What an exporter tells, once it has found Redis or has found that it cannot."""
    with contextlib.suppress(requests.ConnectionError):
        lines = requests.get(f"http://{address}/metrics", timeout=10).text.splitlines()
        told = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return told if told.get("redis_up") == str(int(up)) else None
    return None


def test_the_exporter_of_an_external_redis_is_found_by_prometheus_and_reaches_redis_alone():
    made = objects("production")
    assert ("StatefulSet", "darkroom-redis") not in made
    template = made["Deployment", "darkroom-redis-exporter"]["spec"]["template"]["metadata"]
    assert template["annotations"]["prometheus.io/port"] == "9121"
    (ways_in,) = made["NetworkPolicy", "darkroom-default"]["spec"]["ingress"]
    assert 9121 in {port["port"] for port in ways_in["ports"]}
    policy = made["NetworkPolicy", "darkroom-redis-exporter"]["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= template["labels"].items()
    assert policy["egress"] == [
        {"to": [{"ipBlock": {"cidr": "10.20.0.0/16"}}], "ports": [{"protocol": "TCP", "port": 6378}]}
    ]
    assert ("Deployment", "darkroom-redis-exporter") not in objects("minikube")
