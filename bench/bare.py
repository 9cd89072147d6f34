"""The base of the figures: diffusers alone, `for prompt in prompts: pipe(prompt)`, and each picture encoded as PNG.

    echo 10 | python -m bench.bare

Loads the bundled model once, then reads numbers of pictures, and answers each with the seconds at which each picture
was done, as JSON. The threads are those of a worker: one for each core, waiting asleep.
"""

import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from PIL import Image

from bench.rig import environment
from tests.stack import ROOT, Stack


class Loop:
    """The loop in a process of its own, with the settings of a stack's worker."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        self._process = process
        self._log = log

    def run(self, pictures: int) -> list[float]:
        """When each picture was done, in seconds since some moment."""
        assert self._process.stdin
        assert self._process.stdout
        print(pictures, file=self._process.stdin, flush=True)
        if answer := self._process.stdout.readline():
            return list(json.loads(answer))
        raise click.ClickException(f"the bare loop ended: {self._log.read_text()[-2000:]}")


@contextmanager
def loop(stack: Stack) -> Iterator[Loop]:
    """The loop, loaded; it costs nothing while it waits, and ends when there is nothing more to read."""
    log = stack.folder / "bare.log"
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "bench.bare"], cwd=ROOT, env=environment(stack),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
        ) as process,
    ):  # fmt: skip
        made = Loop(process, log)
        made.run(2)
        yield made


def main() -> None:
    """Answer on standard output until there is nothing more to read."""
    # Deferred: torch is for this process, not for the one that starts it.
    from bench.bare_script import draw, load

    pipeline = load()
    for line in sys.stdin:
        print(json.dumps([done(draw(pipeline, seed)) for seed in range(int(line))]), flush=True)


def done(picture: Image.Image) -> float:
    """Encode the picture; when that was done."""
    picture.save(io.BytesIO(), "PNG")
    return time.time()


if __name__ == "__main__":
    main()
