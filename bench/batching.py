"""H: jobs that wait in the line, run one by one and several at once, beside the bare loop.

python -m bench.batching --jobs 25 --most 8 --rounds 2
"""

import statistics
from collections.abc import Iterator
from contextlib import contextmanager

import click

from bench import bare
from bench.rig import MODELS, TINY, Caller, Figure, benchmark, clocked, from_the_line, running, span
from tests.stack import Stack, until


@benchmark
@click.option("--jobs", default=25, show_default=True)
@click.option("--most", default=8, show_default=True, help="WORKER_MAX_BATCH of the worker that batches.")
@click.option("--rounds", default=2, show_default=True)
def main(on: str, jobs: int, most: int, rounds: int) -> list[Figure]:
    """The throughput of a full line with WORKER_MAX_BATCH=1 and more, beside the bare loop; and a lone job's time."""
    with running(on, "web", "courier") as stack, bare.loop(stack) as loop:
        each = [one_round(stack, loop, jobs, most) for _ in range(rounds)]
    base, single, batched, alone, alone_batching = (statistics.median(column) for column in zip(*each, strict=True))
    return [
        Figure(
            "one by one: share of the bare loop's speed",
            round(base / single, 3),
            "",
            f"for … pipe(p): {1 / base:.2f} pictures a second",
        ),
        Figure(
            f"{most} at once: share of the bare loop's speed",
            round(base / batched, 3),
            "",
            f"{1 / batched:.2f} pictures a second",
            least=1.5,
        ),
        Figure("a lone job with batching", round(1000 * alone_batching), "ms", f"{1000 * alone:.0f} ms without"),
    ]


def one_round(stack: Stack, loop: bare.Loop, jobs: int, most: int) -> tuple[float, ...]:
    """Seconds a picture of the bare loop, one by one and batched; seconds of a lone job without and with batching."""
    base = span(loop.run(jobs)) / (jobs - 1)
    with worker(stack, 1) as caller:
        single, alone = a_picture(stack, caller, jobs, 1), lone(caller)
    with worker(stack, most) as caller:
        batched, alone_batching = a_picture(stack, caller, jobs, most), lone(caller)
    return base, single, batched, alone, alone_batching


@contextmanager
def worker(stack: Stack, most: int) -> Iterator[Caller]:
    """A worker that runs so many jobs at once, ready."""
    role = stack.start("worker", WORKER_MAX_BATCH=str(most))
    stack.ready(*MODELS)
    caller = Caller(stack)
    caller.done(caller.submit(TINY))
    try:
        yield caller
    finally:
        role.stop()
        stack.roles.remove(role)
        gone = lambda: not any(m["available"] for m in caller.ask("GET", "/models")["models"])  # noqa: E731
        until(gone, 60, "the worker is gone")


def a_picture(stack: Stack, caller: Caller, jobs: int, most: int) -> float:
    """Seconds a picture, from the end of the first call of the pipeline to the end of the last."""
    ends = from_the_line(stack, caller, TINY, jobs)
    # What ended with the first one was made in the same call.
    first = min(most, jobs - 1)
    return (ends[-1] - ends[first - 1]) / (jobs - first)


def lone(caller: Caller) -> float:
    """Seconds that a job takes when no other waits; the median of five."""
    return statistics.median(clocked(lambda: caller.done(caller.submit(TINY))) for _ in range(5))


if __name__ == "__main__":
    main()
