"""Train the model: ``python -m app.models.tiny_scenes.train``; the README beside this file says how.

Three stages, each resumable: the autoencoder, the text encoder, and the diffusion model, which has no
end and goes on for as many samples or minutes as it is given.
"""

# mypy: disallow-untyped-calls=False
# diffusers and transformers ship no types that mypy can follow, hence Any for their networks.

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from diffusers import AutoencoderTiny
from diffusers.utils import logging as diffusers_logging
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import CLIPTextModel, CLIPTokenizer
from transformers import logging as transformers_logging

from app.models.tiny_scenes import autoencoder, diffusion, text_encoder
from app.models.tiny_scenes.checkpoint import Run
from app.models.tiny_scenes.export import export
from app.models.tiny_scenes.latents import Shards
from app.models.tiny_scenes.pictures import autoencoder_pictures, scenes
from app.models.tiny_scenes.tokenizer import build_tokenizer

CHECKPOINT_SECONDS = 120
LOG_SECONDS = 20
DEFAULT_SAMPLES = 400_000


def advance(run: Run, path: Path, samples: int, title: str, deadline: float = float("inf")) -> None:
    """Go on with ``run`` from its checkpoint until it has seen ``samples`` or ``time.monotonic()`` is past."""
    run.load(path)
    with _progress() as progress:
        task = progress.add_task(title, total=samples, completed=run.samples, loss="")
        saved = logged = time.monotonic()
        mean = 0.0
        while run.samples < samples and time.monotonic() < deadline:
            loss = run.step()
            mean = mean + 0.02 * (loss - mean) if mean else loss
            progress.update(task, completed=run.samples, loss=f"loss {mean:.4f}")
            if time.monotonic() - logged > LOG_SECONDS and not progress.console.is_terminal:
                progress.console.print(f"{time.strftime('%H:%M:%S')} {title}: {run.samples} samples, loss {mean:.4f}")
                logged = time.monotonic()
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                run.save(path)
                saved = time.monotonic()
    run.save(path)


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console()
    return Progress(*columns, TextColumn("{task.fields[loss]}"), console=console, disable=not console.is_terminal)


def finished_autoencoder(folder: Path) -> Any:
    """The autoencoder in ``folder``, trained first where it is not there yet."""
    done = folder / "vae"
    if not (done / "config.json").exists():
        torch.manual_seed(0)
        network = autoencoder.build_autoencoder()
        run = autoencoder.autoencoder_run(network, autoencoder_pictures(folder))
        advance(run, folder / "vae.pt", autoencoder.SAMPLES, "autoencoder")
        run.use_averages()
        network.save_pretrained(done)
    network = AutoencoderTiny.from_pretrained(done)
    click.echo(f"autoencoder: {autoencoder.decibels(network, scenes(24, seed=3)[0]):.1f} dB on held-out scenes")
    return network.to(memory_format=torch.channels_last).eval()


def finished_text_encoder(folder: Path, tokenizer: Any) -> Any:
    """The text encoder in ``folder``, trained first where it is not there yet."""
    done = folder / "text_encoder"
    if not (done / "config.json").exists():
        torch.manual_seed(0)
        reader = text_encoder.Reader(text_encoder.build_text_encoder(tokenizer))
        run = text_encoder.reader_run(reader, tokenizer)
        advance(run, folder / "text_encoder.pt", text_encoder.SAMPLES, "text encoder")
        run.use_averages()
        click.echo(f"text encoder: {text_encoder.share_understood(reader, tokenizer, 1000, seed=3):.3f} understood")
        reader.encoder.save_pretrained(done)
    return CLIPTextModel.from_pretrained(done).eval()


def finished_tokenizer(folder: Path) -> Any:
    """The tokenizer in ``folder``; kept there, because the token ids of the shards depend on it."""
    done = folder / "tokenizer"
    if not done.exists():
        build_tokenizer().save_pretrained(done)
    return CLIPTokenizer.from_pretrained(done)


def diffusion_stage(folder: Path) -> tuple[Run, Callable[[Path], None]]:
    """The diffusion model's run, and what writes the whole pipeline to a folder."""
    tokenizer = finished_tokenizer(folder)
    vae = finished_autoencoder(folder)
    reader = finished_text_encoder(folder, tokenizer)
    torch.manual_seed(0)
    unet = diffusion.build_unet()
    run = diffusion.unet_run(unet, Shards(folder, vae, tokenizer, reader))

    def write(out: Path) -> None:
        run.use_averages()
        export(out, unet=unet, vae=vae, tokenizer=tokenizer, text_encoder=reader)

    return run, write


@click.command()
@click.option("--checkpoints", type=click.Path(path_type=Path), default=None, help="Default: a user cache folder.")
@click.option("--samples", default=DEFAULT_SAMPLES, help="Train the diffusion model until it has seen this many.")
@click.option("--minutes", default=float("inf"), help="Stop the diffusion model's training after this time.")
@click.option("--threads", default=2, help="The same results need the same number; 1 is best on a busy machine.")
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Write the pipeline there at the end.")
def main(checkpoints: Path | None, samples: int, minutes: float, threads: int, out: Path | None) -> None:
    """Train tiny-scenes, or go on where a training stopped; with --samples 0 only export."""
    torch.set_num_threads(threads)
    transformers_logging.set_verbosity_error()
    diffusers_logging.set_verbosity_error()
    folder = checkpoints or Path(click.get_app_dir("darkroom")) / "tiny-scenes"
    if not samples and not (folder / "unet.pt").exists():
        raise click.ClickException(f"there is no checkpoint in {folder}: train first.")
    run, write = diffusion_stage(folder)
    # With nothing to learn the checkpoint is only read, so that an export may run beside a training.
    if samples:
        advance(run, folder / "unet.pt", samples, "diffusion", time.monotonic() + 60 * minutes)
    else:
        run.load(folder / "unet.pt")
    click.echo(f"diffusion: {run.samples} samples seen")
    if out:
        write(out)


if __name__ == "__main__":
    main()
