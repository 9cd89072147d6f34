"""Who reaches whom, on which port: all that the network policies of both charts say, compared as a whole."""

import json

import pytest
import yaml

from tests.deploy.programs import ROOT, rendered
from tests.deploy.shapes import EVERYTHING, SHAPES

VALUES = yaml.safe_load((ROOT / "charts/darkroom/values.yaml").read_text())
WORLD = {"cidr": "0.0.0.0/0", "except": VALUES["networkPolicy"]["privateNetworks"]}
NAMESPACE = "kubernetes.io/metadata.name"
LABEL = "app.kubernetes.io/"
DIRECTIONS = {"Ingress": ("ingress", "from", "hears"), "Egress": ("egress", "to", "asks")}


def chosen(chart, selector):
    """The role that a selector of this chart's pods chooses, or what is chosen otherwise: that is in no table."""
    labels = dict(selector.get("matchLabels", {}))
    ours = labels.pop(f"{LABEL}name", ""), labels.pop(f"{LABEL}instance", "")
    roles = [labels.pop(f"{LABEL}component")] if f"{LABEL}component" in labels else ["all"]
    for choice in selector.get("matchExpressions", []):
        assert (choice["key"], choice["operator"]) == (f"{LABEL}component", "In")
        roles = choice["values"]
    return "+".join(roles) if (ours, labels) == ((chart, "darkroom"), {}) else f"pods{json.dumps(selector)}"


def named(chart, peer):
    if peer == {"ipBlock": WORLD}:
        return "world"
    if list(peer) == ["ipBlock"] and list(peer["ipBlock"]) == ["cidr"]:
        return peer["ipBlock"]["cidr"]
    if list(peer) == ["podSelector"]:
        return chosen(chart, peer["podSelector"])
    labels = peer.get("namespaceSelector", {}).get("matchLabels", {})
    return f"{labels[NAMESPACE]}:" if peer == {"namespaceSelector": {"matchLabels": labels}} and labels else str(peer)


def port_of(port):
    number = f"{port['port']}-{port['endPort']}" if "endPort" in port else str(port["port"])
    return number if port["protocol"] == "TCP" else f"{number}/{port['protocol']}"


def told(chart, **shape):
    """A line for each rule: who hears or asks whom, on which ports. `:` follows a namespace."""
    policies = [thing["spec"] for (kind, _), thing in rendered(chart, **shape).items() if kind == "NetworkPolicy"]
    found = []
    for spec in policies:
        for kind in spec["policyTypes"]:
            direction, whom, verb = DIRECTIONS[kind]
            for rule in spec.get(direction, []):
                peers = " ".join(sorted(named(chart, peer) for peer in rule.get(whom, []))) or "everybody"
                ports = " ".join(port_of(port) for port in rule.get("ports", [])) or "any"
                found.append(f"{chosen(chart, spec['podSelector'])} {verb} {peers} on {ports}")
    return sorted(found)


def rows(table):
    return sorted(line.strip() for line in table.splitlines() if line.strip())


TABLES = {
    "minikube": """
        all asks kube-system: on 53/UDP 53
        all hears observability: on 9464 9808 9121 15692
        celery-exporter asks rabbitmq on 5672
        courier asks rabbitmq on 5672
        courier asks redis on 6379
        courier asks world on any
        flower asks rabbitmq on 5672 15672
        rabbitmq asks rabbitmq on 4369 25672
        rabbitmq hears celery-exporter courier flower web worker-tiny on 5672
        rabbitmq hears flower on 15672
        rabbitmq hears rabbitmq on 4369 25672
        redis hears courier web worker-tiny on 6379
        test asks web on 8000
        web asks rabbitmq on 5672
        web asks redis on 6379
        web asks world on 443
        web hears nginx-ingress: observability: test on 8000
        worker-tiny asks rabbitmq on 5672
        worker-tiny asks redis on 6379
        worker-tiny asks world on 443
    """,
    "production": """
        all asks kube-system: on 53/UDP 53
        all hears observability: on 9464 9808 9121 15692
        celery-exporter asks rabbitmq on 5671
        courier asks 10.20.0.0/16 on 6378
        courier asks 169.254.169.252/32 169.254.169.254/32 on 80 988
        courier asks observability: on 4318
        courier asks rabbitmq on 5671
        courier asks world on any
        flower asks rabbitmq on 5671 15672
        rabbitmq asks rabbitmq on 4369 25672
        rabbitmq hears 10.10.16.0/22 celery-exporter courier flower web on 5671
        rabbitmq hears flower on 15672
        rabbitmq hears gmp-system: on 15692
        rabbitmq hears rabbitmq on 4369 25672
        redis-exporter asks 10.20.0.0/16 on 6378
        test asks web on 8000
        web asks 10.20.0.0/16 on 6378
        web asks 169.254.169.252/32 169.254.169.254/32 on 80 988
        web asks observability: on 4318
        web asks rabbitmq on 5671
        web asks world on 443
        web hears nginx-ingress: observability: test on 8000
    """,
    "a pool that KEDA scales": """
        all asks kube-system: on 53/UDP 53
        all hears observability: on 9464 9808 9121 15692
        celery-exporter asks rabbitmq on 5671
        courier asks 169.254.169.252/32 169.254.169.254/32 on 80 988
        courier asks rabbitmq on 5671
        courier asks redis on 6379
        courier asks world on any
        flower asks rabbitmq on 5671 15672
        rabbitmq asks rabbitmq on 4369 25672
        rabbitmq hears 10.10.16.0/22 celery-exporter courier flower web worker-a on 5671
        rabbitmq hears flower on 15672
        rabbitmq hears keda: on 15672
        rabbitmq hears rabbitmq on 4369 25672
        redis hears courier web worker-a on 6379
        test asks web on 8000
        web asks 169.254.169.252/32 169.254.169.254/32 on 80 988
        web asks rabbitmq on 5671
        web asks redis on 6379
        web asks world on 443
        web hears nginx-ingress: observability: test on 8000
        worker-a asks 169.254.169.252/32 169.254.169.254/32 on 80 988
        worker-a asks rabbitmq on 5671
        worker-a asks redis on 6379
        worker-a asks world on 443
    """,
}
KEDA = EVERYTHING | {
    "workers": '[{"name": "a", "queue": "gen.tiny", "scaling": {"kind": "keda"}}]',
    "rabbitmq__kedaNamespace": f'{{"{NAMESPACE}": "keda"}}',
}


@pytest.mark.parametrize("shape", TABLES)
def test_darkrooms_pods_hear_and_ask_those_of_the_table_and_nobody_else(shape):
    assert told("darkroom", **SHAPES.get(shape, KEDA)) == rows(TABLES[shape])


EVERY_WATCHER = """
    all asks all on any
    all asks kube-system: on 53/UDP 53
    all hears all on any
    all hears darkroom: on 4318
    prometheus asks darkroom: on any
    prometheus asks everybody on 10250 9100
    prometheus+alertmanager+blackbox-exporter+filebeat asks everybody on 443 6443
"""
IN_PRODUCTION = """
    prometheus asks 10.10.16.0/22 on 9464-9471 9100 9400
    prometheus asks 169.254.169.252/32 169.254.169.254/32 on 80 988
"""


@pytest.mark.parametrize(("shape", "table"), [("minikube", ""), ("production", IN_PRODUCTION)])
def test_from_outside_only_darkrooms_traces_come_in_to_who_watches(shape, table):
    assert told("observability", values=f"values-{shape}.yaml") == rows(EVERY_WATCHER + table)
