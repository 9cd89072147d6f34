"""Captions for training: what people may write for a scene, in more words than the grammar's own."""

import dataclasses
import random

from app.models.tiny_scenes.grammar import BACKGROUND_WORDS, SYNONYMS, Scene, caption, random_scene

PREFIXES = ("a photo of ", "a picture of ", "a drawing of ", "an illustration of ", "a painting of ", "")
BARE = 0.04  # share of captions that are keywords without grammar: "red star blue background"


def captioned_scene(rng: random.Random) -> tuple[Scene, str]:
    """A fully named scene to draw, and a caption that may leave parts of it open."""
    scene = random_scene(rng)
    return scene, spoken(_partly(scene, rng), rng)


def spoken(scene: Scene, rng: random.Random) -> str:
    """One of many wordings of ``scene``; ``grammar.parse`` reads the same scene from each."""
    text = caption(scene)
    if rng.random() < BARE:
        text = " ".join(word for word in text.split() if word not in {"a", "an", "on"})
    elif rng.random() < 0.12:
        text = rng.choice(PREFIXES) + text
    words = [_other_word(word, rng) for word in text.split()]
    return " ".join(_articles_mended(words)) + ("." if rng.random() < 0.1 else "")


def _partly(scene: Scene, rng: random.Random) -> Scene:
    """The scene with some of its parts left open, so that shorter prompts work too."""
    chance = rng.random()
    if chance < 0.75:
        return scene
    if chance < 0.85:
        return dataclasses.replace(scene, background=None, size=None)
    if chance < 0.9:
        return dataclasses.replace(scene, colour=None)
    if chance < 0.95:
        return dataclasses.replace(scene, size=None)
    return dataclasses.replace(scene, colour=None, background=None, size=None)


def _other_word(word: str, rng: random.Random) -> str:
    if word == "background" and rng.random() < 0.1:
        return rng.choice(BACKGROUND_WORDS)
    others = [other for other, known in SYNONYMS.items() if known == word]
    return rng.choice(others) if others and rng.random() < 0.15 else word


def _articles_mended(words: list[str]) -> list[str]:
    """``words`` with "a" and "an" after the sound that follows, which another word may have changed."""
    following = [*words[1:], ""]
    return [
        ("an" if after[:1] in tuple("aeiou") else "a") if word in {"a", "an"} else word
        for word, after in zip(words, following, strict=True)
    ]
