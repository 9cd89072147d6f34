"""Which workers are there, and what they serve: each one says so again every few seconds.

Not the truth about jobs (leases are), only what operators and GET /models want to know, and how the child of a
worker tells its parent that the model is loaded.
"""

import json
import math
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, cast

from redis import Redis

from app.jobs import ask

TTL = 15
# Seconds for which a reading of all workers is good enough, or so many times what it took: a large fleet's takes long.
FRESH = 0.2
SPARING = 10
_KEY = "workers"


@dataclass(frozen=True)
class ModelState:
    """One model on one worker. `load_seconds` are those of its last loading, with its first picture.

    `process_bytes` is what the worker's process held after that, of the GPU's memory where it has a GPU.
    """

    model_version: str
    device: str = ""
    load_seconds: float = 0
    weights_bytes: int = 0
    process_bytes: int = 0
    weights_sha256: str = ""
    resident: bool = True


@dataclass(frozen=True)
class WorkerState:
    """One worker process: its unique name, its queue, and how it stands."""

    name: str
    queue: str
    state: Literal["loading", "ready", "failed"] = "loading"
    models: tuple[str, ...] = ()
    version: str = ""
    reason: str = ""
    loads: tuple[ModelState, ...] = ()

    def status_of(self, model_version: str) -> str | None:
        """`ready`, `loading` or `failed`; None for a model that this worker does not serve.

        A worker names its models once it is ready: until then, ask it only about the models of its queue.
        """
        return self.state if self.state != "ready" or model_version in self.models else None


def status_among(workers: list[WorkerState], model_version: str, queue: str) -> str:
    """How a model stands, by the best of its queue's workers: ready, loading, failed, or no_worker."""
    found = {worker.status_of(model_version) for worker in workers if worker.queue == queue}
    return next((status for status in ("ready", "loading", "failed") if status in found), "no_worker")


class WorkerRegistry:
    """Workers on Redis, one hash; a worker that is silent for `TTL` seconds is gone.

    Every method raises StoreUnavailable when Redis does not answer.
    """

    def __init__(self, redis: Redis, clock: Callable[[], float] = time.monotonic) -> None:
        self._redis = redis
        self._clock = clock
        self._read: list[WorkerState] = []
        self._read_at = -math.inf
        self._fresh = FRESH
        self._reading = threading.Lock()

    def announce(self, worker: WorkerState) -> None:
        """Say how this worker stands, for the next `TTL` seconds."""
        self._read_at = -math.inf
        entry = json.dumps({**asdict(worker), "at": self._now()})
        ask(lambda: self._redis.hset(_KEY, worker.name, entry))

    def get(self, name: str) -> WorkerState | None:
        """What this worker said last; None when it has said nothing, or was forgotten because it is gone."""
        text = cast("str | None", ask(lambda: self._redis.hget(_KEY, name)))
        return _parse(json.loads(text)) if text else None

    def all(self) -> list[WorkerState]:
        """Every worker that is there, as of a moment ago: each request asks, and workers speak every few seconds."""
        age = self._clock() - self._read_at
        if age > TTL:
            self._read_anew()
        elif age > self._fresh and self._reading.acquire(blocking=False):
            # One reads, the others take what was read before.
            try:
                self._read_anew()
            finally:
                self._reading.release()
        return list(self._read)

    def _read_anew(self) -> None:
        began = self._clock()
        self._read, self._read_at = self._fetch(), self._clock()
        self._fresh = min(max(FRESH, SPARING * (self._read_at - began)), TTL / 3)

    def _fetch(self) -> list[WorkerState]:
        """Those that are gone are forgotten on the way."""
        texts = cast("dict[str, str]", ask(lambda: self._redis.hgetall(_KEY)))
        entries = {name: json.loads(text) for name, text in texts.items()}
        now = self._now() if entries else 0
        gone = [name for name, entry in entries.items() if entry["at"] + TTL < now]
        if gone:
            ask(lambda: self._redis.hdel(_KEY, *gone))
        return [_parse(entry) for name, entry in entries.items() if name not in gone]

    def ready_on(self, queue: str) -> int:
        """How many workers take jobs from this queue now."""
        return sum(worker.state == "ready" and worker.queue == queue for worker in self.all())

    def leave(self, name: str) -> None:
        """This worker stops."""
        self._read_at = -math.inf
        ask(lambda: self._redis.hdel(_KEY, name))

    def _now(self) -> float:
        return float(ask(self._redis.time)[0])


def _parse(entry: dict[str, Any]) -> WorkerState:
    values = _known(WorkerState, entry)
    loads = tuple(ModelState(**_known(ModelState, load)) for load in values.get("loads", ()))
    return WorkerState(**{**values, "models": tuple(values["models"]), "loads": loads})


def _known(kind: type[Any], entry: dict[str, Any]) -> dict[str, Any]:
    """What this version knows of it: a worker of a newer one may say more."""
    return {field.name: entry[field.name] for field in fields(kind) if field.name in entry}
