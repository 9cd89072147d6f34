"""What one writes without Darkroom: load the bundled model, make one picture, save it.

python -m bench.bare_script picture.png
"""

import os
import sys
from typing import Any

import torch
from diffusers import DiffusionPipeline

WEIGHTS = "app/models/tiny_scenes/weights"


def load() -> Any:
    """The pipeline, with a thread for each core as a worker has."""
    torch.set_num_threads(os.cpu_count() or 1)
    # The type is said: parts that nobody told would each take the type of their own files.
    pipeline = DiffusionPipeline.from_pretrained(WEIGHTS, dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: Any, seed: int) -> Any:
    """One picture as a request that names nothing else gets it."""
    noise = torch.Generator("cpu").manual_seed(seed)
    prompt = "a large red star on a blue background"
    return pipeline(
        prompt, width=96, height=96, num_inference_steps=15, guidance_scale=5.0, generator=noise
    ).images[0]  # fmt: skip


if __name__ == "__main__":
    draw(load(), 0).save(sys.argv[1])
