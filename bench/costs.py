"""I: what a job costs each part of Darkroom in processor time; bench/scale.py reckons with it.

    python -m bench.costs --jobs 300 --json costs.json

The model takes no time. What the parts take while nothing happens (sweeps, signs of life) is taken off.
"""

import time
from collections.abc import Callable
from urllib.parse import urlsplit

import click
import psutil

from bench.rig import NOTHING, Caller, Figure, benchmark, clocked, held, jobs_of, redis_of, running
from tests.stack import Stack

IDLE_SECONDS = 3.0
RENEWALS = 1000


@benchmark
@click.option("--jobs", default=300, show_default=True)
def main(on: str, jobs: int) -> list[Figure]:
    """Milliseconds of processor time that a submit, a job's run, and a step cost each part of Darkroom."""
    with running(on, "web", "worker", "courier") as stack:
        caller = Caller(stack)
        caller.done(caller.submit(NOTHING))
        idle = used(stack, lambda: time.sleep(IDLE_SECONDS))
        with held(caller):
            ids: list[str] = []
            submits = used(stack, lambda: ids.extend(caller.submit(NOTHING) for _ in range(jobs)))
        runs = used(stack, lambda: [caller.done(task_id) for task_id in reversed(ids)])
        step = a_step(stack)
    base = f"{jobs} jobs of no time, less what the parts take when idle"
    told = [("a submit", submits), ("a run", runs)]
    return [
        *(figure(f"{part}: {name}", less(spent, idle, part) / jobs, base) for name, spent in told for part in idle[1]),
        figure("Redis: a step", step, f"{RENEWALS} renewals of a claim"),
    ]


def figure(name: str, seconds: float, base: str) -> Figure:
    """Seconds of processor time, told in milliseconds."""
    return Figure(name, round(max(1000 * seconds, 0), 3), "ms", base)


Used = tuple[float, dict[str, float]]


def used(stack: Stack, action: Callable[[], object]) -> Used:
    """How many seconds it took, and the seconds of processor time of each part meanwhile."""
    before = clocks(stack)
    took = clocked(action)
    return took, {part: seconds - before[part] for part, seconds in clocks(stack).items()}


def less(spent: Used, idle: Used, part: str) -> float:
    """Seconds of a part beyond what it takes when it has nothing to do."""
    return spent[1][part] - idle[1][part] * spent[0] / idle[0]


def clocks(stack: Stack) -> dict[str, float]:
    """Seconds of processor time that each part has had."""
    told = redis_of(stack).info("cpu")
    roles = {role.name: [psutil.Process(role.process.pid), *role.children] for role in stack.roles}
    broker = listening(urlsplit(stack.settings["BROKER_URL"]).port)
    # An embedded broker is the same Redis.
    parts = roles | ({"RabbitMQ": broker} if stack.settings["BROKER_URL"].startswith("amqp") else {})
    own = {part: sum(sum(process.cpu_times()[:2]) for process in processes) for part, processes in parts.items()}
    return own | {"Redis": told["used_cpu_user"] + told["used_cpu_sys"]}


def listening(port: int | None) -> list[psutil.Process]:
    """The process behind a port of this machine."""
    pids = {c.pid for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr[1:] == (port,)}
    return [psutil.Process(pid) for pid in pids if pid]


def a_step(stack: Stack) -> float:
    """Seconds of Redis' processor that a renewal of a claim with its progress takes."""
    caller, jobs = Caller(stack), jobs_of(stack)
    with held(caller):
        task_id = caller.submit(NOTHING)
        jobs.claim(task_id, "bench", "bench")
        spent = used(stack, lambda: clocked(lambda: jobs.renew(task_id, "bench", 1, 2), RENEWALS))
        jobs.release(task_id, "bench")
    return spent[1]["Redis"] / RENEWALS


if __name__ == "__main__":
    main()
