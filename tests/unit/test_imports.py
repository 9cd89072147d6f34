"""Importing has no effects; the web tier stays light; modules stay small."""

import ast
import json
import subprocess
import sys

import pytest

from tests.stack import ROOT

HEAVY = {"PIL", "torch", "diffusers", "transformers", "numpy", "accelerate", "safetensors", "google.cloud.storage"}
# How the default model was made, and what only the child of a worker imports.
NOT_FOR_ALL = (
    "app/models/tiny_scenes/", "app/models/pipelines.py", "app/__main__.py",
)  # fmt: skip
FILES = sorted(path.relative_to(ROOT) for path in (ROOT / "app").rglob("*.py"))
MODULES = [
    ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    for path in FILES
    if not str(path).startswith(NOT_FOR_ALL)
]

WATCHED_IMPORT = """
import importlib, json, sys
seen = []
def hook(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system"):
        seen.append([event, repr(arguments)])
    # urllib3 binds to port 0 to see whether there is IPv6.
    elif event == "socket.bind" and arguments[1][1] != 0:
        seen.append([event, repr(arguments)])
    elif event == "open" and str(arguments[0]).endswith((".yaml", ".env", ".lua")) and "-packages" not in arguments[0]:
        seen.append([event, str(arguments[0])])
sys.addaudithook(hook)
for module in sys.argv[1:]:
    importlib.import_module(module)
print(json.dumps({"seen": seen, "modules": sorted(sys.modules)}))
"""


def imported(*modules):
    """What a fresh interpreter did and holds after these imports."""
    command = [sys.executable, "-c", WATCHED_IMPORT, *modules]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("module", ["app.web", "app.courier", "app.cli", "app.client"])
def test_what_makes_no_pictures_needs_nothing_that_makes_them(module):
    assert HEAVY & set(imported(module)["modules"]) == set()


def test_a_start_of_one_command_waits_for_nothing_that_only_others_need():
    others = {"celery", "flask", "limits", "opentelemetry", "redis", "requests", "structlog", "yaml"}
    assert others & set(imported("app.cli")["modules"]) == set()


def test_a_worker_whose_models_are_all_ones_own_waits_for_no_torch():
    assert {"torch", "diffusers", "transformers"} & set(imported("app.models.residency")["modules"]) == set()


def test_imports_reach_for_nothing():
    assert len(MODULES) > 20
    assert imported(*MODULES)["seen"] == []


def test_settings_are_read_from_the_environment_in_one_module():
    """cli and up write the environment of the processes that they start, and the worker its child's."""
    readers = {
        str(path)
        for path in FILES
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv")
    }
    assert readers <= {"app/cli.py", "app/up.py", "app/worker.py"}


def test_a_module_is_read_in_one_sitting():
    """One of the tests and benchmarks too."""
    command = ["git", "ls-files", "-z", "*.py", "*.lua"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    # What is deleted but not committed is still told.
    files = [path for path in (ROOT / name for name in told.split("\0") if name) if path.is_file()]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert {"app/jobs.lua", "bench/chaos.py", "tests/things.py"} <= set(lengths)
    assert {name: length for name, length in lengths.items() if length > 400} == {}
