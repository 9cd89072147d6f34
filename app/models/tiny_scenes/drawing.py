"""Draw a scene: a paper cut-out with a soft shadow on a softly lit background.

Objects are lists of polygons in their own units (x to the right, y down, about -1 to 1), so that
size, place and a slight turn are one affine map. Drawn at ``OVERSAMPLE`` times the size and reduced,
which is the antialiasing.
"""

import math
import random
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from app.models.tiny_scenes.grammar import COLOURS, NOUNS, Scene

PICTURE_SIZE = 128
OVERSAMPLE = 3
RADIUS = {"small": 0.23, "medium": 0.31, "large": 0.39}  # fractions of the picture's side

RGB = tuple[int, int, int]
Floats = NDArray[np.floating[Any]]
Points = list[tuple[float, float]]
Layer = tuple[Points, str]  # a polygon and what it is painted with: see _paint

CREAM: RGB = (250, 238, 214)
BARK: RGB = (110, 70, 42)
INK: RGB = (32, 28, 36)
HONEY: RGB = (252, 200, 60)


def draw(scene: Scene, rng: random.Random, size: int = PICTURE_SIZE) -> Image.Image:
    """A ``size`` x ``size`` RGB picture of the scene; ``rng`` chooses what the scene leaves open."""
    noun = scene.noun or rng.choice(NOUNS)
    colour, background = _colours(scene, rng)
    main = _jitter(COLOURS[colour], rng)
    layers = _place(_LAYERS[noun](), scene.size or rng.choice(sorted(RADIUS)), rng, size * OVERSAMPLE)
    mask, paint = _rasterise(layers, main, size)
    return _compose(mask, paint, _jitter(COLOURS[background], rng), size)


