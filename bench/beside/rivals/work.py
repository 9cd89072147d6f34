"""The job, the same for all: steps of 50 ms asleep, or real pictures; each stored as a PNG file named for its job."""

import functools
import io
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

STEP_SECONDS = 0.05
FOLDER = Path(os.environ.get("BESIDE_FOLDER", "."))
PROMPT = "a large red star on a blue background"


def sleep(task_id: str, steps: int) -> str:
    """Sleep and store; the job's id. Who runs it is told in the file `pid`."""
    (FOLDER / "pid").write_text(str(os.getpid()))
    for _ in range(steps):
        time.sleep(STEP_SECONDS)
    store(task_id, Image.new("RGB", (64, 64), "teal"))
    return task_id


def draw(task_ids: Sequence[str]) -> list[str]:
    """Make one picture for each id by one call of the pipeline, with a generator each, and store them."""
    import torch

    pictures = pipeline()(
        [PROMPT] * len(task_ids), width=96, height=96, num_inference_steps=15, guidance_scale=5.0,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in range(len(task_ids))],
    ).images  # fmt: skip
    for task_id, picture in zip(task_ids, pictures, strict=True):
        store(task_id, picture)
    return list(task_ids)


@functools.cache
def pipeline() -> Any:
    """The bundled model, loaded as bench/bare_script.py does."""
    # torch and diffusers are Darkroom's: installed once, behind what the rival pins.
    sys.path.append(os.environ["BESIDE_PACKAGES"])
    from bench.bare_script import load

    return load()


def store(task_id: str, picture: Image.Image) -> None:
    """Write the file so that it is there whole or not at all."""
    buffer, path = io.BytesIO(), FOLDER / f"{task_id}.png"
    picture.save(buffer, "PNG")
    part = path.with_suffix(".part")
    part.write_bytes(buffer.getvalue())
    part.replace(path)
