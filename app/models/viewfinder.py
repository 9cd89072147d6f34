"""What a picture looks like while it is still latents: cheap, small, and good enough to be looked at for half a second.

A tiny autoencoder decodes as fast as it is looked at. For a large one each latent pixel becomes one pixel of the
preview, by a linear map from its channels to red, green and blue. The map is fitted to the model's own encoder when the
model is loaded, so that no table of architectures has to be kept.
"""

import copy
from typing import Any

import structlog
import torch
from diffusers import AutoencoderTiny, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from PIL import Image

log = structlog.get_logger("darkroom.models")

# Latent pixels along each side of the picture that the map is fitted to; about twenty for each of its numbers.
SIDE = 16


class Viewfinder:
    """Looks at the latents of one model. Make it while the pipeline is on the CPU."""

    def __init__(self, pipeline: Any) -> None:
        self._map: torch.Tensor | None = None
        self.can_see = isinstance(getattr(pipeline, "vae", None), AutoencoderTiny)
        if not self.can_see:
            self._fit(pipeline)

    def _fit(self, pipeline: Any) -> None:
        try:
            self._map = _fitted(pipeline)
            self.can_see = True
        except Exception as error:  # noqa: BLE001, a family that works in another way makes its pictures all the same
            log.warning("preview.not_possible", pipeline=type(pipeline).__name__, reason=str(error))

    @torch.inference_mode()
    def look(
        self, pipeline: Any, latents: torch.Tensor, before: torch.Tensor | None, size: tuple[int, int], place: int = 0
    ) -> Image.Image:
        """The picture so far, of `size` (width, height) or smaller; `before` is how the latents were a step earlier.

        `latents` are one picture's; `place` is where that stands among those that the pipeline makes at once.
        """
        clean = _unpacked(pipeline, _without_noise(pipeline.scheduler, latents, before, place), size)
        if self._map is None:
            pixels = pipeline.vae.decode(_unscaled(pipeline.vae, clean)).sample[0]
        else:
            pixels = _mapped(clean[0].float().cpu(), self._map)
        levels = ((pixels.float().cpu() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return Image.fromarray(levels.permute(1, 2, 0).numpy())


def _unpacked(pipeline: Any, latents: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The first picture's latents as (1, channels, height, width); some families keep them as a row of patches."""
    if latents.ndim == 4:
        return latents[:1]
    width, height = size
    unpacked: torch.Tensor = pipeline._unpack_latents(latents[:1], height, width, pipeline.vae_scale_factor)  # noqa: SLF001, the family's own way
    return unpacked


def _without_noise(scheduler: Any, latents: torch.Tensor, before: torch.Tensor | None, place: int) -> torch.Tensor:
    """What the model takes the picture for at this step, as far as its scheduler lets that be known."""
    index = getattr(scheduler, "step_index", None)
    if expected := _kept(scheduler):
        # All pictures are in there, other callers' too.
        return expected[-1][place : place + 1]
    if index is None or index >= len(scheduler.timesteps):
        return latents
    if isinstance(scheduler, _STRAIGHT) and before is not None:
        # A step is a straight line towards the picture: go on along it to where there is no noise.
        noise, earlier = (float(scheduler.sigmas[i]) for i in (index, index - 1))
        return latents - noise * (latents - before) / (noise - earlier)
    # With its noise, but within the usual range.
    scale = getattr(scheduler, "scale_model_input", lambda sample, _: sample)
    scaled: torch.Tensor = scale(latents, scheduler.timesteps[index])
    return scaled


_STRAIGHT: tuple[type[Any], ...] = (EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler)


def _kept(scheduler: Any) -> list[torch.Tensor]:
    """The pictures that the model expected at the last steps, which some schedulers keep."""
    config = scheduler.config
    expects = config.get("predict_x0") or str(config.get("algorithm_type")).endswith("++")
    return [output for output in getattr(scheduler, "model_outputs", []) if expects and output is not None]


def _fitted(pipeline: Any) -> torch.Tensor:
    """(channels + 1, 3): from a latent pixel, and a one behind it, to its mean colour between -1 and 1."""
    colours = _colour_fields()
    side = SIDE * pipeline.vae_scale_factor
    picture = torch.nn.functional.interpolate(colours, (side, side), mode="nearest")
    # In full precision: some encoders overflow in half.
    vae = copy.deepcopy(pipeline.vae).float()
    with torch.inference_mode():
        latents = _scaled(vae, vae.encode(picture).latent_dist.mode())
    colours = torch.nn.functional.interpolate(colours, latents.shape[-2:], mode="area")
    solution: torch.Tensor = torch.linalg.lstsq(_with_one(latents[0]), colours[0].flatten(1).T).solution
    return solution


def _colour_fields() -> torch.Tensor:
    """(1, 3, SIDE, SIDE): every colour there is, in soft changes, as pictures have them."""
    generator = torch.Generator().manual_seed(0)
    patches = torch.rand((1, 3, SIDE // 2, SIDE // 2), generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(patches, (SIDE, SIDE), mode="bilinear")


def _mapped(latents: torch.Tensor, colours: torch.Tensor) -> torch.Tensor:
    return (_with_one(latents) @ colours).T.reshape(3, *latents.shape[-2:])


def _with_one(latents: torch.Tensor) -> torch.Tensor:
    """(height * width, channels + 1)"""
    rows = latents.flatten(1).T
    return torch.cat([rows, torch.ones(len(rows), 1)], dim=1)


def _scaled(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """As pipelines keep them."""
    scaled: torch.Tensor = (latents - _shift(vae)) * vae.config.scaling_factor
    return scaled


def _unscaled(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    unscaled: torch.Tensor = latents / vae.config.scaling_factor + _shift(vae)
    return unscaled


def _shift(vae: Any) -> float:
    return getattr(vae.config, "shift_factor", None) or 0.0
