"""The Jenkinsfile, by Jenkins' own Groovy against a strict recorder; its scripts, with programs that take notes."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from app import __version__
from tests.deploy.programs import ROOT, pod_of, rendered, run, tool

GROOVY = "/usr/share/java/groovy-all.jar:/usr/share/java/commons-cli.jar"


def recorded(jenkinsfile, check=True):
    if not Path(GROOVY.partition(":")[0]).exists():
        tool("groovy")
    harness = ROOT / "tests/deploy/jenkinsfile.groovy"
    return run(tool("java"), "-cp", GROOVY, "groovy.ui.GroovyMain", harness, jenkinsfile, check=check)


@pytest.fixture(scope="module")
def pipeline():
    return json.loads(recorded(ROOT / "Jenkinsfile").stdout)


def said(pipeline, word):
    return [(entry["path"], entry["arguments"]) for entry in pipeline if entry["word"] == word]


def test_the_stages_come_in_their_order(pipeline):
    assert [name for _, (name,) in said(pipeline, "stage")] == [
        *["Checks", "Lint", "Charts", "Terraform", "Test", "Build", "Scan", "Push"],
        *["Deploy web", "Smoke web", "Deploy worker", "Smoke worker"],
    ]


def test_only_main_is_pushed_and_deployed(pipeline):
    guarded = {
        path[-1] for path, arguments in said(pipeline, "branch") if arguments == ["main"] for path in [path[:-1]]
    }
    assert guarded == {"Push", "Deploy web", "Smoke web", "Deploy worker", "Smoke worker"}
    for path, (text,) in said(pipeline, "sh"):
        if re.search("infra/ci/(push|deploy|smoke|rollback)", text):
            assert guarded & set(path), text


def test_a_failed_smoke_test_rolls_back(pipeline):
    back = {
        next(name for name in path if "Smoke" in name): text
        for path, (text,) in said(pipeline, "sh")
        if "failure" in path and "stages" in path
    }
    assert back == {"Smoke web": "infra/ci/rollback web", "Smoke worker": "infra/ci/rollback worker"}


def test_each_step_is_a_script_that_a_person_can_run(pipeline):
    for _, (text,) in said(pipeline, "sh"):
        scripts = re.findall(r"(?:infra/ci|script)/[\w-]+", text)
        assert scripts, text
        assert all(os.access(ROOT / script, os.X_OK) for script in scripts)


def test_secrets_are_jenkins_own_by_id():
    text = (ROOT / "Jenkinsfile").read_text()
    assert set(re.findall(r"credentialsId: '([\w-]+)'", text)) == {
        *["docker-hub", "gke-kubeconfig", "darkroom-values", "darkroom-url", "darkroom-api-key"],
        *["gpu-ssh", "gpu-known-hosts", "gpu-hosts", "discord-webhook"],
    }
    # In a text with double quotes Groovy itself would put the secret in, and Jenkins would log it.
    assert not re.search(r'sh\s*"', text)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("stages {", "stagez {"),
        ("steps { sh 'script/lint' }", "sh 'script/lint'"),
        ("when { branch 'main' }", "when { brunch 'main' }"),
        ("timestamps()", "timestampz()"),
    ],
)
def test_the_recorder_finds_mistakes(tmp_path, right, wrong):
    text = (ROOT / "Jenkinsfile").read_text()
    assert right in text
    (tmp_path / "Jenkinsfile").write_text(text.replace(right, wrong, 1))
    assert recorded(tmp_path / "Jenkinsfile", check=False).returncode == 1


# ---- The scripts

NOTE = """#!/usr/bin/env bash
printf '%s' "$(basename "$0")" >>"$NOTES"; printf ' %q' "$@" >>"$NOTES"; echo >>"$NOTES"
"""


@pytest.fixture
def path(tmp_path):
    """Puts programs on PATH that note how they were called, then do what their text says."""
    (tmp_path / "bin").mkdir()

    def put(**programs):
        for name, text in programs.items():
            program = tmp_path / "bin" / name
            program.write_text(NOTE + text)
            program.chmod(0o755)

    return put


@pytest.fixture
def script(tmp_path):
    """Runs a script of infra/ci; the result has `.notes`, a line a call."""

    def call(name, *arguments, check=True, **environ):
        environ = {
            "PATH": f"{tmp_path}/bin:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(tmp_path),
            "NOTES": str(tmp_path / "notes"),
            "TMPDIR": str(tmp_path),
            "VERSION": "1.2.3-abcdef0",
            **environ,
        }
        (tmp_path / "notes").write_text("")
        done = run(ROOT / "infra/ci" / name, *arguments, check=check, env=environ)
        done.notes = (tmp_path / "notes").read_text().splitlines()
        return done

    return call


def test_a_commit_has_one_version(script):
    commit = run("git", "rev-parse", "--short=7", "HEAD", cwd=ROOT).stdout.strip()
    assert script("version", VERSION="").stdout.strip() == f"{__version__}-{commit}"


def test_both_images_are_built_with_version_and_commit(script, path):
    path(docker="")
    built = script("build").notes
    assert [re.search(r"--file (\S+) --tag (\S+)", note).groups() for note in built] == [
        ("Dockerfile.web", "docker.io/darkroom/darkroom-web:1.2.3-abcdef0"),
        ("Dockerfile.gpu", "docker.io/darkroom/darkroom-worker:1.2.3-abcdef0"),
    ]
    for file, note in zip(("Dockerfile.web", "Dockerfile.gpu"), built, strict=True):
        given = set(re.findall(r"--build-arg (\w+)=", note))
        assert given <= set(re.findall(r"^ARG (\w+)", (ROOT / file).read_text(), re.MULTILINE))
        assert {"VERSION", "REVISION"} <= given


def test_a_push_keeps_the_password_out_of_the_arguments_and_logs_in_for_itself(script, path):
    login = '[[ $1 != login ]] || { cat >/dev/null; touch "$DOCKER_CONFIG/config.json"; }'
    path(docker=f"[[ $1 != manifest ]] || exit 1\n{login}\n")
    done = script("push", DOCKER_USER="robot", DOCKER_PASSWORD="a-secret")
    assert "a-secret" not in done.stdout + done.stderr + "".join(done.notes)
    assert [note for note in done.notes if note.startswith("docker push")] == [
        "docker push docker.io/darkroom/darkroom-web:1.2.3-abcdef0",
        "docker push docker.io/darkroom/darkroom-worker:1.2.3-abcdef0",
    ]


def test_what_was_pushed_once_is_not_pushed_over(script, path):
    path(docker="exit 0\n")
    assert not [note for note in script("push").notes if note.startswith("docker push")]


@pytest.mark.parametrize(("helm", "option"), [("v3.17.2", "--atomic"), ("v4.3.1", "--rollback-on-failure")])
def test_the_web_tier_goes_back_by_itself(script, path, helm, option):
    path(helm=f'[[ $1 != version ]] || echo "{helm}"\n')
    upgrade = script("deploy-web").notes[-1]
    assert upgrade.startswith("helm upgrade darkroom charts/darkroom --install")
    assert f" {option} " in upgrade
    assert "--set-string image.tag=1.2.3-abcdef0" in upgrade


# Machines without a network: ssh runs the command here, in a folder of the machine's name.
SSH = """
while [[ $1 == -* ]]; do case $1 in -n) shift ;; *) shift 2 ;; esac; done
host=${1#*@}; shift
[[ ! -e $MACHINES/$host/away ]] || exit 255
[[ $1 != sudo ]] || shift
command=${*//\\/etc\\/darkroom/$MACHINES/$host}
exec env DARKROOM_ETC="$MACHINES/$host" POLL_SECONDS=0.05 READY_SECONDS=1 PATH="$WORKER_FILES:$PATH" $command
"""
# A worker gets ready unless its version is a bad one.
DOCKER = """
case $1 in
  pull) [[ $3 != *missing* ]] ;;
  logs)
    v=$(<"$DARKROOM_ETC/version")
    [[ $v == *bad* || ( -e $DARKROOM_ETC/broken && $v == 2* ) ]] || echo '{"message":"worker.ready"}'
    ;;
