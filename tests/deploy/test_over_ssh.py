"""infra/ci/deploy-worker over a real sshd to a GPU machine whose workers are real processes that make real jobs.

The machine is this one: docker, systemctl, gcloud and sudo there are stand-ins (tests/deploy/machine), which start and
stop `python -m app worker` as the machine's own files and units say. Under test: files, script, worker.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.backends import embedded
from tests.deploy.programs import ROOT, run, tool
from tests.stack import Stack, free_port, until

FILES = ROOT / "infra/modules/gpu_worker/files"
UNIT = "darkroom-worker@0.service"
# As in main.tf, for a machine without a GPU.
MACHINE = {
    "IMAGE": "europe-west4-docker.pkg.dev/project/hub/darkroom-worker",
    "GPUS": "1",
    "SECRET_PREFIX": "darkroom",
    "STOP_SECONDS": "40",
    "WORKER_QUEUE": "gen.test",
    "WORKER_GRACE": "10",
    "MODELS_FETCH": "false",
    "RESULT_TTL": "604800",
}


# By its name, or as the one machine of a managed group.
HOSTS = {"WORKER_HOSTS": "127.0.0.1"}
GROUP = {"WORKER_GROUP": "darkroom-worker", "REGION": "europe-west4"}


class Machine:
    """sshd on loopback with keys of its own, and what a GPU machine has on its disk."""

    def __init__(self, folder, backends):
        self.folder, self.port, self.signing_key = folder, free_port(), backends["SIGNING_KEY"]
        for name in ("etc", "images", "secrets", "bin"):
            (folder / name).mkdir()
        own = [FILES / name for name in ("darkroom-worker", "darkroom-deploy", "darkroom-pull")]
        for program in (*own, *(ROOT / "tests/deploy/machine").iterdir()):
            (folder / "bin" / program.name).symlink_to(program)
        (folder / "bin/python3").symlink_to(sys.executable)
        environment = {**MACHINE, "STORAGE_URL": backends["STORAGE_URL"]}
        (folder / "etc/worker.env").write_text("".join(f"{name}={value}\n" for name, value in environment.items()))
        (folder / "etc/settings.env").write_text("LOG_LEVEL=INFO\n")
        (folder / "etc/version").write_text("1.0.0-good\n")
        for name in ("broker-url", "redis-url", "ca", "redis-ca"):
            (folder / "secrets" / f"darkroom-{name}").write_text(backends.get(name.upper().replace("-", "_"), ""))
        self.environ = {
            "PATH": f"{folder}/bin:/usr/bin:/bin",
            "HOSTNAME": "gpu-1",
            "CHECKOUT": str(ROOT),
            "PYTHON": sys.executable,
            "DARKROOM_ETC": str(folder / "etc"),
            "IMAGES": str(folder / "images"),
            "SECRETS": str(folder / "secrets"),
            "CONTAINERS": str(folder / "containers"),
            "UNITS": str(FILES),
            "UNIT_STATE": str(folder / "units"),
            "POLL_SECONDS": "0.1",
            "READY_SECONDS": "120",
        }
        self._sshd()

    def _sshd(self):
        sshd = tool(shutil.which("sshd", path="/usr/sbin:/usr/bin") or "sshd")
        for key in ("host", "user"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / key)
        host = (self.folder / "host.pub").read_text().rsplit(" ", 1)[0]
        (self.folder / "known").write_text(f"[127.0.0.1]:{self.port} {host}\n")
        (self.folder / "config").write_text(f"""
            ListenAddress 127.0.0.1:{self.port}
            HostKey {self.folder}/host
            AuthorizedKeysFile {self.folder}/user.pub
            StrictModes no
            UsePAM no
            PidFile none
            PasswordAuthentication no
            PermitRootLogin prohibit-password
            SetEnv {" ".join(f"{name}={value}" for name, value in self.environ.items())}
        """)
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        with (self.folder / "sshd.log").open("w") as log:
            self.sshd = subprocess.Popen([sshd, "-D", "-e", "-f", self.folder / "config"], stderr=log)
        until(lambda: "listening" in (self.folder / "sshd.log").read_text(), 10, "sshd listens")

    def image(self, version, **variables):
        """An image of this version is in the registry."""
        baked = {"DEVICE": "cpu", "TORCH_THREADS": "1", "METRICS_BIND": "", "CA_FILE": "", "WORKER_VERSION": version}
        # Pictures are in a folder here, for which a bucket needs no key.
        baked |= {"MODELS_FILE": str(ROOT / "tests/models/models.yaml"), "SIGNING_KEY": self.signing_key, **variables}
        text = "".join(f"{name}={value}\n" for name, value in baked.items())
        (self.folder / f"images/darkroom-worker:{version}").write_text(text)

    def systemctl(self, word):
        environ = {**self.environ, "HOME": str(self.folder)}
        run(self.folder / "bin/systemctl", word, UNIT, env=environ)

    def deploy(self, version, script="deploy-worker", known="known", where=HOSTS, **options):
        environ = {
            "VERSION": version,
            **where,
            # Whoever deploys to a group has Google's programs.
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
            "SSH_PORT": str(self.port),
            "SSH_KEY": str(self.folder / "user"),
            "SSH_KNOWN_HOSTS": str(self.folder / known),
            "SSH_USER": run("id", "-un").stdout.strip(),
        }
        words = ["worker"] if script == "rollback" else []
        return run(ROOT / "infra/ci" / script, *words, env={**os.environ, **environ}, **options)

    @property
    def version(self):
        return (self.folder / "etc/version").read_text().strip()

    def stop(self):
        self.systemctl("stop")
        self.sshd.terminate()
        self.sshd.wait(10)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A web process, a courier, and a machine whose worker of version 1 is ready; version 2 is good, 3 is bad."""
    tool("ssh")
    folder = tmp_path_factory.mktemp("ssh")
    with embedded(folder) as backends, Stack(folder, **backends) as stack, contextlib.ExitStack() as ended:
        machine = Machine(folder, backends)
        ended.callback(machine.stop)
        machine.image("1.0.0-good")
        machine.image("2.0.0-new")
        # It ends at each start, as one with a missing library does.
        machine.image("3.0.0-bad", ENTRYPOINT="/bin/false")
        stack.start("web")
        stack.start("courier")
        machine.systemctl("restart")
        yield stack.ready("steady"), machine


