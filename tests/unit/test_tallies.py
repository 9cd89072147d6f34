"""Numbers for Prometheus lie in a folder of the role, and leave nothing behind."""

import subprocess
import sys
import tempfile
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from app import metrics, tallies

HOLD = "from app import tallies; print(tallies.folder(), flush=True); input()"
# As gunicorn's first process that was killed: those that answer clients live on.
FORKED = "import os; from app import tallies; print(tallies.folder(), flush=True); os.fork() and os._exit(0); input()"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


@contextmanager
def role(program=HOLD):
    """Another role, which holds a folder."""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as it:
        it.folder = it.stdout.readline().strip()
        yield it
        it.kill()


def names(here):
    return {str(path) for path in here.iterdir()}


@pytest.mark.parametrize("program", [HOLD, FORKED], ids=["itself", "a process that it forked"])
def test_a_role_leaves_the_folder_of_one_that_lives(here, program):
    with role(program) as other:
        mine = tallies.folder()
        assert names(here) == {mine, other.folder}


def test_a_role_takes_away_what_a_killed_one_left(here):
    with role() as other:
        other.kill()
        other.wait()
        mine = tallies.folder()
    assert names(here) == {mine}


def test_what_is_no_folder_is_left_alone(here):
    (here / "darkroom-metrics-note").write_text("mine")
    tallies.folder()
    assert (here / "darkroom-metrics-note").read_text() == "mine"


def test_a_role_that_ends_empties_its_own_folder_and_none_that_others_may_use(here, monkeypatch):
    monkeypatch.chdir(here)
    given, own = here / "given", here / tallies.folder()
    given.mkdir()
    for folder in (given, own, here):
        (folder / "counter_1.db").touch()
    for name in (str(given), str(own), ""):
        metrics.clear(SimpleNamespace(prometheus_multiproc_dir=name))
    assert not own.exists()
    assert (given / "counter_1.db").exists()
    assert (here / "counter_1.db").exists()
