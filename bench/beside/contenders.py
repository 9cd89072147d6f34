"""Darkroom and its rivals, started and asked in one way: submit, told, the worker killed and started again."""

import json
import os
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Self

import click

from app.settings import Settings
from bench.rig import PROMPT, SLEEPING, TINY, Caller, running
from tests.backends import GIVEN, real_services
from tests.stack import ROOT, Stack, free_port, until

TOOLS = ROOT / "var/tools/beside"
READY_SECONDS = 60
ROUTE = "bench.beside.rivals.front:make({name!r})"


@dataclass(frozen=True)
class Rival:
    """How one is run. `{port}`, `{most}` and `{redis}` in `command` are filled in; `serves`: a route and no queue."""

    name: str
    package: str
    command: Sequence[str]
    settings: str
    serves: bool = False
    batches: bool = False
    drawing: Sequence[str] = ()


class Contender:
    """What is measured: a port that is asked as Darkroom is, a folder of pictures, and a worker that can die."""

    serves = False

    def __init__(self, folder: Path, port: int, document: dict[str, Any]) -> None:
        self.folder = folder
        self.port = port
        self._document = document

    def request(self, steps: int) -> dict[str, Any]:
        """What is posted for a job of so many steps."""
        return self._document | {"num_inference_steps": steps}

    def submit(self, caller: Caller, steps: int = 1) -> str:
        """The job's id; of one that serves, once it is done."""
        answer = caller.ask("POST", "/generate", self.request(steps))
        return str(answer["task_id"] if isinstance(answer, dict) else answer[0])

    def wait(self, caller: Caller, task_id: str, seconds: float = 600) -> bool:
        """Whether the job is told to have succeeded within this time."""
        end = time.monotonic() + seconds
        while not self.serves and (left := end - time.monotonic()) > 0:
            if caller.ask("GET", f"/tasks/{task_id}?wait={max(1, int(min(60, left)))}")["status"] == "SUCCEEDED":
                return True
        return self.serves

    def ends(self, count: int) -> list[float]:
        """When the last so many pictures were stored, in seconds, sorted."""
        return sorted(path.stat().st_mtime for path in self.folder.rglob("*.png"))[-count:]

    def runs(self, task_id: str) -> bool:
        """Whether this job, the first after a pause, is under way."""
        raise NotImplementedError

    def kill(self) -> None:
        """`kill -9` of what runs the job."""
        raise NotImplementedError

    def restart(self) -> None:
        """Start what was killed, as a service manager would."""
        raise NotImplementedError


class Darkroom(Contender):
    """Darkroom itself."""

    def __init__(self, stack: Stack, most: int) -> None:
        document = {"prompt": PROMPT, "model_version": TINY if most > 1 else SLEEPING}
        super().__init__(Path(stack.settings["STORAGE_URL"].removeprefix("file://")), stack.port, document)
        self._stack = stack

    def runs(self, task_id: str) -> bool:
        """See Contender."""
        return bool(Caller(self._stack).ask("GET", f"/tasks/{task_id}")["phase"] == "RUNNING")

    def kill(self) -> None:
        """The worker with its children."""
        role = next(role for role in self._stack.roles if role.name == "worker")
        os.killpg(role.process.pid, signal.SIGKILL)
        role.process.wait(10)
        self._stack.roles.remove(role)

    def restart(self) -> None:
        """See Contender."""
        self._stack.start("worker")


class Another(Contender):
    """A rival's processes."""

    def __init__(self, rival: Rival, folder: Path, given: dict[str, str], most: int) -> None:
        super().__init__(folder, free_port(), {})
        self.serves, self._rival, self._most = rival.serves, rival, most
        self._started: list[subprocess.Popen[bytes]] = []
        self._environment = environment(folder, given, most)
        self._values = {"port": str(self.port), "redis": given["REDIS_URL"], "most": str(most)}
        if not rival.serves:
            self._start([*GUNICORN, "--bind", f"127.0.0.1:{self.port}", ROUTE.format(name=rival.name)])
        self.restart()

    def request(self, steps: int) -> dict[str, Any]:
        """BentoML's calls of several take lists."""
        lists = self._most > 1 and self._rival.name == "bentoml"
        return {"num_inference_steps": [steps] if lists else steps}

    def runs(self, task_id: str) -> bool:  # noqa: ARG002, one job runs at a time
        """See Contender; the job wrote its process' id."""
        return (self.folder / "pid").exists()

    def kill(self) -> None:
        """A queue's worker with its children; of a server the process that has the model, not its front."""
        if self.serves:
            os.kill(int((self.folder / "pid").read_text()), signal.SIGKILL)
        else:
            os.killpg(self._worker.pid, signal.SIGKILL)
            self._worker.wait(10)

    def restart(self) -> None:
        """Start the worker, or the server if it is gone."""
        if self.serves and self._started and self._worker.poll() is None:
            return
        command = self._rival.drawing if self._most > 1 and self._rival.drawing else self._rival.command
        self._worker: subprocess.Popen[bytes] = self._start([part.format(**self._values) for part in command])

    def ready(self) -> Self:
        """Once a first job has succeeded."""
        try:
            until(self._answers, READY_SECONDS, f"{self._rival.name} answers")
        except AssertionError as error:
            raise click.ClickException(f"{error}\n{self._log()}") from None
        return self

    def stop(self) -> None:
        """End all processes, and what they started."""
        for process in reversed(self._started):
            with suppress(ProcessLookupError):
                process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)

    def _answers(self) -> bool:
        for process in self._started:
            if process.poll() is not None:
                raise click.ClickException(self._log())
        with suppress(OSError, HTTPException, click.ClickException, json.JSONDecodeError):
            caller = Caller(self)
            return self.wait(caller, self.submit(caller), 20)
        return False

    def _log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-3000:]

    def _start(self, command: list[str]) -> "subprocess.Popen[bytes]":
        program = str(TOOLS / "bin" / command[0])
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [program, *command[1:]], cwd=ROOT, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
        self._started.append(process)
        return process


