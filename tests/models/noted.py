"""A quick model that notes each run and each of its steps in the folder NOTES: what really ran, whatever a record says.

One file a seed; a line is a step: its run, and when, in seconds of a clock that all processes share.
"""

import os
import secrets
import time
from pathlib import Path

from tests.models.steady import STEP_SECONDS, Steady


class Noted(Steady):
    def generate(self, params, source, on_step):
        run, folder = secrets.token_hex(4), os.environ.get("NOTES")
        # Line by line, so that a kill -9 takes nothing along.
        with (Path(folder, str(params.seed)) if folder else Path(os.devnull)).open("a", buffering=1) as notes:
            for step in range(params.num_inference_steps):
                time.sleep(STEP_SECONDS)
                notes.write(f"{run} {time.monotonic():.3f}\n")
                on_step(step + 1, params.num_inference_steps)
        yield self._paint(params, source, params.seed)


def load(spec, device):
    return Noted()
