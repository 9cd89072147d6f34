"""Models whose time is known: `sleeping` takes 50 ms a step, `nothing` none. What is more is Darkroom's own.

`holding` takes so long a step that a worker can be kept busy for minutes.
"""

import time
from collections.abc import Iterator
from typing import Any

from PIL import Image

SECONDS = {"sleeping": 0.05, "nothing": 0.0, "holding": 0.5}


class Sleeping:
    """A model that waits `seconds` a step and gives a plain picture."""

    provenance = {"scheduler": "Sleeping"}  # noqa: RUF012

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def generate(self, params: Any, _: Any, on_step: Any) -> Iterator[Image.Image]:
        """See `app.models.contract.Model`."""
        for step in range(params.num_inference_steps):
            time.sleep(self._seconds)
            on_step(step + 1, params.num_inference_steps)
        yield Image.new("RGB", (params.width, params.height), "teal")


def load(spec: Any, _: str) -> Sleeping:
    """The model of this catalogue entry."""
    return Sleeping(SECONDS[spec.model_version])
