"""Jobs under fire: real processes on real RabbitMQ, Redis and a bucket, and faults drawn from a seed.

    script/services start; eval "$(script/services env)"
    python -m bench.chaos --seed 1 --jobs 500 --faults 50

Faults: kill -9, SIGSTOP for longer than a lease, and SIGTERM of a worker's child, worker, courier, web process and
gunicorn's master; restart, kill -9 and SIGSTOP of RabbitMQ and Redis; a queue that is deleted; a store that answers
503, hangs, or drops connections. What ends is started again, as a supervisor does it. Afterwards: every job that was
accepted is final, every SUCCEEDED has exactly one object that matches its digest, and no run went on after others
had taken all its jobs. Exit status 1 if not. Every other job leaves its seed to the service: some are made together.
"""

import contextlib
import hashlib
import itertools
import json
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import kombu
import psutil
import requests

from app.client import ApiError
from bench.faulty_store import FaultyStore
from tests.backends import real_services, service_processes
from tests.stack import ROOT, Stack, until

LEASE = 5
WORKERS = ("worker-1", "worker-2", "worker-3")
QUEUE = "gen.noted"
# kill -9 of RabbitMQ within a few seconds of declaring a quorum queue can brick that queue: RabbitMQ's own trap.
SETTLED = 6
OURS = ("child", "worker", "courier", "web process", "web master")
SIGNALS = {"kill -9": signal.SIGKILL, "SIGSTOP": signal.SIGSTOP, "SIGTERM": signal.SIGTERM}
SERVICES = [(name, how) for name in ("rabbitmq", "redis") for how in ("restart", "kill -9", "SIGSTOP")]
STORE = [("store", mode) for mode in ("503", "hang", "drop")]
KINDS = [(target, how) for target in OURS for how in SIGNALS] + SERVICES + STORE + [("queue", "delete")]


@dataclass
class Report:
    """What came of it; times in seconds. Everything from `lost` to `ran_on` must be 0."""

    seed: int
    jobs: int = 0
    faults: int = 0
    seconds: float = 0
    attempts: int = 0
    made_together: int = 0
    lost: int = 0
    stuck: int = 0
    failed: int = 0
    wrong_objects: int = 0
    duplicated: int = 0
    ran_on: int = 0
    not_consuming: int = 0
    slowest_recovery: float = 0
    slowest_job: float = 0
    drawn: dict[str, int] = field(default_factory=dict)
    details: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        bad = (self.lost, self.stuck, self.failed, self.wrong_objects, self.duplicated, self.ran_on, self.not_consuming)
        return not any(bad)


class Service:
    """All processes, each started again when it ends."""

    def __init__(self, stack: Stack, notes: Path) -> None:
        self.stack = stack
        self._over = threading.Event()
        self._settings = {"NOTES": str(notes)}
        for name in ("web", "courier", *WORKERS):
            stack.start(name, **self._settings)
        stack.ready("noted")
        self._thread = threading.Thread(target=self._supervise, daemon=True)
        self._thread.start()

    def role(self, name: str) -> Any:
        """The newest process of this role."""
        return next(role for role in reversed(self.stack.roles) if role.name == name)

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _supervise(self) -> None:
        while not self._over.wait(0.3):
            for role in [role for role in self.stack.roles if role.process.poll() is not None]:
                self.stack.roles.remove(role)
                self.stack.start(role.name, **self._settings)


