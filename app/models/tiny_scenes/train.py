"""Train the model: ``python -m app.models.tiny_scenes.train``; the README beside this file says how."""

import time
from collections.abc import Callable
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from app.models.tiny_scenes.autoencoder import SAMPLES as VAE_SAMPLES
from app.models.tiny_scenes.autoencoder import autoencoder_run, build_autoencoder
from app.models.tiny_scenes.checkpoint import Run
from app.models.tiny_scenes.pictures import autoencoder_pictures

CHECKPOINT_SECONDS = 300
LOG_SECONDS = 20


def train(run: Run, path: Path, samples: int, title: str) -> None:
    """Go on with ``run`` from its checkpoint at ``path`` until it has seen ``samples``."""
    run.load(path)
    with _progress() as progress:
        task = progress.add_task(title, total=samples, completed=run.samples, loss="")
        saved = logged = time.monotonic()
        mean = 0.0
        while run.samples < samples:
            loss = run.step()
            mean = mean + 0.02 * (loss - mean) if mean else loss
            progress.update(task, completed=run.samples, loss=f"loss {mean:.4f}")
            if time.monotonic() - logged > LOG_SECONDS and not progress.console.is_terminal:
                progress.console.print(f"{title}: {run.samples} samples, loss {mean:.4f}")
                logged = time.monotonic()
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                run.save(path)
                saved = time.monotonic()
    run.save(path)


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, TextColumn("{task.fields[loss]}"), console=Console())


def train_autoencoder(folder: Path) -> None:
    torch.manual_seed(0)
    run = autoencoder_run(build_autoencoder(), autoencoder_pictures(folder))
    train(run, folder / "vae.pt", VAE_SAMPLES, "autoencoder")


STAGES: dict[str, Callable[[Path], None]] = {"vae": train_autoencoder}


@click.command()
@click.option("--checkpoints", type=click.Path(path_type=Path), default=Path("var/tiny-scenes"))
@click.option("--stage", type=click.Choice([*STAGES, "all"]), default="all")
def main(checkpoints: Path, stage: str) -> None:
    torch.set_num_threads(2)
    STAGES[stage](checkpoints)


if __name__ == "__main__":
    main()
