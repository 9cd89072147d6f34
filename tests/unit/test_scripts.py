"""What a person types, and the locks that it installs from: script/ and requirements/."""

import hashlib
import json
import os
import re
import shlex
import shutil
import socketserver
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EDITIONS = ["web", "gpu", "embedded", "dev"]
LOCKED = re.compile(r"^(?P<name>[a-z0-9-]+)(\[[a-z,]+\])?==(?P<version>\S+)(?P<rest>.*)$")
NOT_LOCKED = re.compile(r"^(torch|torchvision|triton|nvidia-.*|cuda-.*)$")


def asked_for(edition):
    lines = (ROOT / "requirements" / f"{edition}.in").read_text().splitlines()
    return [line for line in lines if line and not line.startswith(("#", "-r "))]


def name_of(requirement):
    return re.split(r"[\[<>=~! ]", requirement, maxsplit=1)[0]


def lock(edition):
    """Requirement lines of a lock, each with its continuation lines joined to it."""
    text = (ROOT / "requirements" / f"{edition}.txt").read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]


def versions(edition):
    return [LOCKED.match(line).group("name", "version") for line in lock(edition)]


@pytest.mark.parametrize("edition", EDITIONS)
def test_every_package_says_what_it_is_for(edition):
    assert [line for line in asked_for(edition) if not re.search(r"  # \S+ \S+", line)] == []


@pytest.mark.parametrize("edition", EDITIONS)
def test_no_package_is_asked_for_twice(edition):
    chain = EDITIONS[: EDITIONS.index(edition) + 1]
    names = [name_of(line) for member in chain for line in asked_for(member)]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("edition", EDITIONS)
def test_a_lock_holds_everything_that_is_asked_for(edition):
    chain = EDITIONS[: EDITIONS.index(edition) + 1]
    wanted = {name_of(line) for member in chain for line in asked_for(member)}
    assert wanted - dict(versions(edition)).keys() == set()


@pytest.mark.parametrize("edition", EDITIONS)
def test_every_locked_package_has_one_exact_version_and_hashes(edition):
    assert [line[:60] for line in lock(edition) if not LOCKED.match(line) or " --hash=sha256:" not in line] == []
    names = [name for name, _ in versions(edition)]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize(("earlier", "later"), [("web", "gpu"), ("gpu", "embedded"), ("embedded", "dev")])
def test_a_later_lock_repeats_the_earlier_one(earlier, later):
    assert set(versions(earlier)) <= set(versions(later))


@pytest.mark.parametrize("edition", EDITIONS)
def test_torch_and_its_cuda_libraries_are_in_no_lock(edition):
    assert [name for name, _ in versions(edition) if NOT_LOCKED.match(name)] == []


def test_torch_is_pinned_and_its_python_dependencies_are_locked():
    assert re.search(r"^torch==\d+\.\d+\.\d+$", (ROOT / "requirements/torch.txt").read_text(), re.MULTILINE)
    assert {"filelock", "fsspec", "jinja2", "mpmath", "networkx", "setuptools", "sympy"} <= dict(versions("gpu")).keys()


def test_the_web_tier_installs_nothing_of_the_models():
    assert {"numpy", "pillow", "diffusers", "transformers"} & dict(versions("web")).keys() == set()


def test_no_requirement_file_names_a_server():
    texts = {path.name: path.read_text() for path in (ROOT / "requirements").iterdir()}
    assert [name for name, text in texts.items() if re.search(r"://|index-url|find-links|trusted-host", text)] == []


@pytest.mark.parametrize("edition", EDITIONS)
def test_a_lock_says_which_command_writes_it(edition):
    assert "script/lock" in (ROOT / "requirements" / f"{edition}.txt").read_text()[:200]


@pytest.mark.parametrize("script", ["bootstrap", "lint", "lock", "services", "test"])
def test_scripts_are_executable_and_stop_at_the_first_error(script):
    path = ROOT / "script" / script
    assert os.access(path, os.X_OK)
    assert path.read_text().startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in path.read_text()


# ---- script/bootstrap, in a checkout of its own with two packages of its own


