"""The catalogue: `model_version` → `ModelSpec`, read from config/models.yaml.

Safe to import on the web tier: the specifications only, nothing that loads a model.
"""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from app.errors import SettingsError, UnknownModelVersion, reason
from app.models.spec import Capability, Defaults, Limits, ModelSpec

__all__ = ["Capability", "Catalogue", "Defaults", "Limits", "ModelSpec", "load_catalogue"]


class Catalogue:
    """The models that this deployment offers, the default first, then in the order of the file."""

    def __init__(self, specs: list[ModelSpec], default: str = "") -> None:
        ordered = sorted(specs, key=lambda spec: spec.model_version != default)
        self._specs = {spec.model_version: spec for spec in ordered}
        self.default = ordered[0]

    def get(self, model_version: str) -> ModelSpec:
        """The specification of this version; raises UnknownModelVersion."""
        try:
            return self._specs[model_version]
        except KeyError:
            raise UnknownModelVersion(
                f"There is no model of that name; this deployment offers {', '.join(self._specs)}.",
                [{"field": "model_version", "reason": "unknown"}],
            ) from None

    def all(self) -> list[ModelSpec]:
        """Every specification, the default first."""
        return list(self._specs.values())

    def queues(self) -> list[str]:
        """The names of all queues, each once, the default model's first."""
        return list(dict.fromkeys(spec.queue for spec in self.all()))

    def on_queue(self, queue: str) -> list[ModelSpec]:
        """The models that a worker of this queue serves."""
        return [spec for spec in self.all() if spec.queue == queue]

    def is_served(self, model_version: str, queue: str) -> bool:
        """Whether workers of this queue serve this model."""
        return any(spec.model_version == model_version for spec in self.on_queue(queue))


def load_catalogue(path: str, default: str = "") -> Catalogue:
    """Read and check the catalogue; raises SettingsError that names every mistake in it."""
    entries = _entries(path)
    specs, mistakes = _parse(entries)
    mistakes += _repeated(entries)
    names = [entry.get("model_version") for entry in entries if isinstance(entry, dict)]
    told = [f"{path}: {mistake}" for mistake in mistakes]
    if default and default not in names:
        told.append(f"DEFAULT_MODEL_VERSION: {default} is not in {path}")
    if told:
        raise SettingsError("\n".join(told))
    return Catalogue([_located(spec, Path(path).parent) for spec in specs], default)


def _entries(path: str) -> list[Any]:
    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise SettingsError(
            f"MODELS_FILE: {path} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None
    entries = document.get("models") if isinstance(document, dict) else None
    if not isinstance(entries, list) or not entries:
        raise SettingsError(f"{path}: there must be a list `models` with at least one entry")
    return entries


def _parse(entries: list[Any]) -> tuple[list[ModelSpec], list[str]]:
    """The entries that are right, and what is wrong with the others."""
    specs, mistakes = [], []
    for index, entry in enumerate(entries):
        try:
            specs.append(ModelSpec.model_validate(entry))
        except ValidationError as error:
            mistakes += [f"{_place(index, entry, e['loc'])}: {reason(e)}" for e in error.errors()]
    return specs, mistakes


def _place(index: int, entry: Any, location: tuple[int | str, ...]) -> str:
    name = entry.get("model_version") if isinstance(entry, dict) else None
    return ".".join(map(str, ("models", index, *location))) + (f" ({name})" if isinstance(name, str) else "")


def _repeated(entries: list[Any]) -> list[str]:
    names = [entry.get("model_version") for entry in entries if isinstance(entry, dict)]
    twice = sorted({name for name in names if isinstance(name, str) and names.count(name) > 1})
    return [f"model_version {name} is there twice" for name in twice]


def _located(spec: ModelSpec, folder: Path) -> ModelSpec:
    if spec.is_python or spec.is_remote:
        return spec
    return spec.model_copy(update={"source": str((folder / spec.source).resolve())})
