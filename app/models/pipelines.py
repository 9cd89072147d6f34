"""diffusers pipelines: load once, then `generate(params, source, on_step)`.

The one module of the service that imports torch at its top: only the child of a worker imports it.
"""

import hashlib
import importlib
import os
import warnings
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoPipelineForImage2Image, DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from PIL import Image, ImageOps
from transformers.utils import logging as transformers_logging

from app.errors import GpuOutOfMemory, ModelLoadFailed
from app.generate import Model, OnStep
from app.models import ModelSpec
from app.schemas import Params
from app.settings import Settings


def load(spec: ModelSpec, settings: Settings) -> Model:
    """Load one model onto this process's device; raises ModelLoadFailed."""
    device = choose_device(settings.device)
    _prepare(settings)
    try:
        if spec.source.startswith("python:"):
            module = importlib.import_module(spec.source.removeprefix("python:"))
            return cast("Model", module.load(spec, device))
        return DiffusersModel(spec, device)
    except Exception as error:
        raise ModelLoadFailed(f"{spec.model_version} cannot be loaded: {error}") from error


def choose_device(wanted: str) -> str:
    """`auto` takes CUDA, then MPS, then the CPU."""
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def warm_up(model: Model, spec: ModelSpec) -> None:
    """One small picture, so that a worker that cannot make any never takes a job; raises what the model raises."""
    side = 8 * spec.multiple_of
    params = Params(
        prompt="warm-up", negative_prompt="", model_version=spec.model_version, seed=0, num_images=1,
        output_format="png", width=min(side, spec.limits.width), height=min(side, spec.limits.height),
        num_inference_steps=1, guidance_scale=spec.defaults.guidance_scale, strength=1.0,
    )  # fmt: skip
    pictures = list(model.generate(params, None, lambda _step, _steps: None))
    if len(pictures) != 1:
        raise ModelLoadFailed(f"{spec.model_version} made {len(pictures)} pictures where one was asked for")


class DiffusersModel:
    """A pipeline folder in diffusers' format, on one device."""

    def __init__(self, spec: ModelSpec, device: str) -> None:
        # Half precision on GPUs; a CPU is slower with it, and needs the type said so that no part differs.
        dtype = torch.float16 if device.startswith("cuda") else torch.float32
        self._text2image: Any = DiffusionPipeline.from_pretrained(spec.source, dtype=dtype, local_files_only=True)
        self._text2image.set_progress_bar_config(disable=True)
        self._text2image.to(device)
        self._image2image: Any = None
        if "img2img" in spec.capabilities:
            self._image2image = AutoPipelineForImage2Image.from_pipe(self._text2image)
            self._image2image.set_progress_bar_config(disable=True)
        self.provenance: Mapping[str, str] = self._provenance(spec)

    def generate(self, params: Params, source: Image.Image | None, on_step: OnStep) -> Iterator[Image.Image]:
        """See `generate.Model`. One call a picture, so that each can be made again alone, bit by bit."""
        try:
            for index in range(params.num_images):
                yield self._one(params, index, source, on_step)
        except torch.OutOfMemoryError:
            raise GpuOutOfMemory(f"{params.width}x{params.height} does not fit into the GPU's memory.") from None

    def _one(self, params: Params, index: int, source: Image.Image | None, on_step: OnStep) -> Image.Image:
        def after_step(pipe: Any, step: int, _: Any, values: dict[str, Any]) -> dict[str, Any]:
            on_step(index * pipe.num_timesteps + step + 1, params.num_images * pipe.num_timesteps)
            return values

        common = {
            "prompt": params.prompt,
            "negative_prompt": params.negative_prompt or None,
            "num_inference_steps": params.num_inference_steps,
            "guidance_scale": params.guidance_scale,
            # On the CPU, so that a seed means the same noise on every device.
            "generator": torch.Generator("cpu").manual_seed(params.seed + index),
            "callback_on_step_end": after_step,
        }
        with torch.inference_mode():
            if source is None:
                result = self._text2image(width=params.width, height=params.height, **common)
            else:
                fitted = ImageOps.fit(source, (params.width, params.height), Image.Resampling.LANCZOS)
                result = self._image2image(image=fitted, strength=params.strength, **common)
        return cast("Image.Image", result.images[0])

    def _provenance(self, spec: ModelSpec) -> dict[str, str]:
        libraries = " ".join(f"{name}/{version(name)}" for name in ("diffusers", "torch", "transformers"))
        return {
            "Software": f"Darkroom ({libraries})",
            "scheduler": type(self._text2image.scheduler).__name__,
            "weights_sha256": weights_digest(Path(spec.source)),
        }


def weights_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of all weight files below the folder, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _prepare(settings: Settings) -> None:
    """Fix what changes the bytes of a picture, and keep the libraries from writing their own lines."""
    torch.set_num_threads(settings.torch_threads or os.cpu_count() or 1)
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module=r"diffusers|transformers")
