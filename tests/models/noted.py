"""A quick model that notes each run and each of its steps in the folder NOTES: what really ran, whatever a record says.

One file a seed; a line is a step: its run, and when, in seconds of a clock that all processes share. Jobs that are made
together are one run.
"""

import contextlib
import os
import secrets
import time
from pathlib import Path

from tests.models.steady import STEP_SECONDS, Steady


class Noted(Steady):
    def generate(self, params, source, on_step):
        with _notes([params]) as note:
            for step in range(params.num_inference_steps):
                time.sleep(STEP_SECONDS)
                note()
                on_step(step + 1, params.num_inference_steps)
        yield self._paint(params, source, params.seed)

    def together(self, jobs, on_steps):
        steps = jobs[0].num_inference_steps
        with _notes(jobs) as note:
            for step in range(steps):
                time.sleep(STEP_SECONDS)
                note()
                for on_step in on_steps:
                    on_step(step + 1, steps)
        return [self._paint(params, None, params.seed) for params in jobs]


@contextlib.contextmanager
def _notes(jobs):
    """What notes a step of this one run of these jobs."""
    run, folder = secrets.token_hex(4), os.environ.get("NOTES")
    with contextlib.ExitStack() as stack:
        # Line by line, so that a kill -9 takes nothing along.
        files = [stack.enter_context(Path(folder, str(job.seed)).open("a", buffering=1)) for job in jobs if folder]
        yield lambda: [file.write(f"{run} {time.monotonic():.3f}\n") for file in files]


def load(spec, device):
    return Noted()
