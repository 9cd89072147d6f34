"""A deployment with keys, and commands that ask it."""

import subprocess
import sys

import pytest

from app import keys
from tests.backends import embedded
from tests.functional.cli.shell import environment
from tests.stack import Stack


@pytest.fixture(scope="package")
def stack(tmp_path_factory):
    """One web process, a worker, a courier; one caller."""
    path = tmp_path_factory.mktemp("keys") / "keys.yaml"
    key, caller = keys.new_key("script", rate="1000/second")
    keys.add(path, caller)
    folder = tmp_path_factory.mktemp("stack")
    with embedded(folder) as settings, Stack(folder, key=key, API_KEYS_FILE=str(path), **settings) as stack:
        stack.key = key
        yield stack.start_all("steady", "raises")


@pytest.fixture
def darkroom(stack, tmp_path):
    """Run one command to its end, in an empty folder."""

    def run(*arguments, input=None, **more):  # noqa: A002, as subprocess calls it
        return subprocess.run(
            [sys.executable, "-m", "app", *arguments], cwd=tmp_path, env=environment(stack, **more),
            input=input, capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip

    return run


@pytest.fixture
def started(stack, tmp_path):
    """Start a command and leave it running."""
    running = []

    def start(*arguments, **options):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        command = [sys.executable, "-m", "app", *arguments]
        running.append(subprocess.Popen(command, cwd=tmp_path, env=environment(stack), text=True, **pipes))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()
