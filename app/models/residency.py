"""Which of a worker's models are in memory: all of them, or the ones used last, within a budget.

A model is loaded when its first job comes. When the budget is full, the model that was used longest ago goes.
line.py has the order of the jobs, in which those of models in memory go first, within bounds.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import TypeVar

import structlog
from PIL import Image

from app import metrics
from app.errors import GpuOutOfMemory, SafetyBlocked
from app.models import devices, loading, sources
from app.models.contract import Model, OnStep
from app.models.spec import ModelSpec
from app.params import Params
from app.settings import Settings
from app.workers import ModelState

log = structlog.get_logger("darkroom.models")

Load = Callable[[ModelSpec, Settings], Model]
Made = TypeVar("Made")


class Residents(Mapping[str, Model]):
    """The models of one queue by their version; looking one up loads it when it is not in memory.

    The budget is in bytes of weights; 0 keeps everything. A model that is larger than the budget has it alone.
    """

    def __init__(self, specs: list[ModelSpec], settings: Settings, load: Load = loading.load) -> None:
        self._specs = {spec.model_version: spec for spec in specs}
        self._settings = settings
        self._load = load
        self._held: OrderedDict[str, _Resident] = OrderedDict()
        self._known: dict[str, ModelState] = {}

    def __getitem__(self, model_version: str) -> Model:
        """The model, in memory; raises KeyError, ModelLoadFailed, DeviceLost."""
        spec = self._specs[model_version]
        if model_version not in self._held:
            self._admit(spec)
        self._held.move_to_end(model_version)
        return self._held[model_version]

    def __contains__(self, model_version: object) -> bool:
        return model_version in self._specs

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    @property
    def loaded(self) -> Collection[str]:
        """The versions that are in memory now."""
        return self._held.keys()

    def load_all(self) -> None:
        """Load and try every model once, so that none fails at its first job; the first one is used last."""
        for model_version in reversed(self._specs):
            self[model_version]

    def report(self) -> tuple[ModelState, ...]:
        """What is known of each model that was loaded, in the catalogue's order."""
        known, held = dict(self._known), set(self._held)
        return tuple(replace(known[name], resident=name in held) for name in self._specs if name in known)

    def measure(self) -> None:
        """Tell Prometheus what this process holds of its device's memory now."""
        device = devices.choose_device(self._settings.device)
        metrics.DEVICE_MEMORY.labels(devices.describe(device)).set(devices.memory_bytes(device))

    def _admit(self, spec: ModelSpec) -> None:
        self._make_room(self._expected_bytes(spec))
        try:
            self._hold(spec)
        except Exception as error:
            if not self._held or not devices.is_out_of_memory(error):
                raise
            full = True
        else:
            full = False
        # Outside of the handler, whose traceback holds on to what was loaded so far.
        if full:
            self._evict_all()
            self._hold(spec)
        # What it takes is known only now.
        self._make_room(0, keep=spec.model_version)

    def _hold(self, spec: ModelSpec) -> None:
        started, device = time.monotonic(), devices.choose_device(self._settings.device)
        with devices.answered_for():
            model = self._load(spec, self._settings)
            loading.warm_up(model, spec)
        state = ModelState(
            model_version=spec.model_version,
            device=devices.describe(device),
            load_seconds=round(time.monotonic() - started, 3),
            weights_bytes=getattr(model, "weights_bytes", 0),
            process_bytes=devices.memory_bytes(device),
            weights_sha256=getattr(model, "weights_sha256", ""),
        )
        self._known[spec.model_version] = state
        self._held[spec.model_version] = _Resident(
            model, state.weights_bytes, self._most_together(model, spec), lambda: self._evict_all(spec.model_version)
        )
        metrics.MODEL_LOAD.labels(state.model_version).observe(state.load_seconds)
        self.measure()
        log.info("model.loaded", **asdict(state))

    def _most_together(self, model: Model, spec: ModelSpec) -> int:
        if not hasattr(model, "together"):
            return 1
        own: int = getattr(spec.max_batch, devices.kind(devices.choose_device(self._settings.device)))
        return self._settings.worker_max_batch or own

    def _expected_bytes(self, spec: ModelSpec) -> int:
        if spec.model_version in self._known:
            return self._known[spec.model_version].weights_bytes
        return 0 if spec.is_python else sources.weights_size(sources.folder_of(spec, self._settings.models_cache))

    def _make_room(self, needed: int, keep: str = "") -> None:
        """Let models go, the one used longest ago first, until so many bytes more are within the budget."""
        budget = self._settings.model_memory
        while budget and self._bytes() + needed > budget and (others := [n for n in self._held if n != keep]):
            self._evict(others[0])

    def _bytes(self) -> int:
        return sum(resident.weights_bytes for resident in self._held.values())

    def _evict_all(self, but: str = "") -> None:
        for name in [name for name in self._held if name != but]:
            self._evict(name)

    def _evict(self, model_version: str) -> None:
        del self._held[model_version]
        devices.release()
        log.info("model.evicted", model_version=model_version)


@dataclass
class _Resident:
    """A model in memory, and what is done when its device has not enough memory for a job, or fails."""

    model: Model
    weights_bytes: int
    most_together: int
    be_alone: Callable[[], None]

    @property
    def provenance(self) -> Mapping[str, str]:
        return self.model.provenance

    def generate(
        self, params: Params, source: Image.Image | None, on_step: OnStep, *mask: Image.Image
    ) -> Iterator[Image.Image]:
        """See `contract.Model`; raises GpuOutOfMemory when it does not fit even so, DeviceLost."""

        def make() -> Iterator[Image.Image]:
            return self.model.generate(params, source, on_step, *mask)

        images = self._try(params, make)
        if images is None:
            self.be_alone()
            devices.release()
            with getattr(self.model, "frugal", nullcontext)():
                images = self._try(params, make)
        if images is None:
            devices.release()
            raise GpuOutOfMemory(f"{params.width}x{params.height} does not fit into the device's memory.")
        yield from images

    def together(self, jobs: Sequence[Params], on_steps: Sequence[OnStep]) -> list[Image.Image | SafetyBlocked] | None:
        """See `contract.Model`; None when they do not fit into memory together. Raises DeviceLost."""
        return self._try(jobs[0], lambda: self.model.together(jobs, on_steps))  # type: ignore[attr-defined]

    def _try(self, params: Params, make: Callable[[], Iterable[Made]]) -> list[Made] | None:
        """The pictures; None when memory did not suffice."""
        try:
            with devices.answered_for():
                return list(make())
        except Exception as error:
            if devices.is_out_of_memory(error):
                log.warning("model.out_of_memory", model_version=params.model_version, width=params.width)
                return None
            raise