class Faults:
    """Draws faults and makes them happen, one after the other; what lasts is healed while the next ones come."""

    def __init__(self, service: Service, store: FaultyStore, draw: random.Random) -> None:
        self._service, self._store, self._draw = service, store, draw
        self._healers = ThreadPoolExecutor(20)
        self.log: list[tuple[str, float]] = []

    def play(self, count: int, pause: float) -> None:
        """So many faults, `pause` seconds apart on average; every kind once before any comes twice."""
        kinds = [kind for _ in range(count // len(KINDS) + 1) for kind in self._draw.sample(KINDS, len(KINDS))]
        for target, how in kinds[:count]:
            time.sleep(self._draw.uniform(0.5, 1.5) * pause)
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError, StopIteration, IndexError):
                self._happen(target, how)
            self.log.append((f"{target}: {how}", time.time()))
        self._healers.shutdown()

    def _happen(self, target: str, how: str) -> None:
        print(f"{time.strftime('%X')} {target}: {how}", flush=True)
        if target == "store":
            self._store.mode = how
            self._healers.submit(self._later, 4, setattr, self._store, "mode", "well")
        elif target == "queue":
            self._delete_queue()
        elif target in ("rabbitmq", "redis"):
            self._break(target, how)
        else:
            self._signal([self._pick(target)], SIGNALS[how], LEASE + 2)

    def _pick(self, target: str) -> psutil.Process:
        worker = self._service.role(self._draw.choice(WORKERS))
        web = self._service.role("web")
        if target == "child":
            return next(child for child in worker.children if "spawn_main" in " ".join(child.cmdline()))
        if target == "web process":
            return self._draw.choice(web.children)
        role = {"worker": worker, "web master": web}.get(target) or self._service.role("courier")
        return psutil.Process(role.process.pid)

    def _break(self, name: str, how: str) -> None:
        if how == "SIGSTOP":
            self._signal(service_processes(name), signal.SIGSTOP, 4)
            return
        for command in {"restart": ["restart"], "kill -9": ["kill", "start"]}[how]:
            arguments = [command] if command == "start" else [command, name]
            subprocess.run([ROOT / "script" / "services", *arguments], check=True, timeout=120, capture_output=True)

    def _delete_queue(self) -> None:
        with contextlib.suppress(OSError, *kombu.Connection("amqp://").connection_errors):
            url = self._service.stack.settings["BROKER_URL"]
            with kombu.Connection(url, connect_timeout=2) as connection, connection.channel() as channel:
                kombu.Queue(QUEUE).bind(channel).delete()
            # The workers declare it again: see SETTLED.
            time.sleep(SETTLED)

    def _signal(self, processes: list[psutil.Process], number: int, seconds: float) -> None:
        for process in processes:
            process.send_signal(number)
        if number == signal.SIGSTOP:
            self._healers.submit(self._later, seconds, self._continue, processes)

    @staticmethod
    def _later(seconds: float, act: Any, *arguments: Any) -> None:
        time.sleep(seconds)
        act(*arguments)

    @staticmethod
    def _continue(processes: list[psutil.Process]) -> None:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)


class Load:
    """Clients that submit all jobs, spread over the faults, and ask again until they know."""

    def __init__(self, stack: Stack, count: int, draw: random.Random) -> None:
        self._stack, self._count, self._draw = stack, count, draw
        self.tickets: dict[int, str] = {}

    def play(self, seconds: float) -> None:
        # Few lengths: only jobs that are alike in it are made together.
        sizes = [(number, self._draw.choice((5, 25, 50))) for number in range(self._count)]
        with ThreadPoolExecutor(8) as clients:
            for number, steps in sizes:
                clients.submit(self._submit, number, steps)
                time.sleep(seconds / self._count)

    def _submit(self, number: int, steps: int) -> None:
        """One job, by its idempotency key accepted once however often it is asked for."""
        wish = {"prompt": "x", "model_version": "noted", "num_inference_steps": steps}
        wish |= {"seed": number} if number % 2 else {}
        wish |= {"priority": "low"} if number % 3 == 0 else {}
        while number not in self.tickets:
            with contextlib.suppress(requests.RequestException, ValueError):
                answer = requests.post(
                    f"{self._stack.url}/generate", json=wish, headers={"Idempotency-Key": f"chaos-{number}"}, timeout=10
                )
                if answer.status_code == 202:
                    self.tickets[number] = answer.json()["task_id"]
                    return
            time.sleep(0.3)


