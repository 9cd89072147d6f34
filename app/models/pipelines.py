"""diffusers pipelines: load once, then `generate(params, source, on_step)`.

Only the child of a worker imports it, and only for a model that needs it: diffusers takes longer to import than torch.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import diffusers
import structlog
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
    DiffusionPipeline,
)
from diffusers.utils import logging as diffusers_logging
from PIL import Image, ImageOps
from transformers.utils import logging as transformers_logging

from app.errors import DarkroomError, ModelLoadFailed, SafetyBlocked
from app.models import devices, sources
from app.models.contract import Model, OnStep
from app.models.spec import ModelSpec
from app.models.viewfinder import Viewfinder
from app.params import Params
from app.previews import Look
from app.settings import Settings

log = structlog.get_logger("darkroom.models")


def load(spec: ModelSpec, settings: Settings, device: str) -> Model:
    """Load one pipeline folder, fetched where that is allowed; raises ModelLoadFailed, and what diffusers raises."""
    _be_quiet()
    folder = sources.find(spec, settings.models_cache, allow_fetch=settings.models_fetch, device=device)
    return DiffusersModel(spec, folder, device)


def _be_quiet() -> None:
    """Keep the libraries from writing their own lines."""
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


class DiffusersModel:
    """A pipeline folder in diffusers' format, on one device."""

    def __init__(self, spec: ModelSpec, folder: Path, device: str) -> None:
        self._spec = spec
        base = _open(spec, folder, device)
        self._viewfinder = Viewfinder(base)
        _place(base, spec, device)
        # Each kind of job has a pipeline of its own, all on the same weights.
        self._pipelines = {capability: _variant_for(capability, base, spec) for capability in spec.capabilities}
        self._scheduler_config = base.scheduler.config if getattr(base, "scheduler", None) else None
        self._own_scheduler = type(base.scheduler) if self._scheduler_config else None
        self._schedulers = {name: self._allowed(name, base) for name in spec.schedulers}
        self._base = base
        self.weights_bytes = devices.weights_bytes(base)
        self.weights_sha256 = sources.weights_digest(folder)
        self.provenance: Mapping[str, str] = self._provenance(device)

    def generate(
        self, params: Params, source: Image.Image | None, on_step: OnStep, *mask: Image.Image
    ) -> Iterator[Image.Image]:
        """See `contract.Model`. One call a picture, so that each can be made again alone, bit by bit."""
        flagged = []
        for index in range(params.num_images):
            image, is_flagged = self._one(params, index, source, mask[0] if mask else None, on_step)
            flagged.append(is_flagged)
            yield image
        if any(flagged):
            raise SafetyBlocked(flagged)

    @contextmanager
    def frugal(self) -> Iterator[None]:
        """Within it a picture takes less memory and more time; where it is decoded in tiles, its bytes differ."""
        # Attention is not sliced: torch's own takes less memory than its slices.
        vae = getattr(self._base, "vae", None)
        with _enabled(vae, "slicing"), _enabled(vae, "tiling"):
            yield

    def _one(
        self, params: Params, index: int, source: Image.Image | None, mask: Image.Image | None, on_step: OnStep
    ) -> tuple[Image.Image, bool]:
        """One picture, and whether the safety checker flagged it."""
        pipeline = self._pipelines["txt2img" if source is None else "img2img" if mask is None else "inpaint"]
        size = (params.width, params.height)
        fitted = source and ImageOps.fit(source, size, Image.Resampling.LANCZOS)
        fitted_mask = mask and ImageOps.fit(mask, size, Image.Resampling.LANCZOS)
        steps = _Steps(params, index, on_step, self._viewfinder)
        result = self._call(
            pipeline,
            params,
            prompt=params.prompt,
            negative_prompt=params.negative_prompt or None,
            image=fitted,
            mask_image=fitted_mask,
            strength=params.strength if fitted else None,
            generator=_noise(params.seed + index),
            callback_on_step_end=steps,
        )
        steps.end(pipeline)
        image = cast("Image.Image", result.images[0])
        if fitted and fitted_mask:
            # What the mask keeps is kept to the pixel: the decoder would change it a little.
            image = Image.composite(image.convert("RGB"), fitted, fitted_mask)
        return image, any(getattr(result, "nsfw_content_detected", None) or [])

    def together(self, jobs: Sequence[Params], on_steps: Sequence[OnStep]) -> list[Image.Image | SafetyBlocked]:
        """A picture for each of these jobs, which differ in prompts and seed only, from one call of the pipeline.

        They differ from those that `generate` makes in the last bit of few pixels: sums are done in another order.
        """
        pipeline, negatives = self._pipelines["txt2img"], [job.negative_prompt for job in jobs]
        watched = enumerate(zip(jobs, on_steps, strict=True))
        each = [_Steps(job, 0, told, self._viewfinder, place) for place, (job, told) in watched]
        result = self._call(
            pipeline,
            jobs[0],
            prompt=[job.prompt for job in jobs],
            negative_prompt=negatives if any(negatives) else None,
            generator=[_noise(job.seed) for job in jobs],
            callback_on_step_end=_StepsOfMany(each),
        )
        for steps in each:
            steps.end(pipeline)
        flags = getattr(result, "nsfw_content_detected", None) or [False] * len(jobs)
        pictures = zip(result.images, flags, strict=True)
        return [SafetyBlocked([True]) if flagged else image for image, flagged in pictures]

    def _call(self, pipeline: Any, params: Params, **wishes: Any) -> Any:
        """The pipeline's own answer; of the wishes it gets what its family takes."""
        self._set_scheduler(pipeline, params.scheduler)
        common = {
            # Some families make the nearest size they were trained on, and stretch it.
            "use_resolution_binning": False,
            **self._spec.call,
            "width": params.width,
            "height": params.height,
            "num_inference_steps": params.num_inference_steps,
            "guidance_scale": params.guidance_scale,
        }
        with torch.inference_mode(), _as_it_was(getattr(pipeline, "vae", None)):
            return pipeline(**_accepted(pipeline, common | wishes))

    def _set_scheduler(self, pipeline: Any, name: str | None) -> None:
        """A new one for each picture: they keep state, also that of a job that was stopped half-way."""
        if self._own_scheduler is not None:
            make = self._schedulers[name] if name else self._own_scheduler
            pipeline.scheduler = make.from_config({**_UNSAID, **(self._scheduler_config or {})})

    def _allowed(self, name: str, base: Any) -> Any:
        """The scheduler's class; raises ModelLoadFailed when this pipeline cannot run with it."""
        found = getattr(diffusers, name, None)
        if self._own_scheduler is None or found not in (self._own_scheduler, *base.scheduler.compatibles):
            raise ModelLoadFailed(f"{self._spec.model_version} cannot run with {name}, which its entry allows.")
        try:
            found.from_config(base.scheduler.config)  # type: ignore[union-attr]
        except ImportError as error:
            # diffusers has a stand-in for what wants a package that is not there.
            reason = sources.first_line(error)
            raise ModelLoadFailed(f"{self._spec.model_version} cannot run with {name} here: {reason}") from None
        return found

    def _provenance(self, device: str) -> dict[str, str]:
        libraries = " ".join(f"{name}/{version(name)}" for name in ("diffusers", "torch", "transformers"))
        own = {"scheduler": self._own_scheduler.__name__} if self._own_scheduler else {}
        return {
            "Software": f"Darkroom ({libraries})",
            "weights_sha256": self.weights_sha256,
            "device": devices.describe(device),
            **own,
        }


