"""The measurements, the same for each contender. Times are in milliseconds, rates a second."""

import statistics
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from http.client import HTTPException

import click

from bench.beside.contenders import RIVALS, Contender, started
from bench.beside.rivals.work import STEP_SECONDS
from bench.rig import Caller, clocked, percentile, span
from bench.submits import load, middle
from bench.utilisation import sleep
from tests.stack import until

# Between two jobs of A, so that each one finds everybody idle.
PAUSE = 0.1
# One that runs and twenty in the line, of half a second each.
KILLED, STEPS = 21, 10
MOST = 8

Figures = dict[str, float]


def measured(name: str, jobs: int, seconds: float, patience: float, pictures: int) -> Figures:
    """All that this one has; it starts anew for pictures."""
    with started(name) as contender:
        figures = overhead(contender, jobs // 2) | utilisation(contender, jobs) | kept(contender, patience)
        if not contender.serves:
            figures |= submits(contender, seconds)
    if name == "darkroom" or RIVALS[name].batches:
        with started(name, MOST) as contender:
            figures |= batching(contender, pictures)
    return figures


def overhead(contender: Contender, jobs: int) -> Figures:
    """A: submit to told on an idle machine, without the model's 50 ms."""
    caller = Caller(contender)
    times = [1000 * (one(contender, caller) - STEP_SECONDS) for _ in range(jobs)]
    return {"overhead_ms": percentile(times, 50), "overhead_p90_ms": percentile(times, 90)}


def one(contender: Contender, caller: Caller) -> float:
    """Seconds of one job."""
    time.sleep(PAUSE)
    return clocked(lambda: contender.wait(caller, contender.submit(caller)))


def utilisation(contender: Contender, jobs: int) -> Figures:
    """B: a full line of 50 ms jobs, from the storing of the first to that of the last, beside the bare loop."""
    bare = clocked(sleep, jobs) / jobs
    with sent(contender, [60] + [1] * jobs) as told:
        wait_for(told)
    if failed := [future for future in told if not future.result()]:
        raise click.ClickException(f"{len(failed)} of {jobs} did not succeed")
    return {"share": bare / (span(contender.ends(jobs)) / (jobs - 1))}


@contextmanager
def sent(contender: Contender, steps: list[int], patience: float = 600) -> Iterator[list["Future[bool]"]]:
    """Jobs that many clients submit, the first of them some time before the others, and wait for."""
    (contender.folder / "pid").unlink(missing_ok=True)
    with ThreadPoolExecutor(len(steps)) as pool:
        futures, ids = list["Future[bool]"](), list[str]()
        for number, count in enumerate(steps):
            futures.append(pool.submit(told, contender, count, patience, ids))
            if number == 0:
                until(lambda: contender.serves or ids, 60, "the first job is in")
                until(lambda: contender.runs(ids[0] if ids else ""), 60, "the first job runs")
        until(lambda: contender.serves or len(ids) == len(steps), 60, "all jobs are in")
        yield futures


def told(contender: Contender, steps: int, patience: float, ids: list[str]) -> bool:
    """Whether a client of its own heard that its job succeeded."""
    caller = Caller(contender)
    try:
        ids.append(contender.submit(caller, steps))
        return contender.wait(caller, ids[-1], patience)
    except (OSError, HTTPException, click.ClickException):
        return False


def kept(contender: Contender, patience: float) -> Figures:
    """K: of 21 jobs how many succeed, and in what time, when the worker is killed in the first and started again."""
    with sent(contender, [STEPS] * KILLED, patience) as futures:
        contender.kill()
        start = time.monotonic()
        # A server that notices starts its own worker; one that ends is started again.
        time.sleep(1)
        contender.restart()
        wait_for(futures)
    return {"kept": sum(future.result() for future in futures), "kept_seconds": time.monotonic() - start}


def submits(contender: Contender, seconds: float) -> Figures:
    """C: submits a second and their time while the worker is busy with a long job."""
    contender.submit(Caller(contender), 1000)
    rounds = tuple(load(contender.port, seconds, 8, contender.request(1)) for _ in range(3))
    return {name: middle(rounds, name) for name in rounds[0]}


def batching(contender: Contender, pictures: int) -> Figures:
    """Pictures a second when so many clients ask at once, after a first batch that warms up; the median of two."""
    ask(contender, MOST)
    return {"pictures_rate": pictures / statistics.median(clocked(lambda: ask(contender, pictures)) for _ in range(2))}


def ask(contender: Contender, pictures: int) -> None:
    """So many clients, each with one picture of 15 steps."""
    with ThreadPoolExecutor(pictures) as pool:
        answers = list(pool.map(lambda _: told(contender, 15, 600, []), range(pictures)))
    if not all(answers):
        raise click.ClickException(f"{answers.count(False)} of {pictures} pictures failed")
