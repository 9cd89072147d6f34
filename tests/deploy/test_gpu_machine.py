"""A GPU machine: how it is brought to a version and back, and what it is made of."""

import fcntl
import re
import subprocess
from pathlib import Path

import pytest

from tests.deploy.programs import ROOT, run, tool

# Machines without a network: a command runs here, in a folder of the machine's name.
RUN = """
[[ ! -e $MACHINES/$host/away ]] || exit 255
exec env DARKROOM_ETC="$MACHINES/$host" POLL_SECONDS=0.05 READY_SECONDS=1 PATH="$WORKER_FILES:$PATH" ${command#sudo }
"""
SSH = (
    """
while [[ $1 == -* ]]; do case $1 in -n) shift ;; *) shift 2 ;; esac; done
host=${1#*@}; shift; command=$*
"""
    + RUN
)
# A group of two, which has a third one made as soon as it is told of a version.
GCLOUD = (
    """
case $* in
  *list-instances*)
    [[ ! -e $MACHINES/told || ! -e $MACHINES/unlisted ]] || exit 1
    printf '%s/europe-west4-a\\n' gpu-1 gpu-2 $(cat "$MACHINES/made" 2>/dev/null)
    exit
    ;;
  *all-instances-config*) touch "$MACHINES/told"; [[ ! -e $MACHINES/gpu-3 ]] || echo gpu-3 >"$MACHINES/made"; exit ;;
  *wait-until*) exit ;;
  *print-access-token*) echo a-token; exit ;;
esac
[[ "$1 $2 $4 $5" == "compute ssh --zone europe-west4-a" ]] || exit 2
host=$3; command=${!#}; command=${command#--command=}
"""
    + RUN
)
# A worker gets ready unless its version is a bad one.
DOCKER = """
case $1 in
  pull) [[ $3 != *missing* ]] ;;
  login) cat >>"$DARKROOM_ETC/login"; echo "$DOCKER_CONFIG" >"$DARKROOM_ETC/held" ;;
  image) [[ $2 != ls ]] || printf '%s\\n' 0.8.0 0.9.0 1.0.0-good 2.0.0-new ;;
  logs)
    v=$(<"$DARKROOM_ETC/version")
    [[ $v == *bad* || ( -e $DARKROOM_ETC/broken && $v == 2* ) ]] || echo '{"message":"worker.ready"}'
    ;;
esac
"""


GROUP = {"WORKER_GROUP": "darkroom-worker", "REGION": "europe-west4", "WORKER_HOSTS": ""}
CHANGE = "gcloud compute instance-groups managed all-instances-config update darkroom-worker"


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
    path(gcloud=GCLOUD)
    for version, reached in (("2.0.0-new", "2.0.0-new"), ("--previous", "1.0.0-good")):
        assert f"{CHANGE} --metadata darkroom-version={reached} --region europe-west4" in deploy(version, **GROUP).notes
        assert set(versions().values()) == {reached}
    assert not [note for note in deploy("2.0.0-bad", **GROUP, check=False).notes if note.startswith(CHANGE)]


def test_machines_of_a_group_are_reached_through_the_proxy_and_known_by_what_google_says_of_them(
    machines, deploy, path
):
    machines("gpu-1", "gpu-2")
    path(gcloud=GCLOUD)
    notes = deploy("2.0.0-new", **GROUP).notes
    calls = [set(note.split()) for note in notes if note.startswith("gcloud compute ssh")]
    assert calls
    assert all({"--tunnel-through-iap", "--strict-host-key-checking=yes", "--quiet"} <= call for call in calls)
    assert not [note for note in notes if note.startswith("ssh")]
    text = (ROOT / "infra/modules/gpu_worker/main.tf").read_text()
    assert re.search(r'enable-guest-attributes += "TRUE"', text), "where a machine tells its keys"


def test_a_machine_that_the_group_makes_during_a_deployment_gets_its_version_and_can_be_taken_back(
    machines, deploy, path, tmp_path
):
    versions = machines("gpu-1", "gpu-2", "gpu-3")
    path(gcloud=GCLOUD)
    deploy("2.0.0-new", **GROUP)
    assert set(versions().values()) == {"2.0.0-new"}
    # One that was made with the new version knows of none before.
    (tmp_path / "machines/gpu-3/previous").unlink()
    deploy("--previous", **GROUP)
    assert set(versions().values()) == {"1.0.0-good"}


def test_a_deployment_that_cannot_see_what_was_made_meanwhile_says_so(machines, deploy, path, tmp_path):
    machines("gpu-1", "gpu-2")
    path(gcloud=GCLOUD)
    (tmp_path / "machines/unlisted").touch()
    done = deploy("2.0.0-new", **GROUP, check=False)
    assert done.returncode == 1
    assert "nobody tells which machines darkroom-worker made meanwhile" in done.stderr


def test_an_image_of_artifact_registry_is_pulled_as_the_machines_own_account(machines, deploy, path, tmp_path):
    machines("gpu-1", "gpu-2")
    path(gcloud=GCLOUD)
    (tmp_path / "machines/gpu-1/worker.env").write_text(
        "IMAGE=europe-west4-docker.pkg.dev/p/hub/darkroom-worker\nGPUS=1\n"
    )
    notes = deploy("2.0.0-new").notes
    login = "docker login --username oauth2accesstoken --password-stdin https://europe-west4-docker.pkg.dev"
    assert [note for note in notes if note.startswith("docker login")] == [login]
    assert notes.index(login) < notes.index(
        "docker pull --quiet europe-west4-docker.pkg.dev/p/hub/darkroom-worker:2.0.0-new"
    )
    assert (tmp_path / "machines/gpu-1/login").read_text() == "a-token\n"