def make_wheel(folder, name, version):
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Checkout:
    """A copy of script/ whose locks ask for one small wheel, and a folder of programs that come first on PATH."""

    def __init__(self, root, wheels):
        self.root = root
        self.wheels = wheels
        self.programs = root / "programs"
        self.environ = {
            "PATH": f"{self.programs}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(root),
            "PYTHON": sys.executable,
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(wheels),
        }
        (root / "requirements").mkdir()
        self.programs.mkdir()
        shutil.copytree(ROOT / "script", root / "script")
        shutil.copy(ROOT / "requirements/torch.txt", root / "requirements")
        make_wheel(wheels, "torch", re.search(r"torch==(\S+)", (root / "requirements/torch.txt").read_text())[1])
        self.lock(make_wheel(wheels, "lens", "1.0"))

    def lock(self, digest):
        for edition in ("embedded", "dev"):
            text = f"lens==1.0 --hash=sha256:{digest}\n"
            (self.root / f"requirements/{edition}.txt").write_text(text)

    def program(self, name, text):
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    def run(self, *command, **environ):
        """Runs from another folder, as people do."""
        return subprocess.run(
            [self.root / command[0], *command[1:]],
            cwd="/",
            env=self.environ | environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )


@pytest.fixture
def checkout(tmp_path):
    # A space, since somebody keeps their checkouts in "My Projects".
    root, wheels = tmp_path / "check out", tmp_path / "wheels"
    root.mkdir()
    wheels.mkdir()
    return Checkout(root, wheels)


def test_bootstrap_does_nothing_the_second_time(checkout):
    first = checkout.run("script/bootstrap", "--dev")
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.splitlines()[-1] == "bootstrap: done"
    assert (checkout.root / ".venv/bin/python").exists()
    for edition in (["--dev"], []):
        again = checkout.run("script/bootstrap", *edition)
        assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


def test_bootstrap_refuses_a_changed_file_and_repairs_what_it_left(checkout):
    digest = hashlib.sha256((checkout.wheels / "lens-1.0-py3-none-any.whl").read_bytes()).hexdigest()
    checkout.lock("0" * 64)
    refused = checkout.run("script/bootstrap")
    assert refused.returncode == 1
    assert "DO NOT MATCH THE HASHES" in refused.stderr
    assert refused.stderr.splitlines()[-1].startswith("bootstrap: pip failed;")
    checkout.lock(digest)
    (checkout.root / ".venv/bin/pip").unlink()
    assert checkout.run("script/bootstrap").returncode == 0
    assert (checkout.root / ".venv/bin/pip").exists()


def test_bootstrap_says_in_one_sentence_that_the_network_is_away(checkout):
    result = checkout.run("script/bootstrap", PIP_NO_INDEX="", PIP_FIND_LINKS="", PIP_INDEX_URL="http://127.0.0.1:1/")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("bootstrap: pip could not reach its package index;")


def test_bootstrap_says_in_one_sentence_that_python_is_too_old(checkout):
    old = checkout.program("python3", "exit 1")
    result = checkout.run("script/bootstrap", PYTHON=str(old))
    assert (result.returncode, result.stderr) == (1, f"bootstrap: PYTHON={old} is not a Python 3.11 to 3.14.\n")


def test_bootstrap_says_in_one_sentence_that_there_is_no_python(checkout):
    for name in ("python3.11", "python3.12", "python3.13", "python3.14", "python3"):
        checkout.program(name, "exit 1")
    result = checkout.run("script/bootstrap", PYTHON="")
    assert result.returncode == 1
    assert result.stderr.startswith("bootstrap: needs Python 3.11 to 3.14;")
    assert result.stderr.count("\n") == 1


def test_bootstrap_says_how_much_disk_is_needed_and_free(checkout):
    checkout.program("df", "echo Filesystem 1024-blocks Used Available; echo /dev/x 9999999 0 204800")
    result = checkout.run("script/bootstrap")
    assert result.returncode == 1
    assert result.stderr == f"bootstrap: needs 2500 MiB of disk in {checkout.root}, where 200 MiB are free.\n"
    assert not (checkout.root / ".venv").exists()


# ---- script/services


