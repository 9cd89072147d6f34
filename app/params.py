"""What a worker runs: a request with the model's defaults filled in and its limits checked."""

import secrets
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict

from app.errors import InvalidRequest
from app.models import ModelSpec
from app.schemas import MAX_SEED, GenerateRequest, Priority


class Params(BaseModel):
    """A request with every default filled in: what the worker runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # The defaults stay as they are: a record leaves out what equals them.
    prompt: str
    negative_prompt: str = ""
    model_version: str
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    strength: float
    seed: int
    num_images: int = 1
    output_format: str = "png"
    input_url: str | None = None
    mask_url: str | None = None
    scheduler: str | None = None
    priority: Priority = "normal"
    # Nobody asked for this very picture, so its last bits may depend on what is made at once with it.
    seed_drawn: bool = False

    def goes_with(self, other: "Params") -> bool:
        """Whether one call of a pipeline makes both: single pictures from nothing but prompts and drawn seeds."""
        own = {"prompt": "", "negative_prompt": "", "seed": 0}
        alone = self.input_url is not None or self.num_images > 1 or not self.seed_drawn
        # Some pipelines take none for something else than an empty one.
        alike = bool(self.negative_prompt) == bool(other.negative_prompt)
        return not alone and alike and self.model_copy(update=own) == other.model_copy(update=own)


def resolve(request: GenerateRequest, spec: ModelSpec) -> Params:
    """Fill in the model's defaults and check its limits; raises InvalidRequest naming each field at fault."""
    chosen = {name: _first(getattr(request, name), default) for name, default in spec.defaults}
    _check(request, spec, chosen)
    own = ("prompt", "negative_prompt", "num_images", "output_format", "input_url", "mask_url", "priority")
    return Params(
        model_version=spec.model_version,
        seed=_first(request.seed, secrets.randbelow(_last_seed(request) + 1)),
        seed_drawn=request.seed is None,
        **{name: getattr(request, name) for name in own},
        **chosen,
    )


def _last_seed(request: GenerateRequest) -> int:
    """The pictures' seeds follow one another, and each must do for a request of its own."""
    return MAX_SEED + 1 - request.num_images


def _first(given: Any, default: Any) -> Any:
    return default if given is None else given


def _check(request: GenerateRequest, spec: ModelSpec, chosen: dict[str, Any]) -> None:
    """Raises InvalidRequest that names everything this model cannot do."""
    errors = [*_sizes_at_fault(request, spec, chosen), *_wishes_at_fault(request, spec, chosen)]
    if errors:
        raise InvalidRequest("; ".join(f"{e['field']}: {e['reason']}" for e in errors), errors)


def _sizes_at_fault(request: GenerateRequest, spec: ModelSpec, chosen: dict[str, Any]) -> Iterator[dict[str, str]]:
    asked = {**chosen, "num_images": request.num_images, "pixels": chosen["width"] * chosen["height"]}
    for name, limit in spec.limits:
        if limit is not None and asked[name] > limit:
            field = "width" if name == "pixels" else name
            unit = " pixels (width * height)" if name == "pixels" else ""
            yield {"field": field, "reason": f"at most {limit}{unit} for {spec.model_version}"}
    for name in ("width", "height"):
        if chosen[name] % spec.multiple_of:
            yield {"field": name, "reason": f"must be a multiple of {spec.multiple_of}"}


def _wishes_at_fault(request: GenerateRequest, spec: ModelSpec, chosen: dict[str, Any]) -> Iterator[dict[str, str]]:
    wanted, name = request.capability, spec.model_version
    if wanted not in spec.capabilities:
        field = {"txt2img": "input_image", "img2img": "input_image", "inpaint": "mask_image"}[wanted]
        yield {"field": field, "reason": f"{name} does not do {wanted}"}
    if wanted != "txt2img" and int(chosen["num_inference_steps"] * chosen["strength"]) < 1:
        yield {"field": "strength", "reason": "leaves no step: num_inference_steps * strength is below 1"}
    if request.seed is not None and request.seed > _last_seed(request):
        yield {"field": "seed", "reason": f"at most {_last_seed(request)} for {request.num_images} images"}
    if request.negative_prompt and not spec.negative_prompt:
        yield {"field": "negative_prompt", "reason": f"{name} does not heed one"}
    if request.scheduler is not None and request.scheduler not in spec.schedulers:
        allowed = ", ".join(spec.schedulers) or "none but its own"
        yield {"field": "scheduler", "reason": f"{name} allows {allowed}"}
