"""C: how many jobs one web process accepts in a second while the worker is busy, beside a bare route of Flask.

    python -m bench.submits --seconds 5 --rounds 3 --connections 8

The bare route answers as many bytes and is served by gunicorn with the same configuration. Rounds alternate. The load
comes from a process of its own over kept connections (bench/load.py), each with one request under way.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from bench.rig import PROMPT, SLEEPING, Caller, Figure, benchmark, environment, held, running
from tests.stack import ROOT, Stack, free_port, until


@benchmark
@click.option("--seconds", default=5.0, show_default=True, help="Of each round.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--connections", default=8, show_default=True)
def main(on: str, seconds: float, rounds: int, connections: int) -> list[Figure]:
    """Submits a second and their time while the worker is busy, beside a bare route on the same gunicorn."""
    with running(on, "web", "worker", "courier") as stack:
        caller = Caller(stack)
        with held(caller), bare_route(stack, len(caller.open("POST", "/generate", request()).read())) as port:
            each = [(load(stack.port, seconds, connections), load(port, seconds, connections)) for _ in range(rounds)]
    ours, bare = ({name: middle(rounds_, name) for name in rounds_[0]} for rounds_ in zip(*each, strict=True))
    beside = f"bare route: {bare['rate']:.0f}/s, p50 {bare['p50_ms']:.1f} ms, p99 {bare['p99_ms']:.1f} ms"
    return [
        Figure("submits", round(ours["rate"]), "/s", beside),
        Figure("submits: share of the bare route's rate", round(ours["rate"] / bare["rate"], 3), "", least=1 / 3),
        Figure("submits, p50", round(ours["p50_ms"], 1), "ms", f"{connections} connections"),
        Figure("submits, p99", round(ours["p99_ms"], 1), "ms"),
        Figure("submits: p99 in multiples of p50", round(ours["p99_ms"] / ours["p50_ms"], 2), "", most=5),
    ]


def request() -> dict[str, Any]:
    """What is submitted."""
    return {"prompt": PROMPT, "model_version": SLEEPING}


def middle(rounds: tuple[dict[str, float], ...], name: str) -> float:
    """The median of one number over the rounds."""
    return statistics.median(told[name] for told in rounds)


@contextmanager
def bare_route(stack: Stack, size: int) -> Iterator[int]:
    """The port of a Flask application with one route that answers so many bytes."""
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "-c", "config/gunicorn.conf.py", f"bench.bare_route:make({size})"]
    settings = environment(stack) | {"WEB_BIND": f"127.0.0.1:{port}"}
    with (stack.folder / "bare.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=ROOT, env=settings, stdout=log, stderr=log)
    try:
        until(lambda: load(port, 0.1, 1)["rate"], 60, "the bare route answers")
        yield port
    finally:
        server.terminate()
        server.wait(80)


def load(port: int, seconds: float, connections: int, document: dict[str, Any] | None = None) -> dict[str, float]:
    """What bench/load.py tells: rate, p50_ms, p99_ms; a rate of 0 where nobody listens."""
    body = json.dumps(document or request())
    command = [sys.executable, "-m", "bench.load", str(port), str(seconds), str(connections), body]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if "ConnectionRefusedError" in told.stderr:
        return {"rate": 0}
    if told.returncode:
        raise click.ClickException(told.stderr)
    return dict(json.loads(told.stdout))


if __name__ == "__main__":
    main()
