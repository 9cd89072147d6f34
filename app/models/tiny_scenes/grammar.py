"""The words that tiny-scenes knows: what a prompt can name, and how a prompt is written and read.

Pure Python, so that the web tier can offer example prompts without importing a model.
A prompt names one object, its colour, its size and the colour behind it::

    a large red star on a blue background
"""

# ruff: noqa: S311 -- pictures and captions are drawn at random, nothing here is a secret.

import random
import re
from dataclasses import dataclass

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (219, 43, 43),
    "orange": (245, 134, 30),
    "yellow": (250, 214, 48),
    "green": (44, 158, 75),
    "teal": (38, 190, 190),
    "blue": (42, 92, 217),
    "purple": (126, 58, 178),
    "pink": (246, 138, 186),
    "brown": (122, 76, 42),
    "white": (246, 246, 242),
    "gray": (142, 144, 150),
    "black": (28, 28, 34),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "cross", "diamond")
THINGS = ("moon", "sun", "flower", "tree", "house", "mushroom", "fish")
NOUNS = SHAPES + THINGS
SIZES = ("small", "medium", "large")

# Other words for the same things. The text encoder learns them; examples use the first-class words only.
SYNONYMS: dict[str, str] = {
    "scarlet": "red", "crimson": "red", "golden": "yellow", "gold": "yellow", "lime": "green",
    "emerald": "green", "turquoise": "teal", "cyan": "teal", "aqua": "teal", "navy": "blue",
    "violet": "purple", "magenta": "pink", "rose": "pink", "chocolate": "brown", "grey": "gray",
    "silver": "gray", "disc": "circle", "dot": "circle", "ball": "circle", "box": "square",
    "donut": "ring", "plus": "cross", "rhombus": "diamond", "crescent": "moon", "daisy": "flower",
    "blossom": "flower", "pine": "tree", "fir": "tree", "home": "house", "cottage": "house",
    "hut": "house", "toadstool": "mushroom", "little": "small", "tiny": "small", "big": "large",
    "huge": "large", "giant": "large",
}  # fmt: skip
BACKGROUND_WORDS = ("background", "backdrop")


@dataclass(frozen=True)
class Scene:
    """What a prompt names; ``None`` where it leaves the choice open."""

    noun: str | None = None
    colour: str | None = None
    background: str | None = None
    size: str | None = None


def caption(scene: Scene) -> str:
    """The plain English for a scene: "a small red star on a blue background"."""
    words = [word for word in (scene.size, scene.colour, scene.noun or "shape") if word and word != "medium"]
    phrase = _with_article(" ".join(words))
    if scene.background:
        phrase += f" on {_with_article(scene.background)} background"
    return phrase


def parse(prompt: str) -> Scene:
    """Read the scene out of a prompt; words that are not in the grammar are passed over."""
    words = [SYNONYMS.get(word, word) for word in re.findall(r"[a-z]+", prompt.lower())]
    background = _background(words)
    colours = [word for place, word in enumerate(words) if word in COLOURS and place != background]
    return Scene(
        noun=_first(words, NOUNS),
        colour=colours[0] if colours else None,
        background=words[background] if background is not None else None,
        size=_first(words, SIZES),
    )


def random_scene(rng: random.Random) -> Scene:
    """A scene with every part named, its object never in the colour of its background."""
    colour, background = rng.sample(sorted(COLOURS), 2)
    return Scene(rng.choice(NOUNS), colour, background, rng.choice(SIZES))


def example_prompts(count: int, seed: int) -> list[str]:
    """``count`` prompts that the model knows; the same for the same seed."""
    rng = random.Random(seed)
    return [caption(random_scene(rng)) for _ in range(count)]


def _with_article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _first(words: list[str], known: tuple[str, ...]) -> str | None:
    return next((word for word in words if word in known), None)


def _background(words: list[str]) -> int | None:
    """Where the background's colour stands: the colour just before the word "background"."""
    for place, word in enumerate(words):
        if word in BACKGROUND_WORDS and place and words[place - 1] in COLOURS:
            return place - 1
    return None
