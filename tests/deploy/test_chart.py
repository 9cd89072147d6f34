"""charts/darkroom: valid for Kubernetes in every shape, careful in each pod, and in agreement with the application."""

import json
import re
import shutil

import pytest
import yaml

from app.egress import parse
from app.schemas import TaskQuery
from app.settings import Settings
from tests.deploy.programs import HELMS, ROOT, TOOLS, pod_of, rendered, run, tool
from tests.deploy.shapes import CHART, EVERYTHING, FOREIGN, SHAPES, objects

every_shape = pytest.mark.parametrize("shape", SHAPES)


@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize("shape", ["minikube", "production"])
def test_helm_finds_nothing_to_complain_of(helm, shape):
    run(tool(TOOLS / "programs" / helm), "lint", "--strict", CHART, "--values", CHART / f"values-{shape}.yaml")


@every_shape
def test_both_majors_of_helm_make_the_same(shape):
    def plain(made):
        return json.dumps({str(key): value for key, value in made.items()}, sort_keys=True)

    assert plain(objects(shape, "helm3")) == plain(objects(shape, "helm4"))


@pytest.mark.parametrize("kubernetes", ["1.30", "1.33"])
def test_every_object_is_valid_for_kubernetes(kubernetes, tmp_path):
    documents = tmp_path / "all.yaml"
    documents.write_text(yaml.dump_all([thing for shape in SHAPES for thing in objects(shape).values()]))
    told = run(tool(TOOLS / "deploy/bin/kubernetes-validate"), "--strict", "-k", kubernetes, documents)
    unknown = set(re.findall(r"Couldn't find schema for kind (\w+)", told.stdout))
    assert unknown == FOREIGN


@every_shape
def test_every_pod_runs_without_rights_that_it_does_not_need(shape):
    for (kind, name), thing in objects(shape).items():
        if not (pod := pod_of(thing)):
            continue
        where = f"{kind} {name}"
        assert pod["automountServiceAccountToken"] is False, where
        assert pod["securityContext"]["runAsNonRoot"] is True, where
        assert pod["securityContext"]["runAsUser"] >= 999, where
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, where
        for container in pod["containers"] + pod.get("initContainers", []):
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True, where
            assert security["allowPrivilegeEscalation"] is False, where
            assert security["capabilities"] == {"drop": ["ALL"]}, where


@every_shape
def test_every_long_lived_container_says_what_it_needs_and_whether_it_lives(shape):
    for (kind, name), thing in objects(shape).items():
        if kind not in ("Deployment", "StatefulSet"):
            continue
        for container in pod_of(thing)["containers"]:
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), name
            assert "memory" in container["resources"]["limits"], name
            assert "livenessProbe" in container, name


@every_shape
def test_no_image_is_latest(shape):
    images = {c["image"] for thing in objects(shape).values() if (pod := pod_of(thing)) for c in pod["containers"]}
    assert images
    assert not [image for image in images if ":" not in image.rpartition("/")[2] or image.endswith(":latest")]


@every_shape
def test_secrets_are_named_and_never_made_or_written(shape):
    made = objects(shape)
    assert "Secret" not in {kind for kind, _ in made}
    for thing in made.values():
        for container in (pod_of(thing) or {}).get("containers", []):
            for variable in container.get("env", []):
                if re.search("PASSWORD|SECRET|_KEY$|AUTH", variable["name"]):
                    assert "secretKeyRef" in variable["valueFrom"], variable["name"]


@every_shape
def test_each_pod_that_needs_a_claim_a_map_or_an_account_of_the_chart_has_it(shape):
    made = objects(shape)
    for thing in made.values():
        pod = pod_of(thing) or {}
        for volume in pod.get("volumes", []):
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in made
        if account := pod.get("serviceAccountName"):
            assert ("ServiceAccount", account) in made
        for container in pod.get("containers", []):
            mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
            claimed = {c["metadata"]["name"] for c in thing.get("spec", {}).get("volumeClaimTemplates", [])}
            assert mounted <= {volume["name"] for volume in pod.get("volumes", [])} | claimed


@every_shape
def test_services_policies_and_budgets_choose_pods_that_there_are(shape):
    made = objects(shape)
    pods = [
        thing["spec"]["template"]["metadata"]["labels"]
        for thing in made.values()
        if "template" in thing.get("spec", {})
    ]
    pods += [thing["metadata"]["labels"] for thing in made.values() if thing["kind"] == "Pod"]
    chosen = {
        "Service": lambda spec: spec["selector"],
        "NetworkPolicy": lambda spec: spec["podSelector"]["matchLabels"],
        "PodDisruptionBudget": lambda spec: spec["selector"]["matchLabels"],
    }
    for (kind, name), thing in made.items():
        if kind in chosen:
            wanted = chosen[kind](thing["spec"])
            assert any(wanted.items() <= labels.items() for labels in pods), f"{kind} {name}"


