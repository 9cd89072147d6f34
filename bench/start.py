"""D: from the start of a worker to the first picture, beside a script that loads the same pipeline and saves one.

    python -m bench.start --rounds 2
    python -m bench.start --server

The rest of Darkroom runs already and the job waits in its line. `--server` measures `script/server --once` too, with
everything installed.
"""

import os
import statistics
import subprocess
import sys

import click

from bench.rig import TINY, Caller, Figure, benchmark, clocked, environment, running
from tests.stack import ROOT, Stack, free_port


@benchmark
@click.option("--rounds", default=2, show_default=True)
@click.option("--server", is_flag=True, help="Measure `script/server --once` too.")
def main(on: str, rounds: int, server: bool) -> list[Figure]:
    """Start of a worker to the first picture SUCCEEDED, beside a bare script that loads, draws and saves, in turns."""
    # The catalogue as it is shipped: a worker loads this one model.
    shipped = {"MODELS_FILE": str(ROOT / "config/models.yaml"), "WORKER_QUEUE": "gen.tiny"}
    with running(on, "web", "courier", **shipped) as stack:
        caller = Caller(stack)
        # Once each, so that both find their files in the machine's memory.
        each = [(worker(stack, caller), script(stack)) for _ in range(rounds + 1)][1:]
    ours, bare = (statistics.median(column) for column in zip(*each, strict=True))
    figures = [
        Figure("start of a worker to its first picture", round(ours, 2), "s", f"bare script: {bare:.2f} s"),
        Figure("start: in multiples of the bare script", round(ours / bare, 2), "", most=1.25),
    ]
    return [*figures, once(rounds)] if server else figures


def worker(stack: Stack, caller: Caller) -> float:
    """Seconds from starting a worker to the end of the job that waits for it."""
    task_id = caller.submit(TINY)

    def first_picture() -> None:
        stack.start("worker")
        caller.done(task_id)

    seconds = clocked(first_picture)
    stack.roles.pop().stop()
    return seconds


def script(stack: Stack) -> float:
    """Seconds that the bare script takes, from its start to its end."""
    command = [sys.executable, "-m", "bench.bare_script", str(stack.folder / "bare.png")]
    return clocked(lambda: run(command, environment(stack)))


def run(command: list[str], settings: dict[str, str]) -> None:
    """Run a program in silence; raises ClickException with its last words when it fails."""
    told = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, check=False)
    if told.returncode:
        raise click.ClickException(f"{command[-1]}: {(told.stderr or told.stdout)[-2000:]}")


def once(rounds: int) -> Figure:
    """`script/server --once` on backends of its own, from its start to its end."""
    own = {**os.environ, "WEB_BIND": f"127.0.0.1:{free_port()}", "BROKER_URL": "", "REDIS_URL": "", "STORAGE_URL": ""}
    command = [str(ROOT / "script/server"), "--once"]
    times = [clocked(lambda: run(command, own)) for _ in range(rounds)]
    return Figure("script/server --once: start, picture, stop", round(statistics.median(times), 2), "s")


if __name__ == "__main__":
    main()
