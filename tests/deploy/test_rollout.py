"""How the pods of charts/darkroom are watched, found, replaced and scaled: a table of each, compared as a whole."""

import pytest

from tests.deploy.programs import pod_of, rendered
from tests.deploy.shapes import EVERYTHING, objects

PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
SETTINGS_READERS = {"web", "courier", "worker-a", "worker-b", "worker-c"}
SAFE_TO_EVICT = "cluster-autoscaler.kubernetes.io/safe-to-evict"


def of_kind(kinds, made):
    """The objects of these kinds by their role."""
    return {name.removeprefix("darkroom-"): thing for (kind, name), thing in made.items() if kind in kinds}


def workloads(shape):
    return of_kind(("Deployment", "StatefulSet"), objects(shape))


def asked(probe):
    """What a probe asks; None where there is no probe."""
    if not probe:
        return None
    if "exec" in probe:
        return probe["exec"]["command"][-1]
    return probe["httpGet"]["path"] if "httpGet" in probe else f"port {probe['tcpSocket']['port']}"


ALIVE = 'test -n "$(find /tmp/alive -newermt "-30 seconds")"'
PONG = "redis-cli --tls --cacert /etc/redis/tls/ca.crt ping | grep -q PONG"
# An outage of broker or store must restart no pod that is at work, nor take it out: only a start may wait for them.
LOOKED_AT = {
    "web": ("/readyz", "/healthz", "/healthz"),
    "courier": (ALIVE, ALIVE, None),
    "worker-a": (ALIVE, ALIVE, None),
    "worker-b": (ALIVE, ALIVE, None),
    "worker-c": (ALIVE, ALIVE, None),
    "flower": (None, "/healthcheck", "port http"),
    "celery-exporter": (None, "/health", "port http"),
    "rabbitmq": ("ping", "ping", "port amqp"),
    "redis": (PONG, PONG, PONG),
}


def test_each_role_is_asked_whether_it_lives_by_what_is_its_own():
    probes = {
        role: tuple(asked(pod_of(thing)["containers"][0].get(probe)) for probe in PROBES)
        for role, thing in workloads("everything").items()
    }
    assert probes == LOOKED_AT


GRADUALLY = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
WITHIN_THE_GPUS = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
ONE_ALONE = {"type": "Recreate"}
REPLACED = {
    "web": GRADUALLY,
    "courier": None,
    "worker-a": WITHIN_THE_GPUS,
    "worker-b": WITHIN_THE_GPUS,
    "worker-c": WITHIN_THE_GPUS,
    "flower": ONE_ALONE,
    "celery-exporter": ONE_ALONE,
}


def test_a_worker_is_replaced_within_its_gpus_and_who_counts_events_is_never_there_twice():
    deployments = of_kind(("Deployment",), objects("everything"))
    assert {role: thing["spec"].get("strategy") for role, thing in deployments.items()} == REPLACED


PORTS = {
    "web": 8000,
    "courier": 9464,
    "worker-a": 9464,
    "worker-b": 9464,
    "worker-c": 9464,
    "celery-exporter": 9808,
    "rabbitmq": 15692,
    "redis": 9121,
}


def annotations(role):
    return workloads("everything")[role]["spec"]["template"]["metadata"].get("annotations", {})


def test_prometheus_finds_every_pod_that_tells_numbers():
    scraped = {
        role: {name: text for name, text in annotations(role).items() if name.startswith("prometheus.io/")}
        for role in workloads("everything")
    }
    assert {role: told for role, told in scraped.items() if told} == {
        role: {"prometheus.io/scrape": "true", "prometheus.io/port": str(port), "prometheus.io/path": "/metrics"}
        for role, port in PORTS.items()
    }


def test_the_cluster_moves_no_worker_to_save_a_node():
    kept = {r for r in workloads("everything") if annotations(r).get(SAFE_TO_EVICT) == "false"}
    assert kept == {"worker-a", "worker-b", "worker-c"}


def test_a_node_that_is_emptied_takes_one_pod_of_a_role_at_a_time():
    budgets = of_kind(("PodDisruptionBudget",), objects("everything"))
    chosen = {
        role: (
            budget["spec"]["maxUnavailable"],
            budget["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"],
        )
        for role, budget in budgets.items()
    }
    assert chosen == {role: (1, role) for role in ("web", "courier", "rabbitmq", "worker-a", "worker-b", "worker-c")}


@pytest.mark.parametrize(
    ("change", "restarted"),
    [
        ({"settings": '{"LEASE": 45}'}, SETTINGS_READERS),
        ({"catalogue": '"models: [another]"'}, SETTINGS_READERS),
        ({"rabbitmq__consumerTimeout": "2000000"}, {"rabbitmq"}),
        ({"redis__maxMemory": '"512mb"'}, {"redis"}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_configured_anew_restarts_those_who_read_it_and_nobody_else(change, restarted):
    def templates(**sets):
        made = of_kind(("Deployment", "StatefulSet"), rendered("darkroom", **sets))
        return {role: thing["spec"]["template"] for role, thing in made.items()}

    before, after = templates(**EVERYTHING), templates(**EVERYTHING | change)
    assert {role for role in before if before[role] != after[role]} == restarted


SLOWLY = [{"type": "Pods", "value": 1, "periodSeconds": 60}]


def test_pods_go_one_a_minute_once_the_need_has_been_lower_for_minutes():
    made = objects("everything")
    web, by_metric = (made["HorizontalPodAutoscaler", f"darkroom-{role}"]["spec"] for role in ("web", "worker-b"))
    keda = made["ScaledObject", "darkroom-worker-a"]["spec"]
    by_keda = keda["advanced"]["horizontalPodAutoscalerConfig"]
    down = [scaler["behavior"]["scaleDown"] for scaler in (web, by_metric, by_keda)]
    assert down == [{"stabilizationWindowSeconds": wait, "policies": SLOWLY} for wait in (300, 600, 600)]
    assert keda["cooldownPeriod"] == 600


def test_the_web_tier_believes_the_one_proxy_before_it_and_no_other():
    for shape in ("minikube", "production"):
        (container,) = pod_of(workloads(shape)["web"])["containers"]
        assert {"name": "TRUSTED_PROXIES", "value": "1"} in container["env"], shape


def test_redis_loses_no_more_than_a_second():
    config = objects("everything")["ConfigMap", "darkroom-redis"]["data"]["redis.conf"]
    assert {"appendonly yes", "appendfsync everysec"} <= set(config.splitlines())


def test_events_pass_the_ingress_at_once_and_who_asks_too_often_is_told_so():
    f5 = objects("production")["Ingress", "darkroom"]["metadata"]["annotations"]
    assert (f5["nginx.org/proxy-buffering"], f5["nginx.org/limit-req-reject-code"]) == ("false", "429")
    community = objects("everything")["Ingress", "darkroom"]["metadata"]["annotations"]
    assert community["nginx.ingress.kubernetes.io/proxy-buffering"] == "off"