class Load:
    """Jobs of a fifth of a second, three a second, until it is told to end."""

    def __init__(self, client):
        self.client, self.ids, self._end = client, [], threading.Event()
        self._thread = threading.Thread(target=self._submit)

    def _submit(self):
        while not self._end.wait(0.3):
            ticket = self.client.submit("a job under way", model_version="steady", num_inference_steps=10)
            self.ids.append(ticket["task_id"])

    def __enter__(self):
        self._thread.start()
        until(lambda: len(self.ids) > 2, 30, "jobs are submitted")
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join(30)

    def results(self):
        return [self.client.wait(task_id, 120) for task_id in self.ids]


@pytest.mark.timeout(300)
def test_a_good_deployment_and_one_that_is_taken_back_lose_no_job_that_is_under_way(place):
    stack, machine = place
    with Load(stack.client) as load:
        good = machine.deploy("2.0.0-new", where=GROUP)
        assert machine.version == "2.0.0-new"
        bad = machine.deploy("3.0.0-bad", check=False)
        last = len(load.ids)
        until(lambda: len(load.ids) > last, 10, "a job is submitted after it")
    assert "1.0.0-good to 2.0.0-new" in good.stdout
    assert bad.returncode == 1
    assert "3.0.0-bad does not get ready: back to 2.0.0-new" in bad.stdout + bad.stderr
    assert machine.version == "2.0.0-new"
    results = load.results()
    assert {result["status"] for result in results} == {"SUCCEEDED"}
    # The old version made some of them, the new one the others, before and after its own restart.
    assert {result["worker_version"] for result in results} == {"1.0.0-good", "2.0.0-new"}
    # A drain is no attempt.
    assert {result["attempt"] for result in results} == {1}


@pytest.mark.timeout(200)
def test_a_good_version_reaches_a_machine_whose_worker_ends_again_and_again(place):
    stack, machine = place
    before = machine.version
    (machine.folder / "images/pulled/darkroom-worker:3.0.0-bad").touch()
    (machine.folder / "etc/version").write_text("3.0.0-bad\n")
    machine.systemctl("restart")
    restarts = machine.folder / "units" / UNIT / "restarts"
    until(lambda: restarts.exists() and int(restarts.read_text()) > 3, 30, "it has ended more than three times")
    machine.deploy(before)
    assert machine.version == before
    assert stack.client.wait(stack.client.submit("x", model_version="steady")["task_id"], 60)["status"] == "SUCCEEDED"


def test_a_drained_gpu_is_left_alone(place):
    _, machine = place
    before, drained = machine.version, machine.folder / "units" / UNIT / "disabled"
    started = (machine.folder / "units" / UNIT / "pid").read_text()
    drained.touch()
    try:
        assert "GPU 0 is drained" in machine.deploy("2.0.0-new").stdout
    finally:
        drained.unlink()
    assert (machine.folder / "units" / UNIT / "pid").read_text() == started
    machine.deploy(before)


def test_a_version_that_is_nowhere_and_a_machine_that_nobody_knows_change_nothing(place):
    _, machine = place
    before = machine.version
    assert machine.deploy("4.0.0-missing", check=False).returncode == 1
    (machine.folder / "strangers").write_text("")
    done = machine.deploy("1.0.0-good", known="strangers", check=False)
    assert (done.returncode, machine.version) == (1, before)
    assert "Host key verification failed" in done.stderr
