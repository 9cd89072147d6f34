"""A worker that is told to stop leaves, whatever its broker does, and has its child hand back what it has."""

import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from celery.worker import state as celery_state

from app import worker
from tests.stack import until

CHILD = """
import pathlib, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(pathlib.Path(sys.argv[1]).touch()))
pathlib.Path(sys.argv[2]).touch()
signal.pause()
"""


class Left(Exception):
    """Instead of this process' end."""


@pytest.fixture
def child(tmp_path):
    """A process that notes that it was asked to hand back, as the pool has it."""
    with subprocess.Popen([sys.executable, "-c", CHILD, tmp_path / "asked", tmp_path / "up"]) as process:
        until((tmp_path / "up").exists, 10, "it is up")
        yield SimpleNamespace(pid=process.pid, is_alive=lambda: process.poll() is None)
        process.kill()


@pytest.fixture
def leave(child, settings, monkeypatch):
    def leave(*_):
        raise Left

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(worker, "GOODBYE", 0.3)
    pool = SimpleNamespace(_pool=SimpleNamespace(_pool=[child]))
    return lambda: worker._go_without_goodbye(settings, SimpleNamespace(pool=pool, hostname="gen.tiny-1@here"))


def test_a_child_that_celery_has_lost_sight_of_hands_back_before_its_worker_leaves(leave, child, tmp_path):
    with pytest.raises(Left):
        leave()
    assert (tmp_path / "asked").exists()
    assert not child.is_alive()


def test_a_worker_does_not_leave_while_a_job_is_at_work(leave, child, monkeypatch):
    left = []

    def run():
        with pytest.raises(Left):
            leave()
        left.append(True)

    monkeypatch.setattr(celery_state, "reserved_requests", {"a job"})
    leaving = threading.Thread(target=run)
    leaving.start()
    leaving.join(1.5)
    assert child.is_alive()
    assert not left
    os.kill(child.pid, signal.SIGKILL)
    leaving.join(20)
    assert left