def play(seed: int, jobs: int, faults: int, seconds: float, patience: float = 150) -> Report:
    """One run: `seconds` of faults, then at most `patience` until every job is done."""
    # Not for a secret: the same seed is the same run.
    draw, folder = random.Random(seed), Path(tempfile.mkdtemp(prefix="chaos-"))  # noqa: S311
    (folder / "notes").mkdir()
    with real_services(folder) as settings, FaultyStore(settings["STORAGE_EMULATOR_HOST"]) as store:
        direct = settings["STORAGE_EMULATOR_HOST"]
        more = {"LEASE": str(LEASE), "UNCONFIRMED_AFTER": "5", "MAX_ATTEMPTS": "20", "WEB_WORKERS": "2"}
        more |= {"WORKER_QUEUE": QUEUE, "STORAGE_EMULATOR_HOST": store.url, "TORCH_THREADS": "1"}
        with Stack(folder, **{**settings, **more}) as stack:
            service = Service(stack, folder / "notes")
            try:
                time.sleep(SETTLED)
                load, trouble = Load(stack, jobs, draw), Faults(service, store, draw)
                report, started = Report(seed, faults=faults), time.monotonic()
                client = threading.Thread(target=load.play, args=(seconds,))
                client.start()
                trouble.play(faults, seconds / max(faults, 1))
                client.join()
                tasks = _settle(stack, list(load.tickets.values()), patience)
                report.seconds = round(time.monotonic() - started, 1)
                _judge(report, load, tasks, trouble, folder / "notes")
                _judge_objects(report, tasks, f"{direct}/storage/v1/b/{settings['STORAGE_URL'].split('/')[2]}/o")
                _look_for_life(report, stack, patience)
            finally:
                service.stop()
    # The logs of a run that went wrong are worth keeping.
    if report.is_good:
        shutil.rmtree(folder)
    return report


def _settle(stack: Stack, tickets: list[str], patience: float) -> dict[str, dict[str, Any]]:
    """The task documents, as soon as all are done or at the end of the patience; those that are not there left out."""
    tasks: dict[str, dict[str, Any]] = {}
    end = time.monotonic() + patience
    while time.monotonic() < end and any(tasks.get(t, {}).get("status", "PENDING") == "PENDING" for t in tickets):
        for ticket in tickets:
            if tasks.get(ticket, {}).get("status", "PENDING") == "PENDING":
                with contextlib.suppress(ApiError):
                    tasks[ticket] = stack.client.task(ticket)
        time.sleep(0.5)
    return tasks


def _judge(report: Report, load: Load, tasks: dict[str, Any], trouble: Faults, notes: Path) -> None:
    report.jobs = len(load.tickets)
    report.drawn = dict(Counter(name for name, _ in trouble.log))
    report.lost = report.jobs - len(tasks)
    done = [task for task in tasks.values() if task["status"] != "PENDING"]
    report.stuck, report.attempts = len(tasks) - len(done), sum(task["attempt"] for task in tasks.values())
    report.failed = sum(task["status"] == "FAILED" for task in done)
    report.details += [f"{t['task_id']}: {t['error']['code']}" for t in done if t["error"]]
    report.details += [f"{t['task_id']}: {t['phase']}, {t['attempts']}" for t in tasks.values() if t not in done]
    starts = sorted(_seconds(a["started_at"]) for task in done for a in task["attempts"])
    waits = [min((s - at for s in starts if s >= at), default=0) for _, at in trouble.log]
    report.slowest_recovery = round(max(waits, default=0), 1)
    report.slowest_job = round(
        max((_seconds(t["finished_at"]) - _seconds(t["created_at"]) for t in done), default=0), 1
    )
    report.made_together = sum((task["metrics"] or {}).get("batch_size", 1) > 1 for task in done)
    _judge_runs(report, notes)


def _judge_runs(report: Report, notes: Path) -> None:
    """A run that others have taken all its jobs from may be at one step, and must stop after it."""
    beyond: dict[str, list[int]] = {}
    for path in notes.iterdir():
        for run, steps in _beyond(path):
            beyond.setdefault(run, []).append(steps)
    for run, steps_of_each in beyond.items():
        if min(steps_of_each) > 1:
            report.ran_on += 1
            report.details.append(f"run {run}: {steps_of_each} steps after other runs had begun")