# As Darkroom's own web tier is run (config/gunicorn.conf.py), which needs Darkroom's environment.
GUNICORN = [
    "gunicorn", "--no-control-socket", "--worker-class", "gthread", "--worker-connections", "10000",
    "--workers", "1", "--keep-alive", "65", "--timeout", "90", "--threads",
    str(Settings.model_fields["web_threads"].default),
]  # fmt: skip


def environment(folder: Path, given: dict[str, str], most: int) -> dict[str, str]:
    """What a rival's processes are started with."""
    # Celery's command takes BROKER_URL for its own.
    return {name: value for name, value in os.environ.items() if name not in GIVEN} | {
        "PATH": f"{TOOLS / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE",
        "BESIDE_FOLDER": str(folder), "BESIDE_BROKER": given["BROKER_URL"], "BESIDE_REDIS": given["REDIS_URL"],
        "BESIDE_PACKAGES": str(Path(click.__file__).parents[1]), "BESIDE_MOST": str(most),
        "BENTOML_DO_NOT_TRACK": "1", "RAY_USAGE_STATS_ENABLED": "0", "BENTOML_HOME": str(folder / "bentoml"),
    }  # fmt: skip


@contextmanager
def started(name: str, most: int = 1) -> Iterator[Contender]:
    """The contender of this name on backends of its own, ready; with `most` above 1 it draws so many at once."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        folder = Path(place)
        if name == "darkroom":
            ours = {"STORAGE_URL": f"file://{folder}", "SIGNING_KEY": uuid.uuid4().hex, "WORKER_MAX_BATCH": str(most)}
            with running("services", "web", "worker", "courier", **ours) as stack:
                yield first(Darkroom(stack, most))
            return
        with real_services(folder) as given:
            rival = Another(RIVALS[name], folder, given, most)
            try:
                yield rival.ready()
            finally:
                rival.stop()


def first(contender: Contender) -> Contender:
    """Once a first job has succeeded."""
    caller = Caller(contender)
    contender.wait(caller, contender.submit(caller))
    return contender


def _module(name: str) -> str:
    return f"bench.beside.rivals.with_{name}"


def _queues() -> Iterator[Rival]:
    """Those that keep what was submitted, whoever dies."""
    yield Rival(
        "celery", "celery", ["celery", "-A", _module("celery"), "worker", "--concurrency", "1"],
        "RabbitMQ, publishes confirmed, acks late, reject on worker lost, prefetch 1; told by Redis' channel",
    )  # fmt: skip
    yield Rival(
        "dramatiq", "dramatiq", ["dramatiq", _module("dramatiq"), "--processes", "1", "--threads", "1"],
        "RabbitMQ, publishes confirmed, acks when done (its default), results in Redis; told by a blocking read",
    )  # fmt: skip
    yield Rival(
        "taskiq", "taskiq",
        ["taskiq", "worker", f"{_module('taskiq')}:broker", "--workers", "1", "--max-async-tasks", "1",
         "--ack-type", "when_saved"],
        "RabbitMQ by aio-pika, acks when saved (its default), prefetch 1 (10); told by asking every 10 ms (200 ms)",
    )  # fmt: skip
    yield Rival(
        "arq", "arq", ["arq", f"{_module('arq')}.WorkerSettings"],
        "Redis with its append-only file; worker and client ask every 10 ms (500 ms), job timeout 30 s (300 s)",
    )  # fmt: skip
    yield Rival(
        "rq", "rq",
        ["rq", "worker", "beside", "--url", "{redis}", "--maintenance-interval", "5", "--job-monitoring-interval", "5"],
        "Redis with its append-only file, 3 retries (none), a process for each job (its default), lost jobs looked for "
        "every 5 s (600 s); told by a blocking read",
    )  # fmt: skip


def _servers() -> Iterator[Rival]:
    """Those whose answer is the result."""
    yield Rival(
        "litserve", "litserve", ["python", "-m", _module("litserve"), "{port}", "{most}"],
        "one worker; no queue that outlives it: the answer is the result", serves=True, batches=True,
    )  # fmt: skip
    serve = ["python", "-m", "bentoml", "serve", "--host", "127.0.0.1", "--port", "{port}"]
    yield Rival(
        "bentoml", "bentoml", [*serve, f"{_module('bentoml')}:Sleeping"],
        "one worker, one thread; no queue that outlives it: the answer is the result", serves=True, batches=True,
        drawing=[*serve, f"{_module('bentoml')}:Drawing"],
    )  # fmt: skip
    yield Rival(
        "ray", "ray", ["python", "-m", _module("ray"), "{port}", "{most}"],
        "Ray Serve, one replica, one request at a time (5); no queue that outlives its proxy: the answer is the result",
        serves=True, batches=True,
    )  # fmt: skip


RIVALS = {rival.name: rival for rival in (*_queues(), *_servers())}
NAMES = ["darkroom", *RIVALS]


def settings(name: str) -> str:
    """How it is run, in words; in brackets what the default is where that is another."""
    if name == "darkroom":
        return "RabbitMQ, publishes confirmed, quorum queue, records in Redis, WORKER_MAX_BATCH 1; told by `?wait=`"
    return RIVALS[name].settings
