"""A model that takes its whole process down, as a segmentation fault does; its warm-up goes well."""

import os

from tests.models.steady import Steady


class Exits(Steady):
    def generate(self, params, source, on_step):
        if params.num_inference_steps > 1:
            os._exit(70)
        yield from super().generate(params, source, on_step)


def load(spec, device):
    return Exits()