def _beyond(path: Path) -> Iterator[tuple[str, int]]:
    """For each run of one job: how many steps it made after the next run of this job had begun."""
    runs: dict[str, list[float]] = {}
    for line in path.read_text().splitlines():
        run, at = line.split()
        runs.setdefault(run, []).append(float(at))
    ordered = sorted(runs.items(), key=lambda run: run[1])
    for (run, steps), (_, later) in itertools.pairwise(ordered):
        yield run, sum(at > later[0] for at in steps)
    yield from ((run, 0) for run, _ in ordered[-1:])


def _judge_objects(report: Report, tasks: dict[str, Any], url: str) -> None:
    found = {item["name"] for item in _listing(url)}
    for task in tasks.values():
        name = f"prefix/output/{task['task_id']}.png"
        if task["status"] == "SUCCEEDED":
            data = requests.get(f"{url}/{name.replace('/', '%2F')}?alt=media", timeout=10).content
            good = hashlib.sha256(data).hexdigest() == task["images"][0]["sha256"]
            report.wrong_objects += not good
            found.discard(name)
    report.duplicated = len(found)
    report.details += [f"nobody's object: {name}" for name in sorted(found)]


def _listing(url: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    page: dict[str, Any] = {"nextPageToken": ""}
    while "nextPageToken" in page:
        page = requests.get(url, params={"pageToken": page["nextPageToken"]}, timeout=10).json()
        items += page.get("items", [])
    return items


def _look_for_life(report: Report, stack: Stack, patience: float) -> None:
    """Every worker must take a job again by itself: jobs come until each has, as a new child may be long in coming."""
    owners: set[str] = set()
    end = time.monotonic() + patience
    with contextlib.suppress(AssertionError):
        while len(owners) < len(WORKERS) and (left := end - time.monotonic()) > 0:
            owners |= _owners_of_a_round(stack, left)
    report.not_consuming = max(len(WORKERS) - len(owners), 0)


def _owners_of_a_round(stack: Stack, patience: float) -> set[str]:
    """Who makes jobs that are so many that none does them all before others wake."""
    tickets: list[str] = []

    def submit() -> bool:
        with contextlib.suppress(ApiError):
            # With a seed, so that no worker takes several at once.
            wish = {"model_version": "noted", "num_inference_steps": 150, "seed": 1}
            tickets.append(stack.client.submit("x", **wish)["task_id"])
        return len(tickets) >= 3 * len(WORKERS)

    until(submit, patience, "the web tier takes jobs")
    tasks = until(lambda: _all_done(stack, tickets), patience, "every job is done")
    return {attempt["owner"] for task in tasks for attempt in task["attempts"]}


def _all_done(stack: Stack, tickets: list[str]) -> list[dict[str, Any]]:
    with contextlib.suppress(ApiError):
        tasks = [stack.client.task(ticket) for ticket in tickets]
        return tasks if all(task["status"] != "PENDING" for task in tasks) else []
    return []


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@click.command()
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--jobs", type=int, default=500, show_default=True)
@click.option("--faults", type=int, default=50, show_default=True)
@click.option("--seconds", type=float, default=300, show_default=True, help="How long the faults are spread over.")
@click.option("--json", "place", type=click.Path(dir_okay=False, path_type=Path), help="Where the report goes too.")
def main(seed: int, jobs: int, faults: int, seconds: float, place: Path | None) -> None:
    """Run it once and report."""
    report = play(seed, jobs, faults, seconds)
    if place:
        place.write_text(json.dumps(asdict(report), indent=2))
    for name, value in asdict(report).items():
        if name not in ("details", "drawn"):
            print(f"| {name} | {value} |")
    print("\n".join(report.details[:50]))
    raise SystemExit(0 if report.is_good else 1)


if __name__ == "__main__":
    main()