def test_a_webhook_reaches_any_port_of_the_world_and_nothing_private():
    """What app/egress.py accepts must not end at the courier's policy."""
    assert parse("https://hooks.example.com:8443/darkroom").port == 8443
    made = objects("production")
    for role, ports in (("courier", None), ("web", [443])):
        (rule,) = (
            rule
            for rule in made["NetworkPolicy", f"darkroom-{role}"]["spec"]["egress"]
            if rule["to"][0].get("ipBlock", {}).get("cidr") == "0.0.0.0/0"
        )
        told = [port["port"] for port in rule["ports"]] if "ports" in rule else None
        assert told == ports, role
        private = {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16"}
        assert private <= set(rule["to"][0]["ipBlock"]["except"])


def web():
    return pod_of(objects("production")["Deployment", "darkroom-web"])["containers"][0]


def test_the_settings_that_the_chart_gives_are_settings_of_the_application():
    known = {name.upper() for name in Settings.model_fields}
    helpers = {"BROKER_PASSWORD", "REDIS_PASSWORD", "HF_TOKEN"}
    for shape in SHAPES:
        made = objects(shape)
        assert set(made["ConfigMap", "darkroom-settings"]["data"]) <= known
        for (kind, name), thing in made.items():
            if kind == "Deployment" and re.search("-(web|courier|worker-.*)$", name):
                for variable in pod_of(thing)["containers"][0]["env"]:
                    assert variable["name"] in known | helpers, f"{name}: {variable['name']}"


def test_the_applications_settings_can_be_loaded_from_what_a_pod_gets(monkeypatch):
    made = objects("everything")
    for name in ("web", "courier", "worker-a"):
        given = dict(made["ConfigMap", "darkroom-settings"]["data"])
        for variable in pod_of(made["Deployment", f"darkroom-{name}"])["containers"][0]["env"]:
            given[variable["name"]] = variable.get(
                "value", "whsec_" + "A" * 40 if "WEBHOOK" in variable["name"] else "x"
            )
        for variable, value in given.items():
            monkeypatch.setenv(variable, re.sub(r"\$\((\w+)\)", lambda match, given=given: given[match[1]], value))
        loaded = Settings()
        assert loaded.broker_url == "amqps://darkroom:x@darkroom-rabbitmq.darkroom.svc:5671//"
        assert loaded.redis_url == "rediss://:x@darkroom-redis.darkroom.svc:6379/0"
        assert loaded.ca_file == "/etc/darkroom/ca/ca.crt"


def seconds_of(path, name):
    """A number of seconds in a configuration of NGINX or gunicorn."""
    return int(re.search(rf"^\s*{name}\s*=?\s*(\d+)s?;?", (ROOT / "config" / path).read_text(), re.MULTILINE)[1])


def test_who_stops_later_waits_longer_so_that_an_upgrade_drops_no_request():
    pod = pod_of(objects("production")["Deployment", "darkroom-web"])
    probe, pause = web()["readinessProbe"], web()["lifecycle"]["preStop"]["sleep"]["seconds"]
    ingress = objects("everything")["Ingress", "darkroom"]["metadata"]["annotations"]
    times = {
        "the longest `?wait=`": max(
            bound.le for bound in TaskQuery.model_fields["wait"].metadata if hasattr(bound, "le")
        ),
        "gunicorn lets open requests end": seconds_of("gunicorn.conf.py", "graceful_timeout"),
        "NGINX lets open requests end": seconds_of("nginx/nginx.conf", "worker_shutdown_timeout"),
    }
    assert list(times.values()) == sorted(set(times.values())), times
    reads = {seconds_of("nginx/limits.conf", "proxy_read_timeout"), read_timeout(ingress)}
    assert min(reads) > times["gunicorn lets open requests end"]
    # An idle connection is closed by NGINX first, so that no request meets one that is just being closed.
    assert seconds_of("nginx/upstream.conf", "keepalive_timeout") < seconds_of("gunicorn.conf.py", "keepalive")
    # The ingress has learned that the pod goes before it refuses anybody; it is killed with nothing left to answer.
    assert pause > probe["periodSeconds"]
    assert pod["terminationGracePeriodSeconds"] > pause + times["gunicorn lets open requests end"]
    strategy = objects("production")["Deployment", "darkroom-web"]["spec"]["strategy"]["rollingUpdate"]
    assert strategy == {"maxSurge": 1, "maxUnavailable": 0}


def read_timeout(annotations):
    return next(int(value.rstrip("s")) for name, value in annotations.items() if name.endswith("proxy-read-timeout"))


@pytest.mark.parametrize("shape", ["minikube", "production"])
def test_a_new_version_restarts_only_what_runs_its_images(shape):
    def pods(tag):
        made = rendered("darkroom", **SHAPES[shape], image__tag=f'"{tag}"')
        return {name: thing["spec"]["template"] for name, thing in made.items() if "template" in thing.get("spec", {})}

    old, new = pods("1.0.0"), pods("1.0.1")
    changed = {name for name in old if old[name] != new[name]}
    ours = {name for name in old if "/darkroom-" in old[name]["spec"]["containers"][0]["image"]}
    assert changed == ours
    assert {"darkroom-rabbitmq", "darkroom-flower", "darkroom-celery-exporter"} <= {name for _, name in set(old) - ours}


def test_a_worker_pod_has_time_to_finish_or_hand_back():
    for name in "abc":
        pod = pod_of(objects("everything")["Deployment", f"darkroom-worker-{name}"])
        grace = next(v["value"] for v in pod["containers"][0]["env"] if v["name"] == "WORKER_GRACE")
        assert pod["terminationGracePeriodSeconds"] > int(grace) + 10


def test_a_token_of_the_hub_comes_from_a_secret_and_only_where_one_is_named():
    told = {name: env_of(objects("everything")["Deployment", f"darkroom-worker-{name}"]) for name in "bc"}
    assert "HF_TOKEN" not in told["b"]
    assert told["c"]["HF_TOKEN"] == {"secretKeyRef": {"name": "hub", "key": "token"}}


def env_of(deployment):
    return {v["name"]: v.get("valueFrom") for v in pod_of(deployment)["containers"][0]["env"]}


@pytest.mark.parametrize("helm", HELMS)
def test_a_large_number_of_a_file_reaches_the_application_as_it_is(tmp_path, helm):
    # As `terraform output -json helm_values` gives it.
    given = {"RESULT_TTL": 2_592_000, "UPLOAD_MAX_BYTES": 20_000_000, "LEASE": 2.5, "ALLOW_ANONYMOUS": True}
    (tmp_path / "values-mine.json").write_text(json.dumps({"settings": given}))
    data = rendered("darkroom", helm, values=tmp_path / "values-mine.json", **EVERYTHING)
    told = data["ConfigMap", "darkroom-settings"]["data"]
    assert {name: told[name] for name in given} == {
        "RESULT_TTL": "2592000", "UPLOAD_MAX_BYTES": "20000000", "LEASE": "2.5", "ALLOW_ANONYMOUS": "true"
    }  # fmt: skip


def test_workers_are_scaled_by_what_waits_and_what_runs():
    made = objects("everything")
    keda = made["ScaledObject", "darkroom-worker-a"]["spec"]
    # Most models refuse jobs while no worker is there, so that nothing would ever wait for the first.
    assert keda["minReplicaCount"] == 1
    assert keda["triggers"][0]["metadata"] == {
        "protocol": "http",
        "mode": "QueueLength",
        "queueName": "gen.tiny",
        "value": "4",
        "excludeUnacknowledged": "false",
    }
    assert ("TriggerAuthentication", keda["triggers"][0]["authenticationRef"]["name"]) in made
    metric = made["HorizontalPodAutoscaler", "darkroom-worker-b"]["spec"]["metrics"][0]["external"]["metric"]
    assert metric == {"name": "rabbitmq_queue_messages", "selector": {"matchLabels": {"queue": "gen.sd15"}}}
    assert "replicas" not in made["Deployment", "darkroom-worker-a"]["spec"]
    assert made["Deployment", "darkroom-worker-c"]["spec"]["replicas"] == 1


# ---- Values, ingress and documents


@pytest.mark.parametrize(
    "wrong",
    [
        'image__tag="latest"',
        'storage__url="s3://bucket"',
        'settings={"BROKER_URL": "amqp://secret"}',
        'settings={"RESULT_TLL": 3600}',
        "rabbitmq__replicas=2",
        'rabbitmq__resources__limits__memory="2G"',
        "rabbitmq__resources__limits=null",
        'ingress__flavour="other"',
        "web__replica=3",
        'workers=[{"name": "a"}]',
        "apiKeys__allowAnonymous=false",
    ],
)
def test_a_wrong_value_is_refused_before_anything_is_made(wrong):
    name, _, value = wrong.partition("=")
    given = ["--values", CHART / "values-minikube.yaml", "--set-json", f"{name.replace('__', '.')}={value}"]
    assert run(tool(TOOLS / "programs/helm4"), "template", "darkroom", CHART, *given, check=False).returncode != 0


@pytest.mark.parametrize(
    ("values", "lacks", "told"),
    [
        ("production", "ingress.host=", "ingress.host"),
        ("minikube", "storage.signingSecret=", "storage.signingSecret"),
        ("minikube", "redis.enabled=false", "redis.external.secret"),
        ("minikube", "rabbitmq.enabled=false", "rabbitmq.external.secret"),
    ],
)
def test_a_release_that_could_not_start_is_refused_by_the_name_of_what_it_lacks(values, lacks, told):
    given = ["--values", CHART / f"values-{values}.yaml", "--set", lacks]
    done = run(tool(TOOLS / "programs/helm4"), "template", "darkroom", CHART, *given, check=False)
    assert done.returncode != 0
    assert f"({told})" in done.stderr


def test_the_chart_takes_each_setting_that_there_is_and_no_other():
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]["settings"]
    names, *others = schema["propertyNames"]["anyOf"]
    secrets = {"BROKER_URL", "REDIS_URL", "SIGNING_KEY", "WEBHOOK_SECRET"}
    assert set(names["enum"]) == {name.upper() for name in Settings.model_fields} - secrets
    # What libraries hear.
    heard = ("OTEL_TRACES_SAMPLER", "HF_ENDPOINT", "PYTORCH_CUDA_ALLOC_CONF", "HTTPS_PROXY", "STORAGE_EMULATOR_HOST")
    assert [name for name in heard if not any(re.search(other["pattern"], name) for other in others)] == []