@pytest.mark.parametrize("arguments", [[], ["begin"], ["kill"], ["kill", "mysql"], ["restart"], ["start", "redis"]])
def test_services_answers_a_wrong_command_with_its_usage(checkout, arguments):
    result = checkout.run("script/services", *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("usage: script/services start|stop|restart NAME|kill NAME|status|env")
    assert result.stderr.count("\n") == 1


def test_services_that_were_never_started_are_stopped(checkout):
    assert checkout.run("script/services", "status").stdout == "stopped\n"
    assert checkout.run("script/services", "stop").returncode == 0
    result = checkout.run("script/services", "env")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "services: nothing was started here; run script/services start first.\n"


def test_services_says_when_nothing_answers_at_a_given_address(checkout):
    result = checkout.run("script/services", "start", BROKER_URL="amqp://guest:guest@127.0.0.1:1//")
    assert result.returncode == 1
    assert result.stderr.startswith("services: BROKER_URL is set, but nothing answers there;")


@pytest.fixture
def anything():
    """The address of a server that answers whatever is said to it as Redis would."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            if self.request.recv(100):
                self.request.sendall(b"+PONG\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_services_uses_given_addresses_and_starts_nothing(checkout, anything):
    given = {
        "BROKER_URL": f"amqp://user:p@ss@{anything}/",
        "REDIS_URL": f"redis://{anything}/1",
        "GCS_ENDPOINT": f"http://{anything}",
    }
    assert checkout.run("script/services", "start", **given).returncode == 0
    env = checkout.run("script/services", "env").stdout.splitlines()
    assert sorted(env) == sorted(f"export {name}={url}" for name, url in given.items())
    assert checkout.run("script/services", "status").stdout.count("running (given)") == 3
    refused = checkout.run("script/services", "kill", "redis")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert checkout.run("script/services", "stop").returncode == 0


# ---- script/tools


def test_tools_names_what_there_is_when_asked_for_what_there_is_not(checkout):
    result = checkout.run("script/tools", "hammer")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("tools: there is no tool hammer; there are chromium ")


def test_tools_says_what_is_missing_and_changes_nothing(checkout):
    result = checkout.run("script/tools", "missing")
    assert (result.returncode, result.stderr) == (0, "")
    assert {"node_packages", "celery_exporter"} <= set(result.stdout.split())
    assert "beside" not in result.stdout.split(), "the rivals of a benchmark are no tool of the tests"
    assert not (checkout.root / "var").exists()


# ---- script/audit, and the search for secrets


class Osv(BaseHTTPRequestHandler):
    """Knows of one weakness, in one package."""

    def do_POST(self):
        name = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["package"]["name"]
        affected = {"package": {"name": "flask", "ecosystem": "PyPI"}, "versions": []}
        affected["ranges"] = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.9"}]}]
        known = {"id": "PYSEC-0000-1", "summary": "it listens", "affected": [affected]}
        body = json.dumps({"vulns": [known]} if name == "flask" else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def osv():
    with ThreadingHTTPServer(("127.0.0.1", 0), Osv) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
        server.shutdown()
        thread.join()


def audit(url):
    ran = [sys.executable, ROOT / "script/audit"]
    return subprocess.run(ran, env=os.environ | {"OSV_URL": url}, capture_output=True, text=True, check=False)


def test_a_locked_package_with_a_known_weakness_is_named(osv):
    told = audit(osv)
    version = dict(versions("web"))["flask"]
    assert (told.returncode, told.stderr) == (1, "")
    assert told.stdout == f"audit: flask {version}: PYSEC-0000-1, mended in 99.9\n"


def test_where_nobody_can_be_asked_nothing_is_called_audited():
    told = audit("http://127.0.0.1:1/v1/query")
    assert (told.returncode, told.stdout) == (3, "")
    assert told.stderr.startswith("audit: NOT AUDITED: nobody answers at http://127.0.0.1:1/v1/query.")


def test_lint_finds_a_secret_and_does_not_repeat_it(tmp_path):
    lint = (ROOT / "script/lint").read_text().replace("\\\n", "")
    command = shlex.split(re.search(r"^  check (kingfisher .*)$", lint, re.MULTILINE)[1])
    # As it comes from GitHub; made here, so that this file holds none.
    secret = "ghp_" + hashlib.sha256(b"nobody's").hexdigest()[:36]
    (tmp_path / "settings.py").write_text(f'token = "{secret}"\n')
    told = subprocess.run(
        [ROOT / ".venv/bin" / command[0], *command[1:]], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert told.returncode not in (0, 1)
    assert "settings.py" in told.stdout
    assert secret not in told.stdout + told.stderr
