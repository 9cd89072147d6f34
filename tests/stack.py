"""The real processes of Darkroom for a test: web, workers and courier, each as `python -m app` starts it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

from app.client import ApiError, Client

ROOT = Path(__file__).parents[1]
START_SECONDS = 180


def until(condition, seconds, what):
    """Wait for the condition and give back what it gave; fails with `what` when the time is over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"after {seconds} s still not: {what}")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Role:
    """One running process and its log."""

    def __init__(self, name, environment, folder):
        self.name = name
        self.log = folder / f"{name}-{time.monotonic_ns()}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app", name.split("-")[0]],
                cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    @property
    def children(self):
        return psutil.Process(self.process.pid).children(recursive=True)

    def wrote(self, text):
        return text in self.log.read_text(errors="replace")

    def kill(self, number=signal.SIGKILL):
        """End the process itself, and with SIGKILL see it gone."""
        self.process.send_signal(number)
        if number == signal.SIGKILL:
            self.process.wait(10)

    def stop(self):
        self.process.terminate()
        self.end()

    def end(self):
        """See it end, by force where it does not by itself."""
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)


class Stack:
    """Settings in the environment, and the processes that were started with them, which end with the `with`."""

    def __init__(self, folder, *, key="", **settings):
        self.folder = folder
        self.port = free_port()
        self.settings = {
            "WEB_BIND": f"127.0.0.1:{self.port}",
            "MODELS_FILE": str(ROOT / "tests/models/models.yaml"),
            "WORKER_QUEUE": "gen.test",
            # Any name will do.
            "WORKER_NAME": "gpu-1@rack-2",
            "WORKER_GRACE": "2",
            "SWEEP_INTERVAL": "0.5",
            "TORCH_THREADS": "2",
            # Said, and not found out: the small models of the tests need no torch, which takes longest to import.
            "DEVICE": "cpu",
            "LOG_FORMAT": "console",
            **settings,
        }
        self.roles = []
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = Client(self.url, key=key)

    def start(self, name, **settings):
        """Start a role: `web`, `worker`, `courier`, or `worker-2` and so on for more of a kind."""
        role = Role(name, {**os.environ, **self.settings, **settings}, self.folder)
        self.roles.append(role)
        return role

    def start_all(self, *models):
        """Start one web process, one worker and one courier, and wait until they serve these models."""
        for name in ("web", "worker", "courier"):
            self.start(name)
        return self.ready(*models)

    def ready(self, *models, seconds=START_SECONDS):
        """Wait until the web tier is ready and a worker serves each of these models."""

        def serving():
            dead = [role for role in self.roles if role.process.poll() is not None]
            assert not dead, f"{dead[0].name} ended: {dead[0].log.read_text()[-3000:]}"
            with contextlib.suppress(ApiError):
                here = {m["model_version"] for m in self.client.models() if m["available"]}
                return self.client.ready() and here >= set(models)
            return False

        until(serving, seconds, f"ready with {models}")
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.close()
        for role in self.roles:
            role.process.terminate()
        for role in self.roles:
            role.end()
