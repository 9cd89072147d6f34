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
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table
from torch import nn

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


def report(scenes: list[Scene], verdicts: list[Verdict]) -> dict[str, object]:
    """The shares of right verdicts, over all and for each noun, and what wrong nouns were taken for."""
    by_noun = {
        noun: shares(*map(list, zip(*pairs, strict=True)))  # type: ignore[arg-type]
        for noun in NOUNS
        if (pairs := [pair for pair in zip(scenes, verdicts, strict=True) if pair[0].noun == noun])
    }
    wrong = [
        f"{scene.noun} seen as {found.noun}"
        for scene, found in zip(scenes, verdicts, strict=True)
        if scene.noun != found.noun
    ]
    return {"overall": shares(scenes, verdicts), "by_noun": by_noun, "wrong_nouns": sorted(wrong)}


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


def _truth(reader: nn.Sequential) -> dict[str, float]:
    return share_right(reader, 500, seed=2)


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
    reader = trained_reader(judge_path)
    scenes = prompts(count, seed)
    started = time.monotonic()
    pictures = generate(model, scenes, size, steps, guidance, seed)
    seconds = (time.monotonic() - started) / count
    verdicts = judge(reader, torch.stack([as_tensor(picture) for picture in pictures]))
    measured = report(scenes, verdicts)
    overall, by_noun = measured["overall"], measured["by_noun"]
    rows = {**by_noun, "model": overall, "judge on drawings": _truth(reader)}  # type: ignore[dict-item]
    Console().print(_table(rows), f"{seconds:.2f} s a picture in batches of {BATCH}")
    if grid:
        contact_sheet(pictures, scenes).save(grid)
    if json_path:
        judged = [{"caption": caption(s), **asdict(v)} for s, v in zip(scenes, verdicts, strict=True)]
        json_path.write_text(json.dumps({**measured, "pictures": judged}, indent=2) + "\n")


if __name__ == "__main__":
    main()
