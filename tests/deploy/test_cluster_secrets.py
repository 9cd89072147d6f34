"""The Secrets of a cluster, and what it and Secret Manager are told of each other."""

import re

import pytest

from tests.deploy.programs import ROOT, pod_of, rendered, run

KUBECTL = """
[[ $* != *" get "* && $1 != get ]] || exit 1
for each in "$@"; do
  [[ $each == --from-file=* ]] || continue
  mkdir -p "$SECRETS/$6"
  cp "${each#--from-file=}" "$SECRETS/$6"
done
"""


def test_the_secrets_that_are_made_are_those_that_the_chart_names(script, path, tmp_path):
    path(kubectl=KUBECTL)
    done = script("cluster-secrets", SECRETS=str(tmp_path / "secrets"), BROKER_HOST="broker.darkroom.internal")
    made = {folder.name: {file.name for file in folder.iterdir()} for folder in (tmp_path / "secrets").iterdir()}
    named = secrets_of(
        rendered("darkroom", values="values-minikube.yaml", tls__enabled="true", tls__caSecret='"darkroom-tls"')
    )
    assert {name: named[name] - made[name] for name in named} == {name: set() for name in named}
    for folder in (tmp_path / "secrets").iterdir():
        for file in folder.iterdir():
            assert file.read_text() not in "".join(done.notes) + done.stdout
            assert file.stat().st_mode & 0o077 == 0, file
    certificate = tmp_path / "secrets/darkroom-tls"
    run("openssl", "verify", "-CAfile", certificate / "ca.crt", certificate / "tls.crt")
    for host in ("darkroom-rabbitmq.darkroom.svc", "darkroom-redis.darkroom.svc", "broker.darkroom.internal"):
        told = run("openssl", "x509", "-in", certificate / "tls.crt", "-noout", "-checkhost", host).stdout
        assert "does match" in told


# A cluster and Secret Manager, each a folder of files.
CLUSTER = """
if [[ $3 == get ]]; then
  [[ -e $SECRETS/$5 ]] || exit 1
  key=${7#jsonpath=\\{.data.}; key=${key%\\}}
  [[ $# == 5 ]] || base64 <"$SECRETS/$5/${key//\\\\/}"
fi
"""
GCLOUD = """
case $3 in
  access) cat "$GOOGLE/${5#--secret=}" ;;
  add) cp "${5#--data-file=}" "$GOOGLE/$4" ;;
esac
"""


@pytest.fixture
def cloud(script, path, tmp_path):
    """Runs cluster-secrets and cloud-secrets after a `terraform apply`; the folders of the cluster and of Google."""
    cluster, google = tmp_path / "secrets", tmp_path / "google"
    cluster.mkdir(), google.mkdir()
    path(kubectl=CLUSTER + KUBECTL.partition("exit 1\n")[2], gcloud=GCLOUD)
    (google / "darkroom-redis-url").write_text("rediss://:sesame@10.20.0.3:6378/0")
    (google / "darkroom-redis-ca").write_text("-----BEGIN CERTIFICATE-----\nthe store's\n-----END CERTIFICATE-----\n")
    environ = {"SECRETS": str(cluster), "GOOGLE": str(google)}
    script("cluster-secrets", **environ)

    def run_it():
        return script("cloud-secrets", **environ)

    run_it.cluster, run_it.google = cluster, google
    return run_it


def test_the_cluster_and_the_gpu_machines_are_told_of_each_other(cloud):
    before = (cloud.cluster / "darkroom-tls/ca.crt").read_text()
    done = cloud()
    password = (cloud.cluster / "darkroom-rabbitmq/password").read_text()
    told = {file.name: file.read_text() for file in cloud.google.iterdir()}
    assert told["darkroom-broker-url"] == f"amqps://darkroom:{password}@broker.darkroom.internal:5671//"
    assert told["darkroom-ca"] == before
    assert (cloud.cluster / "darkroom-redis-url/url").read_text() == told["darkroom-redis-url"]
    assert (cloud.cluster / "darkroom-tls/ca.crt").read_text() == before + told["darkroom-redis-ca"]
    assert not [secret for secret in (password, "sesame") if secret in "".join(done.notes) + done.stdout + done.stderr]


def test_telling_again_changes_only_what_is_new(cloud):
    cloud()
    key, authorities = (cloud.cluster / "darkroom-tls" / name for name in ("tls.key", "ca.crt"))
    before = key.read_text(), authorities.read_text()
    assert not [note for note in cloud().notes if "versions add" in note]
    assert (key.read_text(), authorities.read_text()) == before
    (cloud.google / "darkroom-redis-ca").write_text("another\n")
    cloud()
    assert authorities.read_text() == before[1].partition("-----END CERTIFICATE-----\n")[0] + (
        "-----END CERTIFICATE-----\nanother\n"
    )


def test_secret_manager_has_the_names_that_are_told(cloud):
    cloud()
    made = re.search(r"for name in concat\(\[([^]]+)\]", (ROOT / "infra/modules/stack/main.tf").read_text())[1]
    names = {f"darkroom-{name}" for name in re.findall(r'"(.+?)"', made)}
    assert {file.name for file in cloud.google.iterdir()} == names
    external = rendered("darkroom", values="values-production.yaml")
    assert "url" in secrets_of(external)["darkroom-redis-url"]


def secrets_of(objects):
    """The Secrets that a chart's pods read: name -> keys."""
    found = {}
    for thing in objects.values():
        pod = pod_of(thing) or {}
        for container in pod.get("containers", []) + pod.get("initContainers", []):
            for variable in container.get("env", []):
                if chosen := variable.get("valueFrom", {}).get("secretKeyRef"):
                    found.setdefault(chosen["name"], set()).add(chosen["key"])
        for volume in pod.get("volumes", []):
            if "secret" in volume:
                keys = {item["key"] for item in volume["secret"].get("items", [])}
                found.setdefault(volume["secret"]["secretName"], set()).update(keys)
    return found


def test_secrets_that_are_there_stay_as_they_are(script, path):
    path(kubectl="exit 0\n")
    assert not [note for note in script("cluster-secrets").notes if "create" in note]
