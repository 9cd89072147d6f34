"""A model whose device is too small: anything wider than 64 px does not fit, and 64 px only when it is frugal."""

from contextlib import contextmanager

import torch

from tests.models.steady import Steady


class OutOfMemory(Steady):
    def __init__(self):
        self.is_frugal = False

    def generate(self, params, source, on_step):
        if params.width > 64 or (params.width == 64 and params.num_inference_steps > 1 and not self.is_frugal):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        yield from super().generate(params, source, on_step)

    def together(self, jobs, on_steps):
        return [next(self.generate(job, None, told)) for job, told in zip(jobs, on_steps, strict=True)]

    @contextmanager
    def frugal(self):
        self.is_frugal = True
        yield
        self.is_frugal = False


def load(spec, device):
    return OutOfMemory()
