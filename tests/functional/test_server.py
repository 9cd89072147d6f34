"""What a stranger does: the README's commands, on this machine, with nothing prepared."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import requests
import yaml
from PIL import Image

from app import keys
from tests.backends import small_disk
from tests.stack import ROOT, free_port, until

pytestmark = [pytest.mark.functional, pytest.mark.slow, pytest.mark.timeout(240)]


KILLED = r"darkroom: an earlier start was killed, and what it started still runs; end that with: kill ([\d ]+)\n"

# Nothing may take a checkout's path for words of a shell or for a URL.
NAME = "dark room #1, 50% xs"


@pytest.fixture
def place(tmp_path):
    """A copy of what git holds, as a clone has it, so that the checkout's own stack is left alone."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    for name in filter(None, (name.decode() for name in names)):
        target = tmp_path / NAME / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
        target.chmod((ROOT / name).stat().st_mode)
    return tmp_path / NAME


def up(place, *arguments, **environment):
    """`script/server` but for its bootstrap, which has tests of its own: the packages are this test's."""
    return subprocess.Popen(
        [sys.executable, "-m", "app", "up", *arguments],
        cwd=place, env={**os.environ, **environment}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_once_makes_the_picture_of_the_prompt_and_ends(place, tmp_path):
    # Whose key lets them ask but rarely is served too.
    key, alice = keys.new_key("alice", rate="2/second")
    keys.add(tmp_path / "keys.yaml", alice)
    known = {"API_KEYS_FILE": str(tmp_path / "keys.yaml"), "DARKROOM_API_KEY": key}
    port = free_port()
    server = up(place, "--once", "--prompt", "a red circle on a blue background", WEB_BIND=f"127.0.0.1:{port}", **known)
    said, _ = server.communicate(timeout=120)
    assert server.returncode == 0, said
    with Image.open(re.search(r"Here it is: (.+\.png)", said)[1]) as image:
        picture = image.convert("RGB")
    middle, corner = picture.getpixel((picture.width // 2, picture.height // 2)), picture.getpixel((3, 3))
    assert middle[0] > 2 * middle[2], "red in the middle"
    assert corner[2] > 2 * corner[0], "blue in the corner"


def test_a_model_of_ones_own_is_added_as_the_page_of_models_says(place):
    [example] = re.findall(r"```sh\n(.*?)```", (place / "docs/models.md").read_text(), re.DOTALL)
    script = example.replace("script/server", "python -m app up")
    environment = {
        "WEB_BIND": f"127.0.0.1:{free_port()}",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    told = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=place, check=False, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert re.search(r"^mine-1 +gen\.mine +here .*[0-9a-f]{64}", told.stdout, re.MULTILINE)
    assert re.search(r"Here it is: .+\.png +\(seed \d+, mine-1\)", told.stdout)


def test_the_readmes_request_gives_a_picture_and_ctrl_c_stops_everything(place):
    port = free_port()
    server = up(place, WEB_BIND=f"127.0.0.1:{port}")
    try:
        until(lambda: serving(server), 120, "it serves")
        example = re.search(r"```sh\n(task=.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
        script = example.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
        subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=place, check=True, timeout=60)
        assert (place / "picture.png").read_bytes().startswith(b"\x89PNG")
        assert requests.get(f"http://127.0.0.1:{port}/docs", timeout=10).status_code == 200
    finally:
        server.send_signal(signal.SIGINT)
        said, _ = server.communicate(timeout=60)
    assert (server.returncode, said.splitlines()[-1]) == (0, "Stopped.")
    assert leftovers(place) == []


def serving(server):
    line = server.stdout.readline()
    assert line or server.poll() is None, "it ended"
    return "Ctrl-C stops everything" in line


def leftovers(place):
    """The command lines of processes that still run from this folder."""
    lines = (path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if readable(path))
    return [line for line in lines if str(place).encode() in line]


def readable(path):
    try:
        path.read_bytes()
    except OSError:
        return False
    return True


def test_a_port_that_is_taken_is_one_clear_sentence(place):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        server = up(place, "--once", WEB_BIND=f"127.0.0.1:{other.getsockname()[1]}")
        said, _ = server.communicate(timeout=60)
    assert server.returncode == 1
    assert re.fullmatch(
        r"darkroom: port \d+ on 127.0.0.1 cannot be used .*; choose another with WEB_BIND=\S+\.\n", said
    )


def test_a_second_start_in_the_same_folder_is_refused(place):
    first = up(place, WEB_BIND=f"127.0.0.1:{free_port()}")
    try:
        until((place / "var/up/logs/web.log").exists, 60, "the first one starts")
        second = up(place, "--once", WEB_BIND=f"127.0.0.1:{free_port()}")
        said, _ = second.communicate(timeout=60)
        assert second.returncode == 1
        assert said == f"darkroom: Darkroom is already running from {place}; stop that with Ctrl-C there.\n"
    finally:
        first.send_signal(signal.SIGTERM)
        first.communicate(timeout=60)


def test_a_terminal_that_is_closed_stops_everything(place):
    server = up(place, WEB_BIND=f"127.0.0.1:{free_port()}")
    until((place / "var/up/logs/web.log").exists, 60, "it starts")
    server.send_signal(signal.SIGHUP)
    server.communicate(timeout=60)
    until(lambda: leftovers(place) == [], 30, "nothing is left")


def test_what_a_killed_start_left_running_is_named(place):
    first = up(place, WEB_BIND=f"127.0.0.1:{free_port()}")
    until((place / "var/up/supervisord.pid").exists, 60, "it starts")
    first.kill()
    first.communicate(timeout=60)
    second = up(place, "--once", WEB_BIND=f"127.0.0.1:{free_port()}")
    said, _ = second.communicate(timeout=60)
    pid = re.fullmatch(KILLED, said)[1]
    assert "supervisord" in Path(f"/proc/{pid}/cmdline").read_text()
    subprocess.run(["kill", pid], check=True)
    until(lambda: leftovers(place) == [], 60, "nothing is left")


def test_all_that_is_left_is_named_when_the_supervisor_was_killed_too(place):
    first = up(place, WEB_BIND=f"127.0.0.1:{free_port()}")
    until((place / "var/up/logs/web.log").exists, 60, "it starts")
    supervisor = int((place / "var/up/supervisord.pid").read_text())
    begun = {child.pid for child in psutil.Process(supervisor).children()}
    for pid in (first.pid, supervisor):
        os.kill(pid, signal.SIGKILL)
    first.communicate(timeout=60)
    second = up(place, "--once", WEB_BIND=f"127.0.0.1:{free_port()}")
    said, _ = second.communicate(timeout=60)
    named = re.fullmatch(KILLED, said)[1].split()
    assert begun <= {int(pid) for pid in named}
    subprocess.run(["kill", *named], check=False)
    until(lambda: not any(psutil.pid_exists(pid) for pid in begun), 60, "nothing is left")


# Python that is told to stop as soon as it has started the supervisor.
STOPPED_AT_ONCE = """
import os, signal, subprocess, sys
class Stopped(subprocess.Popen):
    def __init__(self, command, *args, **options):
        super().__init__(command, *args, **options)
        if "supervisor.supervisord" in command:
            os.kill(os.getpid(), signal.SIGINT)
subprocess.Popen = Stopped
from app.cli import main
main(["up"])
"""


def test_a_stop_in_the_moment_of_the_start_leaves_nothing_running(place):
    environ = {**os.environ, "WEB_BIND": f"127.0.0.1:{free_port()}", "PYTHONPATH": str(place)}
    done = subprocess.run(
        [sys.executable, "-c", STOPPED_AT_ONCE],
        cwd=place,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "Stopped.\n")
    log = (place / "var/up/logs/supervisord.log").read_text()
    assert "killing" not in log, "each of them heard of it"
    assert leftovers(place) == []


@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        ("LEASE", "abc", "LEASE:"),
        ("WEB_BIND", "127.0.0.1:99999", "WEB_BIND:"),
        ("WEB_BIND", "foo", "WEB_BIND: not of the form that config/README.md gives: Where the web tier listens"),
        ("DEVICE", "gpu", "DEVICE:"),
        ("STORAGE_URL", "file:///proc/pictures", "STORAGE_URL: /proc/pictures cannot be written"),
        ("MODELS_FILE", "nowhere.yaml", "MODELS_FILE: nowhere.yaml cannot be read: No such file or directory"),
        ("METRICS_BIND", "127.0.0.1:9464", "METRICS_BIND: worker and courier"),
        ("WORKER_QUEUE", "gen.sdxl", "WORKER_QUEUE: gen.sdxl does not serve tiny-scenes-1"),
        ("REDIS_URL", "redis://127.0.0.1:1/0", "REDIS_URL: Error 111 connecting to 127.0.0.1:1"),
        ("BROKER_URL", "amqp://127.0.0.1:1//", "BROKER_URL: [Errno 111]"),
    ],
)
def test_a_wrong_setting_is_told_at_once(place, setting, value, told):
    server = up(place, "--once", **{"WEB_BIND": f"127.0.0.1:{free_port()}", setting: value})
    said, _ = server.communicate(timeout=60)
    assert (server.returncode, told in said, "Traceback" in said) == (1, True, False)


def test_a_model_that_does_not_load_is_told_after_the_first_try(place):
    catalogue = yaml.safe_load((ROOT / "config/models.yaml").read_text())
    catalogue["models"][0]["weights_sha256"] = 64 * "0"
    (place / "config/false.yaml").write_text(yaml.safe_dump(catalogue))
    server = up(place, "--once", WEB_BIND=f"127.0.0.1:{free_port()}", MODELS_FILE="config/false.yaml")
    said, _ = server.communicate(timeout=100)
    assert (server.returncode, "worker does not start: " in said, "digest" in said) == (1, True, True), said
    assert (place / "var/up/logs/supervisord.log").read_text().count("spawned: 'worker'") <= 2


def test_a_full_disk_for_the_pictures_is_told_at_once(place, tmp_path):
    with small_disk(tmp_path / "disk", "1m") as disk:
        server = up(place, "--once", WEB_BIND=f"127.0.0.1:{free_port()}", STORAGE_URL=f"file://{disk}/pictures")
        said, _ = server.communicate(timeout=60)
    assert (server.returncode, f"STORAGE_URL: the disk is full: {disk}/pictures" in said) == (1, True), said


def test_keys_without_one_for_the_first_picture_are_told_at_once(place, tmp_path):
    file = tmp_path / "keys.yaml"
    keys.add(file, keys.new_key("alice")[1])
    server = up(place, "--once", WEB_BIND=f"127.0.0.1:{free_port()}", API_KEYS_FILE=str(file))
    said, _ = server.communicate(timeout=60)
    assert (server.returncode, "DARKROOM_API_KEY" in said, "Starting" in said) == (1, True, False)


def test_a_prompt_that_the_service_would_refuse_is_refused_before_the_start(place):
    server = up(place, "--once", "--prompt", "\x1b[31mred", WEB_BIND=f"127.0.0.1:{free_port()}")
    said, _ = server.communicate(timeout=60)
    assert (server.returncode, said) == (1, "darkroom: --prompt: has characters that are not allowed here\n")
