"""Loading a model, whoever made it, and trying it once."""

import importlib
from typing import cast

from PIL import Image

from app.errors import ModelLoadFailed, SafetyBlocked
from app.models import devices
from app.models.contract import Model
from app.models.spec import ModelSpec
from app.params import Params
from app.settings import Settings


def load(spec: ModelSpec, settings: Settings) -> Model:
    """Load one model onto this process's device.

    Raises ModelLoadFailed, and torch's error when the model does not fit or the device failed.
    """
    device = devices.choose_device(settings.device)
    try:
        if spec.is_python:
            return _own(spec, settings, device)
        # Deferred: a model of one's own may need no diffusers, which takes longer to import than torch.
        from app.models import pipelines

        devices.prepare(settings)
        return pipelines.load(spec, settings, device)
    except ModelLoadFailed:
        raise
    except Exception as error:
        if devices.is_out_of_memory(error) or devices.is_device_fault(error):
            raise
        raise ModelLoadFailed(f"{spec.model_version} cannot be loaded: {error}") from error


def _own(spec: ModelSpec, settings: Settings, device: str) -> Model:
    module = importlib.import_module(spec.source.removeprefix("python:"))
    is_prepared = devices.prepare(settings)
    model = cast("Model", module.load(spec, device))
    if not is_prepared:
        # It may have brought torch by now.
        devices.prepare(settings)
    return model


def warm_up(model: Model, spec: ModelSpec) -> None:
    """One small picture, so that a worker that cannot make any never takes a job. Raises as `load`."""
    if spec.capabilities[0] == "txt2img":
        given: tuple[Image.Image | None, ...] = (None,)
    else:
        given = (Image.new("RGB", (64, 64), "gray"),)
    masks = (Image.new("L", (64, 64), "white"),) if spec.capabilities[0] == "inpaint" else ()
    try:
        pictures = list(model.generate(_small(spec), given[0], lambda *_: None, *masks))
    except SafetyBlocked:
        # It has been made, and who looks at noise may see anything.
        return
    except Exception as error:
        if devices.is_out_of_memory(error) or devices.is_device_fault(error):
            raise
        raise ModelLoadFailed(f"{spec.model_version} made no warm-up picture: {error}") from error
    if len(pictures) != 1:
        raise ModelLoadFailed(f"{spec.model_version} made {len(pictures)} pictures where one was asked for")


def _small(spec: ModelSpec) -> Params:
    side = spec.multiple_of * max(1, 64 // spec.multiple_of)
    return Params(
        prompt="warm-up", negative_prompt="", model_version=spec.model_version, seed=0, num_images=1,
        output_format="png", width=min(side, spec.limits.width), height=min(side, spec.limits.height),
        num_inference_steps=1, guidance_scale=spec.defaults.guidance_scale, strength=1.0,
        scheduler=spec.defaults.scheduler,
    )  # fmt: skip
