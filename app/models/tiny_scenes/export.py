"""Write the trained parts as one pipeline folder of diffusers, half precision, in one move."""

# mypy: disallow-untyped-calls=False
# diffusers and transformers ship no types that mypy can follow, hence Any for their networks.

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTokenizer

from app.models.tiny_scenes.diffusion import build_scheduler


def export(
    out: Path,
    *,
    unet: Any,
    vae: Any,
    tokenizer: CLIPTokenizer,
    text_encoder: Any,
) -> None:
    """Replace ``out`` by the pipeline's folder; whoever loads it sees the old one or the new one.

    The networks become half precision, also in memory: this is a training's last act.
    """
    pipeline: Any = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    beside = out.with_name(f"{out.name}.{os.getpid()}.part")
    pipeline.to(dtype=torch.float16).save_pretrained(beside)
    _tidy(beside)
    _replace(out, beside)


def _tidy(folder: Path) -> None:
    """Take out what diffusers writes but does not want back, and the paths of the training machine."""
    for path in folder.rglob("*.json"):
        if path.parent.name == "tokenizer":
            continue
        settings = json.loads(path.read_text())
        settings.pop("_name_or_path", None)
        if path.parent.name == "vae":
            settings.pop("block_out_channels", None)
        path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def _replace(out: Path, new: Path) -> None:
    old = out.with_name(f"{out.name}.{os.getpid()}.old")
    if out.exists():
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)
