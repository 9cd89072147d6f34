"""The command line: one command a role, and every mistake in one sentence."""

import os
import subprocess
import sys

import pytest

from app import __version__
from tests.stack import ROOT

ROLES = ("web", "worker", "courier", "up")


def darkroom(*arguments, **environ):
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        cwd=ROOT, env={**os.environ, **environ}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_help_names_each_role_with_a_sentence():
    told = darkroom("--help")
    assert told.returncode == 0
    for role in ROLES:
        [line] = [line for line in told.stdout.splitlines() if line.split()[:1] == [role]]
        assert len(line.split()) > 3


def test_no_command_shows_the_help_and_an_unknown_one_is_refused():
    assert "Usage:" in darkroom().stderr + darkroom().stdout
    assert darkroom("wbe").returncode == 2


def test_the_version_is_told():
    assert darkroom("--version").stdout.strip() == f"darkroom, version {__version__}"


@pytest.mark.parametrize("role", ["web", "worker", "courier"])
def test_a_wrong_setting_is_told_in_one_sentence_and_no_traceback(role):
    told = darkroom(role, STORAGE_URL="file:///nowhere", SIGNING_KEY="hunter2")
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr == "darkroom: SIGNING_KEY: must have at least 32 characters when STORAGE_URL is file://\n"


@pytest.mark.parametrize("role", ["worker", "courier"])
def test_a_catalogue_that_cannot_be_read_is_told_likewise(role):
    told = darkroom(role, MODELS_FILE="nowhere.yaml", SIGNING_KEY="x" * 32)
    assert told.returncode == 1
    assert told.stderr.startswith("darkroom: nowhere.yaml cannot be read")
    assert "Traceback" not in told.stderr
