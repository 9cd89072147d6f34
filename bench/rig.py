"""What the benchmarks share: a running Darkroom, a client that costs little, figures with their goals, the machine.

A benchmark is a function that gives its figures; `benchmark` makes it a command that prints them as a table and, with
`--json FILE`, writes them with a description of the machine.
"""

import functools
import http.client
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import psutil
from redis import Redis
from rich.console import Console
from rich.table import Table

from app.jobs import JobStore
from app.services import make_redis
from app.settings import Settings
from tests.backends import GIVEN, embedded, real_services
from tests.stack import ROOT, Stack, until

BACKENDS = {"embedded": embedded, "services": real_services}
PROMPT = "a large red star on a blue background"
TINY, SLEEPING, NOTHING, HOLDING = MODELS = ("tiny-scenes-1", "sleeping", "nothing", "holding")

# Above this load a core, others are at work here too, and the figures say so.
BUSY = 0.3


@dataclass(frozen=True)
class Figure:
    """One line of a result. `base` says what it stands beside, `most` and `least` what is to be reached."""

    name: str
    value: float
    unit: str
    base: str = ""
    most: float | None = None
    least: float | None = None

    @property
    def goal(self) -> str:
        """The goal in words, and whether it is met; empty without one."""
        if self.most is not None:
            return f"at most {self.most:g}: {'met' if self.value <= self.most else 'missed'}"
        if self.least is not None:
            return f"at least {self.least:g}: {'met' if self.value >= self.least else 'missed'}"
        return ""

    def row(self) -> list[str]:
        """Its cells in a table: name, value, base, goal."""
        told = f"{self.value:,.0f}" if abs(self.value) >= 1000 else f"{self.value:.4g}"
        return [self.name, f"{told} {self.unit}".strip(), self.base, self.goal]


COLUMNS = ["figure", "measured", "beside", "goal"]


def benchmark(measure: Callable[..., list[Figure]]) -> click.Command:
    """A command that measures, on backends of its own: `measure(on, **options)`."""

    @click.command(help=measure.__doc__)
    @click.option("--on", type=click.Choice(list(BACKENDS)), default="embedded", show_default=True, help="Backends.")
    @click.option("--json", "file", type=click.Path(path_type=Path), help="Write the figures into this file too.")
    @functools.wraps(measure)
    def command(on: str, file: Path | None, **options: Any) -> None:
        if on == "services" and not GIVEN["BROKER_URL"]:
            raise click.UsageError('first: script/services start; eval "$(script/services env)"')
        here = machine()
        figures = measure(on, **options)
        show(figures, f"on {on}; {described(here)}")
        if file:
            document = {"on": on, "options": options, "machine": here, "figures": [asdict(f) for f in figures]}
            file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

    return command


def show(figures: Sequence[Figure], caption: str) -> None:
    """Print the figures."""
    table = Table(*COLUMNS, box=None, pad_edge=False, header_style="bold", caption=caption, caption_justify="left")
    for figure in figures:
        table.add_row(*figure.row())
    # Lines are not folded where nobody sees them.
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)


def machine() -> dict[str, Any]:
    """What the figures depend on: processor, memory, versions, and what else was running at the start."""
    load = os.getloadavg()[0]
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {
            name: importlib.metadata.version(name) for name in ("celery", "redis", "gunicorn", "torch", "diffusers")
        },
        "commit": _commit(),
        "load_at_start": round(load, 2),
        "beside_other_work": load > BUSY * (os.cpu_count() or 1),
    }


def described(here: dict[str, Any]) -> str:
    """The machine in one sentence."""
    beside = ", TAKEN BESIDE OTHER WORK" if here["beside_other_work"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in here["versions"].items())
    return (
        f"{here['cores']} cores of {here['cpu']}, {here['memory_gb']} GB, {here['system']}, Python {here['python']}, "
        f"{versions}; commit {here['commit']}; load {here['load_at_start']} at the start{beside}"
    )


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _commit() -> str:
    told = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return told.stdout.strip() or "unknown"


def percentile(values: Sequence[float], percent: int) -> float:
    """The value that this many percent lie below."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def milliseconds(name: str, seconds: Sequence[float], base: str = "", **goal: float) -> list[Figure]:
    """Median, p90 and p99 of times in seconds; the goal is the median's."""
    spread = [("median", 50, goal), ("p90", 90, {}), ("p99", 99, {})]
    return [
        Figure(f"{name}, {word}", round(1000 * percentile(seconds, percent), 2), "ms", base, **wanted)
        for word, percent, wanted in spread
    ]