esac
"""


@pytest.fixture
def machines(tmp_path, path):
    path(ssh=SSH, docker=DOCKER, systemctl="")

    def make(*names):
        for name in names:
            folder = tmp_path / "machines" / name
            folder.mkdir(parents=True)
            (folder / "version").write_text("1.0.0-good\n")
            (folder / "worker.env").write_text("IMAGE=docker.io/darkroom/darkroom-worker\nGPUS=2\n")
        return lambda: {name: (tmp_path / "machines" / name / "version").read_text().strip() for name in names}

    return make


@pytest.fixture
def deploy(script, tmp_path):
    files = ROOT / "infra/modules/gpu_worker/files"
    environ = {"MACHINES": str(tmp_path / "machines"), "WORKER_FILES": str(files), "WORKER_HOSTS": "gpu-1 gpu-2"}
    return lambda version, **options: script("deploy-worker", VERSION=version, **{**environ, **options})


def test_each_worker_of_each_machine_gets_the_version_one_after_another(machines, deploy):
    versions = machines("gpu-1", "gpu-2")
    done = deploy("2.0.0-new")
    assert versions() == {"gpu-1": "2.0.0-new", "gpu-2": "2.0.0-new"}
    restarts = [note for note in done.notes if note.startswith("systemctl restart")]
    assert restarts == [f"systemctl restart darkroom-worker@{gpu}.service" for _ in range(2) for gpu in range(2)]
    assert all("StrictHostKeyChecking=yes" in note for note in done.notes if note.startswith("ssh"))


def test_a_version_that_does_not_get_ready_is_taken_back_and_no_second_machine_is_touched(machines, deploy):
    versions = machines("gpu-1", "gpu-2")
    done = deploy("2.0.0-bad", check=False)
    assert done.returncode == 1
    assert "does not get ready: back to 1.0.0-good" in done.stdout + done.stderr
    assert versions() == {"gpu-1": "1.0.0-good", "gpu-2": "1.0.0-good"}
    asked = [note for note in done.notes if "gpu-2" in note and "darkroom-deploy" in note]
    assert all(note.endswith("darkroom-deploy --current") for note in asked)


def test_a_worker_that_ends_again_and_again_is_not_waited_for(machines, deploy, path):
    versions = machines("gpu-1")
    path(systemctl="[[ $1 != show ]] || echo 3\n", docker="exit 0\n")
    done = deploy("2.0.0-bad", WORKER_HOSTS="gpu-1", READY_SECONDS="600", check=False)
    assert done.returncode == 1
    assert versions() == {"gpu-1": "1.0.0-good"}


def test_new_machines_of_a_group_begin_with_what_was_deployed_last(machines, deploy, path):
    versions = machines("gpu-1", "gpu-2")
    path(gcloud='[[ $* != *list-instances* ]] || printf "gpu-1\\ngpu-2\\n"\n')
    of_group = {"WORKER_GROUP": "darkroom-worker", "REGION": "europe-west4", "WORKER_HOSTS": ""}
    change = "gcloud compute instance-groups managed all-instances-config update darkroom-worker"
    for version, reached in (("2.0.0-new", "2.0.0-new"), ("--previous", "1.0.0-good")):
        told = deploy(version, **of_group).notes[-1]
        assert told == f"{change} --region europe-west4 --metadata darkroom-version={reached}"
        assert set(versions().values()) == {reached}
    assert not [note for note in deploy("2.0.0-bad", **of_group, check=False).notes if note.startswith(change)]


def test_when_a_later_machine_fails_the_earlier_ones_are_taken_back(machines, deploy, tmp_path):
    versions = machines("gpu-1", "gpu-2")
    (tmp_path / "machines/gpu-2/broken").touch()
    assert deploy("2.0.0-new", check=False).returncode == 1
    assert versions() == {"gpu-1": "1.0.0-good", "gpu-2": "1.0.0-good"}


def test_nothing_is_changed_while_a_machine_does_not_answer(machines, deploy, tmp_path):
    versions = machines("gpu-1", "gpu-2")
    (tmp_path / "machines/gpu-2/away").touch()
    done = deploy("2.0.0-new", check=False)
    assert "gpu-2 does not answer; nothing was changed" in done.stderr
    assert versions() == {"gpu-1": "1.0.0-good", "gpu-2": "1.0.0-good"}


def test_an_image_that_cannot_be_pulled_changes_nothing(machines, deploy):
    versions = machines("gpu-1", "gpu-2")
    done = deploy("2.0.0-missing", check=False)
    assert done.returncode == 1
    assert versions() == {"gpu-1": "1.0.0-good", "gpu-2": "1.0.0-good"}
    assert not [note for note in done.notes if note.startswith("systemctl")]


def test_a_rollback_of_the_workers_goes_to_what_each_had_before(machines, deploy, script, tmp_path):
    versions = machines("gpu-1", "gpu-2")
    deploy("2.0.0-new")
    environ = {"MACHINES": str(tmp_path / "machines"), "WORKER_HOSTS": "gpu-1 gpu-2"}
    script("rollback", "worker", WORKER_FILES=str(ROOT / "infra/modules/gpu_worker/files"), **environ)
    assert versions() == {"gpu-1": "1.0.0-good", "gpu-2": "1.0.0-good"}


def test_a_version_that_is_no_version_is_refused_by_the_machine(machines, deploy):
    versions = machines("gpu-1", "gpu-2")
    assert deploy("2.0.0;reboot", check=False).returncode == 1
    assert versions() == {"gpu-1": "1.0.0-good", "gpu-2": "1.0.0-good"}


def test_discord_is_told_and_its_address_is_in_no_list_of_processes(script, path):
    path(curl="cat >/dev/null\n")
    done = script("notify", 'all "well"', DISCORD_WEBHOOK_URL="https://discord.example/a-secret")
    assert "a-secret" not in "".join(done.notes)
    assert "allowed_mentions" in done.notes[0]


# ---- script/check-deploy


@pytest.mark.parametrize(
    ("engine", "good", "said"), [(1, 0, "no Docker engine answers"), (0, 0, "trivy is not"), (1, 1, "")]
)
def test_the_check_of_everything_says_what_it_could_not_check(tmp_path, path, engine, good, said):
    (tmp_path / "script").mkdir()
    shutil.copy(ROOT / "script/check-deploy", tmp_path / "script")
    for name, status in (("test", good), ("check-images", 0)):
        (tmp_path / "script" / name).write_text(
            f'#!/bin/sh\n[ "$CI" = true ] || [ {name} != test ] || exit 3\nexit {status}\n'
        )
        (tmp_path / "script" / name).chmod(0o755)
    path(docker=f"exit {engine}\n")
    # Nothing else that this machine may have.
    for name in ("bash", "sh", "env", "dirname", "basename"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    environ = {"PATH": f"{tmp_path}/bin", "NOTES": str(tmp_path / "notes")}
    done = run(tmp_path / "script/check-deploy", env=environ, check=False)
    assert done.returncode == good
    assert said in done.stdout.partition("Not checked here:")[2]
    assert ("- both images and compose.yaml in Docker" in done.stdout) == (engine == 0)
    assert ("Failed: charts" in done.stderr) == bool(good)


# ---- What a GPU machine is made of


def test_systemd_finds_nothing_to_complain_of(tmp_path):
    analyze = tool("systemd-analyze")
    units = sorted((ROOT / "infra/modules/gpu_worker/files").glob("*.service"))
    assert len(units) == 5
    for unit in units:
        # The programs are on the machine, not here.
        text = re.sub(
            r"(?m)^(Exec\w+=-?)(/usr/bin/docker|/usr/local/bin/darkroom-\w+)", r"\1/bin/true", unit.read_text()
        )
        (tmp_path / unit.name.replace("@", "@0")).write_text(text)
    (tmp_path / "docker.service").write_text("[Service]\nExecStart=/bin/true\n")
    told = subprocess.run(
        [analyze, "verify", *tmp_path.glob("darkroom-*")], capture_output=True, text=True, check=False
    )
    ours = [line for line in told.stderr.splitlines() if "darkroom" in line]
    assert (told.returncode, ours) == (0, [])


def test_a_worker_is_stopped_gently_and_started_again():
    unit = (ROOT / "infra/modules/gpu_worker/files/darkroom-worker@.service").read_text()
    assert "ExecStop=/usr/bin/docker stop --time ${STOP_SECONDS}" in unit
    assert "TimeoutStopSec=infinity" in unit
    assert "Restart=always" in unit


def test_a_worker_runs_with_few_rights_and_its_secrets_are_no_arguments(tmp_path, path):
    from app.settings import Settings

    path(docker="", gcloud='echo "value-of-${!#}"\n')
    (tmp_path / "version").write_text("1.2.3\n")
    program = ROOT / "infra/modules/gpu_worker/files/darkroom-worker"
    environ = {
        "RUNTIME_DIRECTORY": str(tmp_path),
        "DARKROOM_ETC": str(tmp_path),
        "IMAGE": "hub/worker",
        "SECRET_PREFIX": "darkroom",
    }
    run(
        program,
        "1",
        env={**environ, "PATH": f"{tmp_path}/bin:/usr/bin:/bin", "NOTES": str(tmp_path / "notes"), "HOSTNAME": "gpu-1"},
    )
    started = (tmp_path / "notes").read_text().splitlines()[-1]
    assert started.endswith("hub/worker:1.2.3 worker")
    assert "value-of" not in started
    assert {"--read-only", "--cap-drop", "--user"} <= set(started.split())
    assert "--publish 9465:9464" in started
    assert "--gpus device=1" in started
    assert set(re.findall(r"--env (\w+)", started)) <= {name.upper() for name in Settings.model_fields}


def test_a_new_machine_asks_its_group_for_the_version_and_keeps_it(tmp_path, path):
    path(docker="", gcloud="echo secret\n", curl='while [[ $1 != --output ]]; do shift; done; echo 1.2.3 >"$2"\n')
    (tmp_path / "run").mkdir()
    environ = {
        "RUNTIME_DIRECTORY": str(tmp_path / "run"),
        "DARKROOM_ETC": str(tmp_path),
        "NOTES": str(tmp_path / "notes"),
        "IMAGE": "hub/worker",
        "SECRET_PREFIX": "darkroom",
        "HOSTNAME": "gpu-1",
        "PATH": f"{tmp_path}/bin:/usr/bin:/bin",
    }
    for _ in range(2):
        run(ROOT / "infra/modules/gpu_worker/files/darkroom-worker", "0", env=environ)
    notes = (tmp_path / "notes").read_text().splitlines()
    assert [note for note in notes if note.startswith("docker run")][-1].endswith("hub/worker:1.2.3 worker")
    (asked,) = (note for note in notes if note.startswith("curl"))
    assert asked.endswith("/computeMetadata/v1/instance/attributes/darkroom-version")
    text = (ROOT / "infra/modules/gpu_worker/main.tf").read_text()
    assert "metadata = { darkroom-version = var.worker_version }" in text


def test_filebeats_key_is_no_argument_and_its_settings_come_from_the_machine(tmp_path, path):
    path(docker="", gcloud='echo "value-of-${!#}"\n')
    environ = {"SECRET_PREFIX": "darkroom", "FILEBEAT_IMAGE": "hub/filebeat", "NOTES": str(tmp_path / "notes")}
    program = ROOT / "infra/modules/gpu_worker/files/darkroom-filebeat"
    run(program, env={**environ, "PATH": f"{tmp_path}/bin:/usr/bin:/bin"})
    notes = (tmp_path / "notes").read_text().splitlines()
    assert "gcloud secrets versions access latest --secret=darkroom-elasticsearch-api-key" in notes
    assert "value-of" not in notes[-1]
    named = re.findall(r"\$\{(\w+)[:}]", (ROOT / "charts/observability/files/logs/filebeat.yml").read_text())
    assert set(re.findall(r"--env (\w+)", notes[-1])) == set(named) - {"NODE_NAME"}


# ---- Secrets of a cluster

KUBECTL = """
[[ $* != *" get "* && $1 != get ]] || exit 1
for each in "$@"; do
  [[ $each == --from-file=* ]] || continue
  pair=${each#--from-file=}
  mkdir -p "$SECRETS/$6"
  cp "${pair#*=}" "$SECRETS/$6/${pair%%=*}"
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
