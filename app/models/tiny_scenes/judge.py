"""Says what a picture shows, to measure how well the model follows a prompt.

Colours are measured: the border's median is the background, the commonest colour of the rest is the
object's. The noun is read by a small convolutional network that has seen nothing but drawings, so its
word about what a diffusion model made is an estimate; ``share_right`` says how good it is on drawings.
"""

# ruff: noqa: S311 -- pictures and captions are drawn at random, nothing here is a secret.

import itertools
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from app.models.tiny_scenes.checkpoint import Run, save_atomically
from app.models.tiny_scenes.drawing import draw
from app.models.tiny_scenes.grammar import COLOURS, NOUNS, Scene, random_scene
from app.models.tiny_scenes.pictures import as_tensor

SIDE = 64  # pixels that the network sees
BATCH = 64
DRAWINGS = 6000
SAMPLES = 36_000
NAMES = sorted(COLOURS)
PALETTE = torch.tensor([COLOURS[name] for name in NAMES], dtype=torch.float32)


@dataclass(frozen=True)
class Verdict:
    """What one picture was found to show."""

    noun: str
    colour: str
    background: str


def build_reader() -> nn.Sequential:
    """Outlines (N, 1, SIDE, SIDE) to the nouns' scores (N, nouns); seeded by ``torch.manual_seed``."""
    widths = (1, 16, 32, 64, 96)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(widths[-1] * 16, len(NOUNS)))


def trained_reader(path: Path) -> nn.Sequential:
    """The network that reads nouns; trained on drawings first, in about a minute, where ``path`` is not there."""
    torch.manual_seed(0)
    reader = build_reader()
    if not path.exists():
        _train(reader)
        save_atomically(reader.state_dict(), path)
    reader.load_state_dict(torch.load(path, weights_only=True))
    return reader.eval()


@torch.no_grad()
def judge(reader: nn.Sequential, pictures: Tensor) -> list[Verdict]:
    """A verdict on each of uint8 (N, 3, H, W)."""
    nouns = reader(outlines(pictures)).argmax(-1).tolist()
    return [Verdict(NOUNS[noun], *_colours(picture.float())) for noun, picture in zip(nouns, pictures, strict=True)]


def share_right(reader: nn.Sequential, count: int, seed: int) -> dict[str, float]:
    """The judge's own quality: its share of right verdicts on ``count`` fresh drawings."""
    pictures, scenes = drawings(count, seed)
    return shares(scenes, judge(reader, pictures))


def shares(scenes: list[Scene], verdicts: list[Verdict]) -> dict[str, float]:
    """The share of pictures that show the background, the colour, the noun, and all three that were asked for."""
    parts = ("background", "colour", "noun")
    right = [
        [getattr(scene, part) == getattr(found, part) for part in parts]
        for scene, found in zip(scenes, verdicts, strict=True)
    ]
    each = {part: sum(row[place] for row in right) / len(right) for place, part in enumerate(parts)}
    return {**each, "all": sum(all(row) for row in right) / len(right)}


def drawings(count: int, seed: int) -> tuple[Tensor, list[Scene]]:
    """Drawn scenes, uint8 (count, 3, 128, 128), and what they show."""
    rng = random.Random(f"judge {seed}")
    scenes = [random_scene(rng) for _ in range(count)]
    return torch.stack([as_tensor(draw(scene, rng)) for scene in scenes]), scenes


def outlines(pictures: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) to each pixel's distance from the border's colour, (N, 1, SIDE, SIDE), about 0 to 1.

    Without colours a shape has to be learnt once, not once for each pair of colours.
    """
    small = functional.interpolate(pictures.float(), size=(SIDE, SIDE), mode="area")
    distance = (small - _border(small)[:, :, None, None]).norm(dim=1, keepdim=True)
    scale = distance.flatten(1).quantile(0.98, dim=1).clamp_min(20.0)
    relative: Tensor = distance / scale[:, None, None, None]
    return relative


def _border(pictures: Tensor) -> Tensor:
    """The median colour of a frame of a sixteenth of the side, (N, 3)."""
    width = max(1, pictures.shape[-1] // 16)
    rows = torch.cat([pictures[..., :width, :], pictures[..., -width:, :]], dim=-2).flatten(2)
    columns = torch.cat([pictures[..., :width], pictures[..., -width:]], dim=-1).flatten(2)
    return torch.cat([rows, columns], dim=-1).median(dim=-1).values


def _colours(picture: Tensor) -> tuple[str, str]:
    """The names of the object's and the background's colour in one picture (3, H, W)."""
    border = _border(picture[None])[0]
    distance = (picture - border[:, None, None]).norm(dim=0)
    inside = picture[:, distance > 0.5 * distance.quantile(0.98)].T
    background = _nearest(border[None])[0]
    # What is neither background nor shadow: the shadow is the background's colour, only darker.
    votes = torch.bincount(_nearest(inside), minlength=len(NAMES))
    votes[background] = 0
    return NAMES[int(votes.argmax())], NAMES[int(background)]


def _nearest(colours: Tensor) -> Tensor:
    """The places in ``NAMES`` of the palette's colours nearest to (N, 3)."""
    return torch.cdist(colours, PALETTE).argmin(dim=-1)


def _train(reader: nn.Sequential) -> None:
    pictures, scenes = drawings(DRAWINGS, seed=1)
    seen_as, nouns = outlines(pictures), torch.tensor([NOUNS.index(scene.noun or "") for scene in scenes])

    def loss(generator: torch.Generator, _: int) -> Tensor:
        picks = torch.randint(len(nouns), (BATCH,), generator=generator)
        return functional.cross_entropy(reader(_roughened(seen_as[picks], generator)), nouns[picks])

    run = Run(reader, loss, lambda seen: 2e-3 * max(0.02, 1 - seen / SAMPLES), BATCH)
    while run.samples < SAMPLES:
        run.step()


def _roughened(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Half of them blurred, all with noise: a model's pictures are not as clean as drawings."""
    blurred = functional.avg_pool2d(pictures, 3, stride=1, padding=1)
    soft = torch.rand(len(pictures), 1, 1, 1, generator=generator) < 0.5
    return torch.where(soft, blurred, pictures) + 0.08 * torch.randn(pictures.shape, generator=generator)
