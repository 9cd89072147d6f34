"""Train the decoder on, alone: ``python -m app.models.tiny_scenes.sharpen --checkpoints DIR``.

The encoder stays as it is, and with it the latents, so that this may be done before, after or while the
diffusion model is trained. A cell's mean colours say how much of it an object covers, and the cells
around say from which side: a decoder that has looked at enough drawings puts the edge back.
"""

# mypy: disallow-untyped-calls=False
# diffusers ships no types that mypy can follow, hence Any for its networks.

import os
import shutil
import time
from pathlib import Path
from typing import Any

import click
import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from app.models.tiny_scenes.autoencoder import BATCH, crops, decibels, reconstruction_loss
from app.models.tiny_scenes.checkpoint import Run
from app.models.tiny_scenes.pictures import autoencoder_pictures, scenes
from app.models.tiny_scenes.train import advance

RATE = 1e-3
WARM_UP = 1_000  # crops
SETTLE = 0.3  # the last share of the training, in which the learning rate falls to nothing


def sharpen_run(network: Any, pictures: Tensor, samples: int) -> Run:
    """The training of ``network.decoder`` on ``samples`` crops of uint8 ``pictures`` (N, 3, 128, 128)."""

    def loss(generator: torch.Generator, _: int) -> Tensor:
        wanted = crops(pictures, generator)
        with torch.no_grad():
            latents = network.encoder(wanted)
        return reconstruction_loss(network, wanted, latents, generator)

    def learning_rate(seen: int) -> float:
        left = (1 - seen / samples) / SETTLE
        return RATE * min(1.0, (seen + BATCH) / WARM_UP, max(0.0, left))

    return Run(network.decoder, loss, learning_rate, BATCH)


def replace_saved(network: Any, folder: Path) -> None:
    """Put ``network`` in the place of the one in ``folder``, which is kept beside it as it was before."""
    new, before = (folder.with_name(f"{folder.name}-{word}") for word in (f"{os.getpid()}.part", "before"))
    network.save_pretrained(new)
    shutil.rmtree(before, ignore_errors=True)
    folder.rename(before)
    new.rename(folder)


@click.command()
@click.option("--checkpoints", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--samples", default=60_000, help="Crops in all; the same number each time a training goes on.")
@click.option("--minutes", default=float("inf"), help="Stop after this time; the next call goes on.")
@click.option("--threads", default=2)
def main(checkpoints: Path, samples: int, minutes: float, threads: int) -> None:
    """Sharpen the autoencoder in CHECKPOINTS/vae; it is replaced when SAMPLES crops have been seen."""
    torch.set_num_threads(threads)
    network: Any = AutoencoderTiny.from_pretrained(checkpoints / "vae").to(memory_format=torch.channels_last)
    held_out = scenes(24, seed=3)[0]
    click.echo(f"before: {decibels(network, held_out):.1f} dB on held-out scenes")
    run = sharpen_run(network, autoencoder_pictures(checkpoints), samples)
    advance(run, checkpoints / "decoder.pt", samples, "decoder", time.monotonic() + 60 * minutes)
    run.use_averages()
    click.echo(f"after {run.samples} crops: {decibels(network, held_out):.1f} dB")
    if run.samples >= samples:
        replace_saved(network, checkpoints / "vae")


if __name__ == "__main__":
    main()