def _colours(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """The object's colour and the background's, an open one drawn unlike the other."""
    colour = scene.colour or rng.choice([name for name in sorted(COLOURS) if name != scene.background])
    return colour, scene.background or rng.choice([name for name in sorted(COLOURS) if name != colour])


def _jitter(colour: RGB, rng: random.Random) -> RGB:
    red, green, blue = (min(255, max(0, channel + rng.randint(-6, 6))) for channel in colour)
    return red, green, blue


def _place(layers: list[Layer], size_name: str, rng: random.Random, side: int) -> list[Layer]:
    """Scale, turn and move an object's polygons into pixels of a ``side`` x ``side`` canvas."""
    radius = RADIUS[size_name] * rng.uniform(0.95, 1.05)
    slack = 0.5 - radius * 1.15
    x, y = (0.5 + rng.uniform(-1, 1) * min(0.09, slack) for _ in range(2))
    turn = math.radians(rng.uniform(-8, 8))
    cos, sin = math.cos(turn) * radius, math.sin(turn) * radius
    return [
        ([((x + px * cos - py * sin) * side, (y + px * sin + py * cos) * side) for px, py in points], paint)
        for points, paint in layers
    ]


def _rasterise(layers: list[Layer], main: RGB, size: int) -> tuple[Floats, Floats]:
    """The object's coverage (size, size, 1) in 0..1 and its paint (size, size, 3) in 0..255.

    The paint is laid on a ground of the main colour, so that reducing it makes no dark fringe.
    """
    side = size * OVERSAMPLE
    mask, paint = Image.new("L", (side, side)), Image.new("RGB", (side, side), main)
    on_mask, on_paint = ImageDraw.Draw(mask), ImageDraw.Draw(paint)
    for points, name in layers:
        on_mask.polygon(points, fill=255)
        on_paint.polygon(points, fill=_paint(name, main))
    coverage = np.asarray(mask.reduce(OVERSAMPLE), dtype=np.float32)[..., None] / 255
    return coverage, np.asarray(paint.reduce(OVERSAMPLE), dtype=np.float32)


def _compose(mask: Floats, paint: Floats, background: RGB, size: int) -> Image.Image:
    """Light both sheets, lay the object's shadow on the background and the object on top."""
    fall, glow = _light(size)
    ground = _shade(np.array(background, dtype=np.float32), glow)
    ground *= 1 - 0.38 * _shadow(mask, size)
    picture = ground * (1 - mask) + _shade(paint, fall) * mask
    return Image.fromarray(picture.round().clip(0, 255).astype(np.uint8))


@cache
def _light(size: int) -> tuple[Floats, Floats]:
    """How far each place is lit (+) or dimmed (-): the object's from above, the background's a pool."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    fall = (0.5 - y) * 0.30
    glow = 0.08 - 0.28 * ((x - 0.5) ** 2 + (y - 0.4) ** 2)
    return fall[..., None], glow[..., None]


def _shade(colour: Floats, light: Floats) -> Floats:
    """Mix towards white where the light is positive, towards black where it is negative."""
    lit: Floats = colour + np.maximum(light, 0) * (255 - colour) + np.minimum(light, 0) * colour
    return lit


def _shadow(mask: Floats, size: int) -> Floats:
    """The object's coverage, blurred and moved down by a few pixels: (size, size, 1) in 0..1."""
    picture = Image.fromarray((mask[..., 0] * 255).astype(np.uint8))
    moved = Image.new("L", (size, size))
    moved.paste(picture, (0, round(size * 0.035)))
    blurred = moved.filter(ImageFilter.GaussianBlur(size * 0.025))
    return np.asarray(blurred, dtype=np.float32)[..., None] / 255


def _paint(name: str, main: RGB) -> RGB:
    """A fixed colour by its name, or the main colour made darker ("dark") or kept ("main")."""
    if name == "dark":
        red, green, blue = (round(channel * 0.62) for channel in main)
        return (red, green, blue) if max(main) > 60 else (74, 74, 82)
    if name == "heart of flower":
        # A honey-coloured middle would be lost on yellow petals.
        return BARK if main[2] < 90 and main[0] > 200 and main[1] > 100 else HONEY
    return {"main": main, "cream": CREAM, "bark": BARK, "ink": INK}[name]


def _arc(x: float, y: float, rx: float, ry: float, start: float = 0, stop: float = 360) -> Points:
    """Points along an ellipse's edge, angles in degrees, clockwise from the right as y points down."""
    steps = max(8, round(abs(stop - start) / 6))
    angles = [math.radians(start + (stop - start) * step / steps) for step in range(steps + 1)]
    return [(x + rx * math.cos(angle), y + ry * math.sin(angle)) for angle in angles]


def _box(left: float, top: float, right: float, bottom: float) -> Points:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _spokes(count: int, outer: float, inner: float) -> Points:
    """A closed zigzag between two radii that starts at the top: stars."""
    turn = math.pi / count
    radii = [outer if step % 2 == 0 else inner for step in range(2 * count)]
    return [(radius * math.sin(step * turn), -radius * math.cos(step * turn)) for step, radius in enumerate(radii)]


def _circle() -> list[Layer]:
    return [(_arc(0, 0, 0.95, 0.95), "main")]


def _square() -> list[Layer]:
    return [(_box(-0.84, -0.84, 0.84, 0.84), "main")]


def _triangle() -> list[Layer]:
    return [([(0, -0.95), (1.02, 0.82), (-1.02, 0.82)], "main")]


def _star() -> list[Layer]:
    return [([(x, y + 0.06) for x, y in _spokes(5, 1.12, 0.48)], "main")]


def _heart() -> list[Layer]:
    curve = [math.radians(6 * step) for step in range(60)]
    return [
        (
            [
                (
                    math.sin(t) ** 3 * 1.04,
                    -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 15.5 - 0.1,
                )
                for t in curve
            ],
            "main",
        )
    ]


def _ring() -> list[Layer]:
    # Two halves that overlap a little: a polygon cannot have a hole.
    halves = [(start, start + 184) for start in (-2, 178)]
    return [(_arc(0, 0, 1, 1, start, stop) + _arc(0, 0, 0.52, 0.52, stop, start), "main") for start, stop in halves]


def _cross() -> list[Layer]:
    a, b = 0.33, 0.98
    return [
        (
            [
                (-a, -b),
                (a, -b),
                (a, -a),
                (b, -a),
                (b, a),
                (a, a),
                (a, b),
                (-a, b),
                (-a, a),
                (-b, a),
                (-b, -a),
                (-a, -a),
            ],
            "main",
        )
    ]


def _diamond() -> list[Layer]:
    return [([(0, -1.12), (0.78, 0), (0, 1.12), (-0.78, 0)], "main")]


def _moon() -> list[Layer]:
    # A circle less a smaller one to its right; both arcs meet at the tips.
    return [(_arc(0.1, 0, 1.0, 1.0, 60, 300) + _arc(0.6, 0, 0.66, 0.866, 270, 90), "main")]


def _sun() -> list[Layer]:
    rays = [_turned([(-0.13, -0.74), (0.13, -0.74), (0, -1.14)], 30 * step) for step in range(12)]
    return [(_arc(0, 0, 0.62, 0.62), "main")] + [(ray, "main") for ray in rays]


def _flower() -> list[Layer]:
    petals = [_turned(_arc(0, -0.64, 0.34, 0.42), 60 * step) for step in range(6)]
    return [(petal, "main") for petal in petals] + [(_arc(0, 0, 0.34, 0.34), "heart of flower")]


def _tree() -> list[Layer]:
    tiers = [[(0, top), (half, bottom), (-half, bottom)] for top, half, bottom in _TIERS]
    return [(_box(-0.15, 0.5, 0.15, 1.1), "bark")] + [(tier, "main") for tier in tiers]


_TIERS = ((-0.18, 0.9, 0.7), (-0.66, 0.72, 0.22), (-1.12, 0.54, -0.24))  # top, half width, bottom


def _house() -> list[Layer]:
    return [
        (_box(-0.72, -0.2, 0.72, 0.92), "main"),
        ([(0, -1.05), (1.02, -0.14), (-1.02, -0.14)], "dark"),
        (_box(-0.16, 0.3, 0.2, 0.92), "cream"),
        (_box(-0.56, 0.08, -0.28, 0.4), "cream"),
        (_box(0.34, 0.08, 0.6, 0.4), "cream"),
    ]


def _mushroom() -> list[Layer]:
    stem = [(-0.26, 0.0), (0.26, 0.0), (0.36, 0.98), (-0.36, 0.98)]
    cap = _arc(0, 0.1, 1.04, 1.05, 180, 360) + _arc(0, 0.1, 1.04, 0.2, 0, 180)
    spots = [_arc(x, y, r, r) for x, y, r in ((-0.5, -0.2, 0.17), (0.08, -0.55, 0.19), (0.56, -0.12, 0.15))]
    return [(stem, "cream"), (cap, "main")] + [(spot, "cream") for spot in spots]


def _fish() -> list[Layer]:
    return [
        ([(0.35, 0), (1.04, -0.56), (0.9, 0), (1.04, 0.56)], "dark"),
        ([(-0.25, -0.4), (0.35, -0.86), (0.45, -0.2)], "dark"),
        (_arc(-0.22, 0, 0.86, 0.56), "main"),
        (_arc(-0.62, -0.14, 0.15, 0.15), "cream"),
        (_arc(-0.64, -0.14, 0.075, 0.075), "ink"),
    ]


def _turned(points: Points, degrees: float) -> Points:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return [(x * cos - y * sin, x * sin + y * cos) for x, y in points]


_LAYERS: dict[str, Callable[[], list[Layer]]] = {
    "circle": _circle, "square": _square, "triangle": _triangle, "star": _star, "heart": _heart,
    "ring": _ring, "cross": _cross, "diamond": _diamond, "moon": _moon, "sun": _sun, "flower": _flower,
    "tree": _tree, "house": _house, "mushroom": _mushroom, "fish": _fish,
}  # fmt: skip