def test_the_ingress_speaks_to_one_controller_and_tells_it_the_limits():
    limits = yaml.safe_load((CHART / "values.yaml").read_text())["ingress"]["limits"]
    f5 = objects("production")["Ingress", "darkroom"]["metadata"]["annotations"]
    assert f5["nginx.org/limit-req-rate"] == f"{limits['rateRps']}r/s"
    assert f5["nginx.org/client-max-body-size"] == str(limits["bodySize"])
    community = objects("everything")["Ingress", "darkroom"]["metadata"]["annotations"]
    assert community["nginx.ingress.kubernetes.io/limit-rps"] == str(limits["rateRps"])
    assert {name.partition("/")[0] for name in community} == {"nginx.ingress.kubernetes.io"}


def test_flower_asks_for_a_password_and_sees_the_queues_as_one_who_may_only_look():
    made = objects("everything")
    environment = {v["name"]: v for v in pod_of(made["Deployment", "darkroom-flower"])["containers"][0]["env"]}
    assert environment["FLOWER_BASIC_AUTH"]["valueFrom"]["secretKeyRef"]["key"] == "basic-auth"
    address = "http://monitor:$(MONITOR_PASSWORD)@darkroom-rabbitmq.darkroom.svc:15672/api/"
    assert environment["FLOWER_BROKER_API"]["value"] == address


