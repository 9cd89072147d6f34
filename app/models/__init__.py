"""The catalogue: `model_version` → `ModelSpec`, read from config/models.yaml.

Safe to import on the web tier: the specifications only, nothing that loads a model.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError, model_validator

from app.errors import SettingsError, UnknownModelVersion

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Capability = Literal["txt2img", "img2img"]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Defaults(_Entry):
    """What a request gets that names nothing else. Sizes in pixels."""

    width: int = Field(512, ge=8)
    height: int = Field(512, ge=8)
    num_inference_steps: int = Field(30, ge=1)
    guidance_scale: float = Field(7.5, ge=0)
    strength: float = Field(0.7, gt=0, le=1)


class Limits(_Entry):
    """The largest values that a request may name. Sizes in pixels."""

    width: int = Field(1024, ge=8)
    height: int = Field(1024, ge=8)
    num_inference_steps: int = Field(150, ge=1)
    guidance_scale: float = Field(30.0, ge=0)
    num_images: int = Field(4, ge=1)


class ModelSpec(_Entry):
    """One model: where it comes from, which queue serves it, and what it can do.

    `source` is a folder in diffusers' format, or `python:module`, a module with `load(spec, device)`.
    """

    model_version: Name
    source: Annotated[str, StringConstraints(min_length=1)]
    queue: Name
    capabilities: tuple[Capability, ...] = ("txt2img",)
    defaults: Defaults = Defaults()
    limits: Limits = Limits()
    multiple_of: int = Field(8, ge=1)
    licence: str = ""

    @model_validator(mode="after")
    def _defaults_within_limits(self) -> "ModelSpec":
        for name in ("width", "height", "num_inference_steps", "guidance_scale"):
            if getattr(self.defaults, name) > getattr(self.limits, name):
                raise ValueError(f"defaults.{name} is above limits.{name}")
        if self.defaults.width % self.multiple_of or self.defaults.height % self.multiple_of:
            raise ValueError(f"the default size is no multiple of {self.multiple_of}")
        return self


class Catalogue:
    """The models that this deployment offers, in the order of the file; the first is the default."""

    def __init__(self, specs: list[ModelSpec], default: str = "") -> None:
        self._specs = {spec.model_version: spec for spec in specs}
        self.default = self.get(default or specs[0].model_version)

    def get(self, model_version: str) -> ModelSpec:
        """The specification of this version; raises UnknownModelVersion."""
        try:
            return self._specs[model_version]
        except KeyError:
            raise UnknownModelVersion(
                f"This deployment offers: {', '.join(self._specs)}.",
                [{"field": "model_version", "reason": "unknown"}],
            ) from None

    def all(self) -> list[ModelSpec]:
        """Every specification, in the order of the file."""
        return list(self._specs.values())

    def queues(self) -> list[str]:
        """The names of all queues, each once, in the order of the file."""
        return list(dict.fromkeys(spec.queue for spec in self.all()))

    def on_queue(self, queue: str) -> list[ModelSpec]:
        """The models that a worker of this queue serves."""
        return [spec for spec in self.all() if spec.queue == queue]


def load_catalogue(path: str, default: str = "") -> Catalogue:
    """Read and check the catalogue; raises SettingsError that names every mistake in it."""
    specs = [_located(spec, Path(path).parent) for spec in _parse(path)]
    versions = [spec.model_version for spec in specs]
    if twice := sorted({version for version in versions if versions.count(version) > 1}):
        raise SettingsError(f"{path}: model_version {', '.join(twice)} is there twice")
    try:
        return Catalogue(specs, default)
    except UnknownModelVersion as error:
        raise SettingsError(f"DEFAULT_MODEL_VERSION: {default} is not in {path}. {error}") from None


def _parse(path: str) -> list[ModelSpec]:
    try:
        document: Any = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        entries = document.get("models") if isinstance(document, dict) else None
        return TypeAdapter(Annotated[list[ModelSpec], Field(min_length=1)]).validate_python(entries)
    except (OSError, yaml.YAMLError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from None
    except ValidationError as error:
        lines = (f"{path}: models.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise SettingsError("\n".join(lines)) from None


def _located(spec: ModelSpec, folder: Path) -> ModelSpec:
    if spec.source.startswith("python:"):
        return spec
    return spec.model_copy(update={"source": str((folder / spec.source).resolve())})
