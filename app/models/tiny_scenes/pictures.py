"""Pictures to train on, as tensors: captioned scenes, and "dead leaves" for the autoencoder.

Pictures are uint8 tensors (N, 3, 128, 128) until they reach a network, which sees -1 to 1.
"""

# ruff: noqa: S311 -- pictures and captions are drawn at random, nothing here is a secret.

import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from app.models.tiny_scenes.captions import captioned_scene
from app.models.tiny_scenes.checkpoint import save_atomically
from app.models.tiny_scenes.drawing import PICTURE_SIZE, draw

LEAVES = 140


def scenes(count: int, seed: int) -> tuple[Tensor, list[str]]:
    """``count`` drawn scenes, uint8 (count, 3, 128, 128), and their captions."""
    rng = random.Random(seed)
    pictures, captions = [], []
    for _ in range(count):
        scene, caption = captioned_scene(rng)
        pictures.append(as_tensor(draw(scene, rng)))
        captions.append(caption)
    return torch.stack(pictures), captions


def dead_leaves(count: int, seed: int) -> Tensor:
    """Overlapping shapes of all sizes, whose statistics are near to those of photographs.

    Baradad et al. 2021 (arXiv:2106.05963). They teach the autoencoder what no scene shows, for img2img.
    """
    rng = random.Random(seed)
    return torch.stack([as_tensor(_leaves(rng)) for _ in range(count)])


def as_tensor(picture: Image.Image) -> Tensor:
    """uint8 (3, height, width)."""
    return torch.from_numpy(np.asarray(picture, dtype=np.uint8).copy()).permute(2, 0, 1)


def as_network_input(pictures: Tensor) -> Tensor:
    """uint8 0..255 to float32 -1..1, in the memory order that convolutions on a CPU like best."""
    return pictures.float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)


def autoencoder_pictures(folder: Path, scene_count: int = 5000, leaves_count: int = 1500) -> Tensor:
    """What the autoencoder learns from; kept in ``folder`` after the first call."""
    path = folder / f"pictures-{scene_count}-{leaves_count}.pt"
    if not path.exists():
        pictures = torch.cat([scenes(scene_count, seed=1)[0], dead_leaves(leaves_count, seed=2)])
        save_atomically(pictures, path)
    loaded: Tensor = torch.load(path, weights_only=True)
    return loaded


def _leaves(rng: random.Random) -> Image.Image:
    picture = Image.new("RGB", (PICTURE_SIZE, PICTURE_SIZE), _any_colour(rng))
    pen = ImageDraw.Draw(picture)
    for _ in range(LEAVES):
        x, y = rng.uniform(-10, PICTURE_SIZE + 10), rng.uniform(-10, PICTURE_SIZE + 10)
        radius = 3 * min(12.0, rng.random() ** -0.5)  # a power law, as sizes in photographs have
        box = (x - radius, y - radius * rng.uniform(0.4, 1), x + radius, y + radius)
        paint = pen.ellipse if rng.random() < 0.5 else pen.rectangle
        paint(box, fill=_any_colour(rng))
    return picture


def _any_colour(rng: random.Random) -> tuple[int, int, int]:
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)