@pytest.mark.parametrize("version", ["2.0.0-new", "2.0.0-missing"])
def test_the_token_of_a_pull_is_gone_with_it(machines, deploy, path, tmp_path, version):
    machines("gpu-1")
    path(gcloud=GCLOUD)
    environment = "IMAGE=europe-west4-docker.pkg.dev/p/hub/darkroom-worker\nGPUS=1\n"
    (tmp_path / "machines/gpu-1/worker.env").write_text(environment)
    deploy(version, WORKER_HOSTS="gpu-1", check=False)
    held = Path((tmp_path / "machines/gpu-1/held").read_text().strip())
    assert held.parent == tmp_path
    assert not held.exists()


def test_a_machine_takes_one_deployment_at_a_time(machines, deploy, tmp_path):
    versions = machines("gpu-1")
    with (tmp_path / "machines/gpu-1/deploy.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = deploy("2.0.0-new", WORKER_HOSTS="gpu-1", check=False)
    assert done.returncode == 1
    assert "another deployment is at work here" in done.stdout + done.stderr
    assert versions() == {"gpu-1": "1.0.0-good"}
    assert not [note for note in done.notes if note.startswith(("docker", "systemctl"))]


def test_the_images_of_this_version_and_the_one_before_stay_and_older_ones_go(machines, deploy):
    machines("gpu-1")
    notes = deploy("2.0.0-new", WORKER_HOSTS="gpu-1").notes
    image = "docker image rm docker.io/darkroom/darkroom-worker"
    assert [note for note in notes if note.startswith("docker image rm")] == [f"{image}:0.8.0", f"{image}:0.9.0"]


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


def test_what_was_taken_back_is_no_version_before(machines, deploy, tmp_path):
    versions = machines("gpu-1", "gpu-2")
    deploy("1.5.0-good")
    (tmp_path / "machines/gpu-2/broken").touch()
    assert deploy("2.0.0-new", check=False).returncode == 1
    assert versions() == {"gpu-1": "1.5.0-good", "gpu-2": "1.5.0-good"}
    deploy("--previous")
    assert versions() == {"gpu-1": "1.0.0-good", "gpu-2": "1.0.0-good"}


def test_a_machine_that_knows_of_no_version_before_says_so(machines, deploy, tmp_path):
    versions = machines("gpu-1", "gpu-2")
    (tmp_path / "machines/gpu-2/broken").touch()
    assert deploy("2.0.0-new", check=False).returncode == 1
    done = deploy("--previous", check=False)
    assert "no machine knows a version before" in done.stderr
    assert versions() == {"gpu-1": "1.0.0-good", "gpu-2": "1.0.0-good"}


def test_a_machine_that_had_the_refused_version_already_stays_as_it_was(machines, deploy, tmp_path):
    versions = machines("gpu-1", "gpu-2")
    deploy("2.0.0-new", WORKER_HOSTS="gpu-1")
    (tmp_path / "machines/gpu-2/broken").touch()
    assert deploy("2.0.0-new", check=False).returncode == 1
    assert versions() == {"gpu-1": "2.0.0-new", "gpu-2": "1.0.0-good"}
    assert (tmp_path / "machines/gpu-1/previous").read_text() == "1.0.0-good\n"


def test_a_version_that_is_no_version_is_refused_by_the_machine(machines, deploy):
    versions = machines("gpu-1", "gpu-2")
    assert deploy("2.0.0;reboot", check=False).returncode == 1
    assert versions() == {"gpu-1": "1.0.0-good", "gpu-2": "1.0.0-good"}


# ---- What it is made of


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
    # However often: systemd gives up after five starts in ten seconds, unless it is told otherwise.
    assert "StartLimitIntervalSec=0\n" in unit.partition("[Service]")[0]


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
    assert " --read-only " in started
    assert " --cap-drop ALL --security-opt no-new-privileges --user 10001:10001 " in started
    assert "--publish 9465:9464" in started
    assert "--gpus device=1" in started
    assert set(re.findall(r"--env (\w+)", started)) <= {name.upper() for name in Settings.model_fields} | {"HF_TOKEN"}
    assert f"--env-file {tmp_path}/settings.env" in started


@pytest.mark.parametrize(("hub_token", "handed_on"), [("true", "value-of---secret=darkroom-hub-token"), ("", "none")])
def test_a_token_of_the_hub_is_asked_for_where_there_is_one(tmp_path, path, hub_token, handed_on):
    path(docker='[[ $1 != run ]] || echo "${HF_TOKEN:-none}" >"$DARKROOM_ETC/told"\n', gcloud='echo "value-of-${!#}"\n')
    (tmp_path / "version").write_text("1.2.3\n")
    environ = {
        "RUNTIME_DIRECTORY": str(tmp_path), "DARKROOM_ETC": str(tmp_path), "NOTES": str(tmp_path / "notes"),
        "IMAGE": "hub/worker", "SECRET_PREFIX": "darkroom", "HOSTNAME": "gpu-1", "HUB_TOKEN": hub_token,
        "PATH": f"{tmp_path}/bin:/usr/bin:/bin",
    }  # fmt: skip
    run(ROOT / "infra/modules/gpu_worker/files/darkroom-worker", "1", env=environ)
    assert (tmp_path / "told").read_text() == f"{handed_on}\n"


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