def test_pictures_pass_the_ingress_only_where_they_are_stored_behind_it():
    limits = yaml.safe_load((CHART / "values.yaml").read_text())["ingress"]["limits"]
    annotations = objects("minikube")["Ingress", "darkroom"]["metadata"]["annotations"]
    assert annotations["nginx.org/client-max-body-size"] == str(limits["uploadBodySize"])


def test_the_readme_of_each_chart_has_its_values():
    python = shutil.which("python3") or "python3"
    run(ROOT / ".venv/bin/python" if (ROOT / ".venv").exists() else python, ROOT / "script/chart-docs", "--check")


def test_every_value_is_known_to_the_schema():
    def keys(values, path=()):
        for name, value in values.items():
            yield (*path, name)
            if isinstance(value, dict):
                yield from keys(value, (*path, name))

    def known(path, schema):
        if "$ref" in schema:
            schema = whole["$defs"][schema["$ref"].rpartition("/")[2]]
        if not path or isinstance(schema.get("additionalProperties"), dict):
            return True
        return path[0] in schema.get("properties", {}) and known(path[1:], schema["properties"][path[0]])

    whole = json.loads((CHART / "values.schema.json").read_text())
    assert not [path for path in keys(yaml.safe_load((CHART / "values.yaml").read_text())) if not known(path, whole)]
