"""B: how much of a worker's time is the model's, when there is always a next job.

    python -m bench.utilisation --real 16 --sleeping 100 --nothing 200 --rounds 3

All jobs of a round wait in the line before the first begins. Counted is from the end of the first to that of the last.
"""

import io
import statistics
import time

import click
from PIL import Image

from bench import bare
from bench.rig import NOTHING, SLEEPING, TINY, Caller, Figure, benchmark, clocked, from_the_line, running, span
from bench.sleeping import SECONDS
from tests.stack import Stack


@benchmark
@click.option("--real", default=16, show_default=True, help="Jobs of tiny-scenes-1 a round.")
@click.option("--sleeping", default=100, show_default=True, help="Jobs of 50 ms a round.")
@click.option("--nothing", default=200, show_default=True, help="Jobs of no time a round.")
@click.option("--rounds", default=3, show_default=True)
def main(on: str, real: int, sleeping: int, nothing: int, rounds: int) -> list[Figure]:
    """The model's share of a busy worker's time, beside the bare loop in turns; and the time between two jobs."""
    with running(on, "web", "worker", "courier", WORKER_MAX_BATCH="1") as stack, bare.loop(stack) as loop:
        caller = Caller(stack)
        each = [one_round(stack, caller, loop, (real, sleeping, nothing)) for _ in range(rounds)]
    shares, sleeps, gaps, bases = (statistics.median(column) for column in zip(*each, strict=True))
    return [
        Figure(
            "real jobs: share of the bare loop's speed",
            round(shares, 3),
            "",
            f"for … pipe(p): {1000 * bases:.0f} ms a picture",
        ),
        Figure(
            "50 ms jobs: share of the bare loop's speed", round(sleeps, 3), "", "for …: sleep(0.05), encode", least=0.97
        ),
        Figure("jobs of no time: from one to the next", round(1000 * gaps, 2), "ms", "", most=1.5),
    ]


def one_round(
    stack: Stack, caller: Caller, loop: bare.Loop, counts: tuple[int, int, int]
) -> tuple[float, float, float, float]:
    """Shares of the bare loop's speed of real and of 50 ms jobs, seconds a job of no time, and of a bare picture."""
    real, sleeping, nothing = counts
    bare_picture = span(loop.run(real)) / (real - 1)
    picture = span(from_the_line(stack, caller, TINY, real)) / (real - 1)
    bare_sleep = clocked(sleep, sleeping) / sleeping
    slept = span(from_the_line(stack, caller, SLEEPING, sleeping)) / (sleeping - 1)
    between = span(from_the_line(stack, caller, NOTHING, nothing)) / (nothing - 1)
    return bare_picture / picture, bare_sleep / slept, between, bare_picture


def sleep() -> None:
    """What the model `sleeping` does, in a loop without Darkroom."""
    time.sleep(SECONDS[SLEEPING])
    Image.new("RGB", (64, 64), "teal").save(io.BytesIO(), "PNG")


if __name__ == "__main__":
    main()
