"""A model that keeps 400 MB of each job for ever."""

from tests.models.steady import Steady

LEAK_BYTES = 400_000_000


class Leaks(Steady):
    def __init__(self):
        self._kept = []

    def generate(self, params, source, on_step):
        if params.num_inference_steps > 1:
            # Written to, so that it is really taken.
            self._kept.append(b"x" * LEAK_BYTES)
        yield from super().generate(params, source, on_step)


def load(spec, device):
    return Leaks()