def _open(spec: ModelSpec, folder: Path, device: str) -> Any:
    """The pipeline on the CPU, in the number type of its device."""
    cls = DiffusionPipeline if spec.pipeline == "auto" else getattr(diffusers, spec.pipeline, None)
    if cls is None:
        raise ModelLoadFailed(f"{spec.model_version}: diffusers {version('diffusers')} has no {spec.pipeline}.")
    kind = devices.kind(device)
    # The type is always said: parts that nobody told would each take the type of their own files.
    options: dict[str, Any] = {"dtype": getattr(torch, getattr(spec.dtype, kind))}
    if variant := getattr(spec.variant, kind):
        options["variant"] = variant
    has_checker = '"safety_checker"' in (folder / "model_index.json").read_text(encoding="utf-8")
    if has_checker and not spec.safety_checker:
        options |= {"safety_checker": None, "requires_safety_checker": False}
    # Safetensors only: pickled weights run code.
    pipeline = cls.from_pretrained(str(folder), local_files_only=True, use_safetensors=True, **options)
    if spec.safety_checker and getattr(pipeline, "safety_checker", None) is None:
        raise ModelLoadFailed(f"{spec.model_version}: its entry asks for a safety checker, and its pipeline has none.")
    return pipeline


def _place(pipeline: Any, spec: ModelSpec, device: str) -> None:
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(device)
    if devices.kind(device) != "cuda":
        return
    for name in ("unet", "vae"):
        if part := getattr(pipeline, name, None):
            lay_out(part)
    denoiser = getattr(pipeline, "transformer", None) or getattr(pipeline, "unet", None)
    if spec.compile and denoiser is not None:
        denoiser.compile()


