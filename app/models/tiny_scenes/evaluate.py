"""Measure how well a model follows prompts: ``python -m app.models.tiny_scenes.evaluate --model DIR``."""

# ruff: noqa: S311 -- pictures and captions are drawn at random, nothing here is a secret.
# mypy: disallow-untyped-calls=False
# diffusers and transformers ship no types that mypy can follow, hence Any for their networks.

import json
import random
import time
from dataclasses import asdict
from pathlib import Path

import click
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table
from transformers import logging as transformers_logging

from app.models.tiny_scenes.grammar import NOUNS, Scene, caption, random_scene
from app.models.tiny_scenes.judge import Verdict, judge, share_right, shares, trained_reader
from app.models.tiny_scenes.pictures import as_tensor

BATCH = 20
GRID = (8, 6)  # columns, rows
WEIGHTS = Path(__file__).parent / "weights"


def prompts(count: int, seed: int) -> list[Scene]:
    """Scenes in which every noun occurs equally often."""
    rng = random.Random(f"evaluate {seed}")
    scenes = [random_scene(rng) for _ in range(count)]
    return [Scene(NOUNS[n % len(NOUNS)], s.colour, s.background, s.size) for n, s in enumerate(scenes)]


def generate(folder: Path, scenes: list[Scene], size: int, steps: int, guidance: float, seed: int) -> list[Image.Image]:
    """One picture for each scene."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    settings = {"width": size, "height": size, "num_inference_steps": steps, "guidance_scale": guidance}
    generator = torch.Generator().manual_seed(seed)
    pictures: list[Image.Image] = []
    for start in range(0, len(scenes), BATCH):
        texts = [caption(scene) for scene in scenes[start : start + BATCH]]
        pictures += pipeline(texts, generator=generator, **settings).images
    return pictures


def by_noun(scenes: list[Scene], verdicts: list[Verdict]) -> dict[str, dict[str, float]]:
    """The shares of right verdicts for each noun."""
    places = {noun: [place for place, scene in enumerate(scenes) if scene.noun == noun] for noun in NOUNS}
    return {
        noun: shares([scenes[place] for place in there], [verdicts[place] for place in there])
        for noun, there in places.items()
        if there
    }


def wrong_nouns(scenes: list[Scene], verdicts: list[Verdict]) -> list[str]:
    """What each picture with a wrong noun was taken for."""
    return sorted(
        f"{scene.noun} seen as {found.noun}"
        for scene, found in zip(scenes, verdicts, strict=True)
        if scene.noun != found.noun
    )


def contact_sheet(pictures: list[Image.Image], scenes: list[Scene]) -> Image.Image:
    """The first pictures as a grid, each above its caption."""
    columns, rows = GRID
    width, height = 128, 128 + 26
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for place, (picture, scene) in enumerate(zip(pictures[: columns * rows], scenes, strict=False)):
        x, y = place % columns * width, place // columns * height
        sheet.paste(picture.resize((128, 128)), (x, y))
        pen.multiline_text((x + 2, y + 128), caption(scene).replace(" on ", "\non ", 1), "black", font, spacing=1)
    return sheet


def _table(measured: dict[str, dict[str, float]]) -> Table:
    table = Table("", "background", "colour", "noun", "all")
    for name, row in measured.items():
        table.add_row(name, *(f"{row[part]:.3f}" for part in ("background", "colour", "noun", "all")))
    return table


@click.command()
@click.option("--model", type=click.Path(exists=True, path_type=Path), default=WEIGHTS)
@click.option("--judge", "judge_path", type=click.Path(path_type=Path), default=Path("var/tiny-scenes/judge.pt"))
@click.option("--seed", default=0)
@click.option("--count", default=200)
@click.option("--size", default=128, help="Side of the pictures, pixels.")
@click.option("--steps", default=15)
@click.option("--guidance", default=4.0)
@click.option("--grid", type=click.Path(path_type=Path), default=None, help="Write the first 48 pictures there.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=None)
def main(
    model: Path, judge_path: Path, seed: int, count: int, size: int, steps: int, guidance: float,
    grid: Path | None, json_path: Path | None,
) -> None:  # fmt: skip
    """Draw COUNT prompts with MODEL and print how many pictures show what was asked for."""
    torch.set_num_threads(2)
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    reader = trained_reader(judge_path)
    scenes = prompts(count, seed)
    started = time.monotonic()
    pictures = generate(model, scenes, size, steps, guidance, seed)
    seconds = (time.monotonic() - started) / count
    verdicts = judge(reader, torch.stack([as_tensor(picture) for picture in pictures]))
    each, overall = by_noun(scenes, verdicts), shares(scenes, verdicts)
    truth = share_right(reader, 500, seed=2)
    Console().print(_table({**each, "model": overall, "judge on drawings": truth}))
    click.echo(f"{seconds:.2f} s a picture in batches of {BATCH}")
    if grid:
        contact_sheet(pictures, scenes).save(grid)
    if json_path:
        judged = [{"caption": caption(s), **asdict(v)} for s, v in zip(scenes, verdicts, strict=True)]
        measured = {"overall": overall, "judge": truth, "by_noun": each, "wrong_nouns": wrong_nouns(scenes, verdicts)}
        json_path.write_text(json.dumps({**measured, "pictures": judged}, indent=2) + "\n")


if __name__ == "__main__":
    main()
