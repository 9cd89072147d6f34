"""charts/darkroom in the shapes that its tests look at."""

import json

from tests.deploy.programs import ROOT, rendered

CHART = ROOT / "charts/darkroom"
# Every template at once: a pool each way of scaling, the community's ingress, the broker reached from outside.
EVERYTHING = {
    "storage__url": '"gs://pictures"',
    "apiKeys__secret": '"keys"',
    "webhooks__secret": '"webhooks"',
    "catalogue": '"models: []"',
    "ingress__flavour": '"community"',
    "ingress__host": '"darkroom.example.com"',
    "workers": json.dumps(
        [
            {"name": "a", "queue": "gen.tiny", "scaling": {"kind": "keda"}},
            {"name": "b", "queue": "gen.sd15", "scaling": {"kind": "metric"}},
            {"name": "c", "queue": "gen.sdxl", "cache": {"claim": "models", "tokenSecret": "hub"}},
        ]
    ),
    "rabbitmq__internalLoadBalancer": '{"enabled": true, "sourceRanges": ["10.10.16.0/22"]}',
}
SHAPES = {
    "minikube": {"values": "values-minikube.yaml"},
    "production": {"values": "values-production.yaml"},
    "everything": EVERYTHING,
}
# Kinds of KEDA and of Google, whose schemas Kubernetes does not have.
FOREIGN = {"ScaledObject", "TriggerAuthentication", "PodMonitoring"}


def objects(shape, helm="helm4"):
    return rendered("darkroom", helm, **SHAPES[shape])
