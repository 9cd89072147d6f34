"""One entry of the catalogue: where a model comes from, which queue serves it, and what it can do.

Safe to import on the web tier. The validators stand on fields, not on the whole entry, so that one look at the
catalogue tells all of its mistakes.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationInfo, field_validator

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
# Where the courier, and Celery itself, listen.
_TAKEN = re.compile(r"quarantine|celery.*|.*\.pidbox", re.DOTALL)
Capability = Literal["txt2img", "img2img", "inpaint"]
Dtype = Literal["float32", "float16", "bfloat16"]
ClassName = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Za-z0-9]{0,99}$")]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]

_SOURCES = {
    "hf": (r"hf:[\w.-]+/[\w.-]+@[0-9a-f]{40}", "hf:organisation/name@ and the 40 hexadecimal digits of a commit"),
    "gs": (r"gs://[a-z0-9][\w.-]+(/[^/]+)+/?", "gs://bucket/prefix"),
    "python": (r"python:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", "python:module"),
}


class _Entry(BaseModel):
    # Defaults are validated too: a limit that is left out can still be below a default that is not.
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class Defaults(_Entry):
    """What a request gets that names nothing else. Sizes in pixels; without a scheduler the folder's own is used."""

    width: int = Field(512, ge=8)
    height: int = Field(512, ge=8)
    num_inference_steps: int = Field(30, ge=1)
    guidance_scale: float = Field(7.5, ge=0)
    strength: float = Field(0.7, gt=0, le=1)
    scheduler: ClassName | None = None


class Limits(_Entry):
    """The largest values that a request may name. Sizes in pixels; `pixels` bounds width * height."""

    width: int = Field(1024, ge=8)
    height: int = Field(1024, ge=8)
    pixels: int | None = Field(None, ge=64)
    num_inference_steps: int = Field(150, ge=1)
    guidance_scale: float = Field(30.0, ge=0)
    num_images: int = Field(4, ge=1)


class PerDevice(_Entry):
    """The number type of the weights on each kind of device. Half precision is slow on CPUs."""

    cuda: Dtype = "float16"
    mps: Dtype = "float16"
    cpu: Dtype = "float32"


class Variants(_Entry):
    """Which of a repository's sets of weight files each kind of device loads, `fp16` say; none is the plain one."""

    cuda: Name | None = None
    mps: Name | None = None
    cpu: Name | None = None


class MostTogether(_Entry):
    """How many queued jobs each kind of device runs as one call of the pipeline, at the most."""

    cuda: int = Field(1, ge=1, le=64)
    mps: int = Field(1, ge=1, le=64)
    cpu: int = Field(1, ge=1, le=64)


class ModelSpec(_Entry):
    """One model.

    `source` is a folder in diffusers' format (relative to the catalogue's file), `hf:organisation/name@commit` on
    the Hugging Face hub, `gs://bucket/prefix`, or `python:module`, a module with `load(spec, device)`.
    """

    model_version: Name
    source: Annotated[str, StringConstraints(min_length=1)]
    weights_sha256: Digest | None = Field(None, description="Checked on each load; `models list --digests` prints it.")
    queue: Name
    licence: str = ""
    pipeline: Literal["auto"] | ClassName = Field("auto", description="A class of diffusers; auto: the folder says.")
    dtype: PerDevice = PerDevice()
    variant: Variants = Variants()
    max_batch: MostTogether = MostTogether()
    compile: bool = Field(False, description="torch.compile on CUDA: minutes at the first picture of each size.")
    call: dict[str, Any] = Field({}, description="Further arguments of each call of the pipeline.")
    capabilities: tuple[Capability, ...] = ("txt2img",)
    negative_prompt: bool = Field(True, description="Whether the model heeds one; distilled models do not.")
    safety_checker: bool = Field(False, description="Run the pipeline's own checker; flagged pictures fail the job.")
    without_worker: Literal["accept", "refuse"] = "accept"
    defaults: Defaults = Defaults()
    limits: Limits = Limits()
    multiple_of: int = Field(8, ge=1)
    schedulers: tuple[ClassName, ...] = Field((), description="Classes of diffusers that a request may name.")

    @field_validator("source")
    @classmethod
    def _known_source(cls, source: str) -> str:
        scheme = source.partition(":")[0]
        if ":" not in source:
            return source
        if scheme not in _SOURCES:
            raise ValueError(f"is neither a folder nor {', '.join(f'{name}:' for name in _SOURCES)}")
        pattern, meant = _SOURCES[scheme]
        if not re.fullmatch(pattern, source) or "/../" in source + "/":
            raise ValueError(f"must be {meant}")
        return source

    @field_validator("queue")
    @classmethod
    def _a_queue_of_ones_own(cls, queue: str) -> str:
        if _TAKEN.fullmatch(queue):
            raise ValueError("is a queue of the service itself")
        return queue

    @field_validator("capabilities")
    @classmethod
    def _something_to_do(cls, capabilities: tuple[Capability, ...]) -> tuple[Capability, ...]:
        if not capabilities or len(set(capabilities)) < len(capabilities):
            raise ValueError("there must be at least one, and each once")
        return capabilities

    @field_validator("limits")
    @classmethod
    def _defaults_within_limits(cls, limits: Limits, others: ValidationInfo) -> Limits:
        defaults: Defaults | None = others.data.get("defaults")
        if defaults is None:
            return limits
        names = ("width", "height", "num_inference_steps", "guidance_scale")
        above = [name for name in names if getattr(defaults, name) > getattr(limits, name)]
        if limits.pixels and defaults.width * defaults.height > limits.pixels:
            above.append("pixels")
        if above:
            raise ValueError("; ".join(f"defaults.{name} is above limits.{name}" for name in above))
        return limits

    @field_validator("multiple_of")
    @classmethod
    def _default_size_fits(cls, multiple_of: int, others: ValidationInfo) -> int:
        defaults: Defaults | None = others.data.get("defaults")
        if defaults and (defaults.width % multiple_of or defaults.height % multiple_of):
            raise ValueError(f"the default size is no multiple of {multiple_of}")
        return multiple_of

    @field_validator("schedulers")
    @classmethod
    def _default_scheduler_is_allowed(cls, schedulers: tuple[str, ...], others: ValidationInfo) -> tuple[str, ...]:
        defaults: Defaults | None = others.data.get("defaults")
        if defaults and defaults.scheduler and defaults.scheduler not in schedulers:
            raise ValueError(f"defaults.scheduler {defaults.scheduler} is not among them")
        return schedulers

    @property
    def is_remote(self) -> bool:
        """Whether its files must be brought to this machine before it can be loaded."""
        return self.source.startswith(("hf:", "gs:"))

    @property
    def is_python(self) -> bool:
        """Whether it is a module and not a folder of weights."""
        return self.source.startswith("python:")