def lay_out(part: torch.nn.Module) -> None:
    """Convolutions on tensor cores read this layout without a copy; those of three dimensions have none of it."""
    if all(weights.dim() <= 4 for weights in part.parameters()):
        part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _variant_for(capability: str, base: Any, spec: ModelSpec) -> Any:
    """The pipeline for this kind of job, on the weights of `base`; raises ModelLoadFailed when there is none."""
    if capability == "txt2img" and not type(base).__name__.endswith(("Img2ImgPipeline", "InpaintPipeline")):
        return base
    try:
        pipeline = _AUTO[capability].from_pipe(base)
    except ValueError:
        name = type(base).__name__
        raise ModelLoadFailed(f"{spec.model_version}: diffusers has no {capability} for {name}.") from None
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


_AUTO = {
    "txt2img": AutoPipelineForText2Image,
    "img2img": AutoPipelineForImage2Image,
    "inpaint": AutoPipelineForInpainting,
}


def _noise(seed: int) -> torch.Generator:
    """On the CPU, so that a seed means the same noise on every device."""
    return torch.Generator("cpu").manual_seed(seed)


def _accepted(pipeline: Any, wishes: Mapping[str, Any]) -> dict[str, Any]:
    """What this pipeline's call takes of it: no two families of models take quite the same."""
    known = inspect.signature(pipeline.__call__).parameters
    return {name: value for name, value in wishes.items() if name in known and value is not None}


# What configurations of other schedulers do not say: without these PNDM needs more steps than it was asked for, and
# DDIM cuts latents off as if they were pixels.
_UNSAID = {"skip_prk_steps": True, "clip_sample": False}


class _Steps:
    """What a pipeline calls after each step of one picture; it tells how far the whole job is."""

    def __init__(self, params: Params, index: int, on_step: OnStep, viewfinder: Viewfinder, place: int = 0) -> None:
        self._params = params
        self._index = index
        self._on_step = on_step
        self._viewfinder = viewfinder
        self._place = place
        self._told = 0
        self._latents: torch.Tensor | None = None

    def __call__(self, pipeline: Any, step: int, _: Any, values: dict[str, Any]) -> dict[str, Any]:
        latents = values.get("latents")
        self._tell(pipeline, step + 1, latents)
        if step + 1 >= self._steps(pipeline) and latents is not None and not bool(torch.isfinite(latents).all()):
            # It would be decoded to a black picture.
            raise DarkroomError("the model's numbers overflowed; give its entry a wider dtype")
        return values

    def end(self, pipeline: Any) -> None:
        """The picture is there; not every family of pipelines tells its steps."""
        if self._told < self._steps(pipeline):
            self._tell(pipeline, self._steps(pipeline))

    def _tell(self, pipeline: Any, step: int, latents: torch.Tensor | None = None) -> None:
        self._told, steps = step, self._steps(pipeline)
        look = self._look(pipeline, latents)
        self._on_step(self._index * steps + step, self._params.num_images * steps, look)

    def _look(self, pipeline: Any, latents: torch.Tensor | None) -> Look | None:
        before, self._latents = self._latents, latents
        if latents is None or not self._viewfinder.can_see:
            return None
        size = (self._params.width, self._params.height)
        return partial(self._viewfinder.look, pipeline, latents, before, size, self._place)

    def _steps(self, pipeline: Any) -> int:
        """Steps of one picture: fewer than were asked for where an input picture is left only in part."""
        return int(getattr(pipeline, "num_timesteps", 0) or self._params.num_inference_steps)


class _StepsOfMany:
    """What a pipeline calls after each step of several pictures at once: each one's own is told of its share."""

    def __init__(self, each: list[_Steps]) -> None:
        self._each = each

    def __call__(self, pipeline: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        latents = values.get("latents")
        for index, steps in enumerate(self._each):
            own = {} if latents is None else {"latents": latents[index : index + 1]}
            steps(pipeline, step, timestep, own)
        return values


@contextmanager
def _as_it_was(vae: Any) -> Iterator[None]:
    """Some families decode in full precision, and go back to half only where nothing failed meanwhile."""
    before = getattr(vae, "dtype", None)
    try:
        yield
    finally:
        if before and vae.dtype != before:
            vae.to(before)


@contextmanager
def _enabled(vae: Any, saving: str) -> Iterator[None]:
    """One of the VAE's ways to save memory, where it has that."""
    switch_on = getattr(vae, f"enable_{saving}", None)
    if switch_on is None:
        yield
        return
    switch_on()
    try:
        yield
    finally:
        getattr(vae, f"disable_{saving}")()
