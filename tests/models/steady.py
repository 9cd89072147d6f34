"""A model that takes 20 ms a step and paints its seed, over the middle of the input picture where there is one.

It looks at every step as it will at the end.
"""

import time

from PIL import Image

STEP_SECONDS = 0.02


class Steady:
    provenance = {"scheduler": "Steady"}  # noqa: RUF012

    def generate(self, params, source, on_step):
        steps = params.num_inference_steps * params.num_images
        for index in range(params.num_images):
            for step in range(params.num_inference_steps):
                time.sleep(STEP_SECONDS)
                done = index * params.num_inference_steps + step + 1
                on_step(done, steps, lambda: self._paint(params, source, params.seed + index))  # noqa: B023, at once
            yield self._paint(params, source, params.seed + index)

    @staticmethod
    def _paint(params, source, seed):
        colour = (seed % 256, seed // 256 % 256, seed // 65536 % 256)
        size = (params.width, params.height)
        picture = source.resize(size) if source else Image.new("RGB", size, colour)
        picture.paste(colour, (params.width // 4, params.height // 4, params.width // 2, params.height // 2))
        return picture


def load(spec, device):
    return Steady()