@contextmanager
def running(on: str, *roles: str, **settings: str) -> Iterator[Stack]:
    """A Darkroom of its own with the models of the benchmarks and these roles, ready; settings as in production."""
    with tempfile.TemporaryDirectory() as folder, BACKENDS[on](Path(folder)) as backend:
        ours = {
            "MODELS_FILE": str(ROOT / "bench/models.yaml"), "WORKER_QUEUE": "gen.bench", "QUEUE_LIMIT": "0",
            "TORCH_THREADS": "0", "SWEEP_INTERVAL": "2", "LOG_FORMAT": "json", "OMP_WAIT_POLICY": "PASSIVE",
            "DEVICE": "auto",
        }  # fmt: skip
        with Stack(Path(folder), **(ours | backend | settings)) as stack:
            _as_in_production(redis_of(stack))
            for role in roles:
                stack.start(role)
            if "web" in roles:
                stack.ready(*(MODELS if "worker" in roles else ()))
            yield stack


def _as_in_production(redis: Redis) -> None:
    """Redis' one setting that Darkroom asks for and that a figure depends on: records as listpacks."""
    redis.config_set("hash-max-listpack-value", 1024)


def environment(stack: Stack) -> dict[str, str]:
    """What a process of the stack is started with."""
    return {**os.environ, **stack.settings}


def redis_of(stack: Stack) -> Redis:
    """The stack's status store."""
    return make_redis(_settings(stack), "courier")


def jobs_of(stack: Stack) -> JobStore:
    """The same as jobs."""
    settings = _settings(stack)
    return JobStore(redis_of(stack), result_ttl=settings.result_ttl, lease=settings.lease)


def _settings(stack: Stack) -> Settings:
    names = Settings.model_fields
    return Settings(**{name.lower(): value for name, value in stack.settings.items() if name.lower() in names})


class Caller:
    """HTTP on one kept connection, so that little of a figure is the client's own."""

    def __init__(self, stack: Stack) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=600)

    def ask(self, method: str, path: str, document: dict[str, Any] | None = None) -> Any:
        """The answer's document."""
        answer = self.open(method, path, document)
        return json.loads(answer.read())

    def open(self, method: str, path: str, document: dict[str, Any] | None = None) -> http.client.HTTPResponse:
        """The answer, to be read to its end."""
        body = None if document is None else json.dumps(document).encode()
        self._connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        answer = self._connection.getresponse()
        if answer.status >= 400:
            raise click.ClickException(f"{method} {path}: {answer.status} {answer.read().decode()}")
        return answer

    def submit(self, model_version: str, **parameters: Any) -> str:
        """A task's id."""
        document = {"prompt": PROMPT, "model_version": model_version, **parameters}
        return str(self.ask("POST", "/generate", document)["task_id"])

    def done(self, task_id: str) -> dict[str, Any]:
        """The document of the task once it has SUCCEEDED, however long that takes."""
        while (document := self.ask("GET", f"/tasks/{task_id}?wait=60"))["status"] == "PENDING":
            continue
        if document["status"] != "SUCCEEDED":
            raise click.ClickException(f"{task_id} {document['status']}: {document['error']}")
        return dict(document)


@contextmanager
def held(caller: Caller) -> Iterator[None]:
    """Within it the worker is busy with a job that ends on leaving: what is submitted meanwhile waits in line."""
    gate = caller.submit(HOLDING, num_inference_steps=1000)
    until(lambda: caller.ask("GET", f"/tasks/{gate}")["phase"] == "RUNNING", 60, "the worker is busy")
    try:
        yield
    finally:
        caller.ask("POST", f"/tasks/{gate}/cancel")


def from_the_line(stack: Stack, caller: Caller, model_version: str, count: int) -> list[float]:
    """When each of so many jobs ended that a free worker found in its line, in seconds by Redis' clock, sorted."""
    with held(caller):
        # Without a seed: who names one is made alone, to the bit.
        ids = [caller.submit(model_version) for _ in range(count)]
    for task_id in reversed(ids):
        caller.done(task_id)
    jobs = jobs_of(stack)
    return sorted(jobs.get(task_id).finished_at or 0 for task_id in ids)


def span(ends: Sequence[float]) -> float:
    """Seconds from the first end to the last: one job less than there are ends."""
    return ends[-1] - ends[0]


def clocked(action: Callable[[], object], times: int = 1) -> float:
    """Seconds that it takes, so many times one after the other."""
    start = time.perf_counter()
    for _ in range(times):
        action()
    return time.perf_counter() - start
