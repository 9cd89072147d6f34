"""A model whose device fails, as a GPU does after an illegal access; its warm-up goes well."""

import torch

from tests.models.steady import Steady


class DeviceFault(Steady):
    def generate(self, params, source, on_step):
        if params.num_inference_steps > 1:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nand more")
        yield from super().generate(params, source, on_step)


def load(spec, device):
    return DeviceFault()
