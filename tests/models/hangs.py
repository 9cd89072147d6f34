"""A model that never comes to an end; its warm-up does."""

import threading

from tests.models.steady import Steady


class Hangs(Steady):
    def generate(self, params, source, on_step):
        if params.num_inference_steps > 1:
            threading.Event().wait()
        yield from super().generate(params, source, on_step)


def load(spec, device):
    return Hangs()
