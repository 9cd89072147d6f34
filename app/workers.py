"""Which workers are there, and what they serve: each one says so again every few seconds.

Not the truth about jobs (leases are), only what operators and GET /models want to know, and how the child of a
worker tells its parent that the model is loaded.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

from redis import Redis

from app.jobs import ask

TTL = 15
_KEY = "workers"


@dataclass(frozen=True)
class WorkerState:
    """One worker process: its unique name, its queue, and how it stands."""

    name: str
    queue: str
    state: Literal["loading", "ready", "failed"] = "loading"
    models: tuple[str, ...] = ()
    version: str = ""
    reason: str = ""


class WorkerRegistry:
    """Workers on Redis, one hash; a worker that is silent for `TTL` seconds is gone.

    Every method raises StoreUnavailable when Redis does not answer.
    """

    def __init__(self, redis: "Redis") -> None:
        self._redis = redis

    def announce(self, worker: WorkerState) -> None:
        """Say how this worker stands, for the next `TTL` seconds."""
        entry = json.dumps({**asdict(worker), "at": self._now()})
        ask(lambda: self._redis.hset(_KEY, worker.name, entry))

    def get(self, name: str) -> WorkerState | None:
        """What this worker said last; None when it is gone."""
        text = cast("str | None", ask(lambda: self._redis.hget(_KEY, name)))
        return _parse(json.loads(text)) if text else None

    def all(self) -> list[WorkerState]:
        """Every worker that is there; those that are gone are forgotten on the way."""
        texts = cast("dict[str, str]", ask(lambda: self._redis.hgetall(_KEY)))
        entries = {name: json.loads(text) for name, text in texts.items()}
        gone = [name for name, entry in entries.items() if entry["at"] + TTL < self._now()] if entries else []
        if gone:
            ask(lambda: self._redis.hdel(_KEY, *gone))
        return [_parse(entry) for name, entry in entries.items() if name not in gone]

    def serving(self) -> set[str]:
        """Every model_version that some worker is ready to serve now."""
        return {version for worker in self.all() if worker.state == "ready" for version in worker.models}

    def leave(self, name: str) -> None:
        """This worker stops."""
        ask(lambda: self._redis.hdel(_KEY, name))

    def _now(self) -> float:
        return float(ask(self._redis.time)[0])


def _parse(entry: dict[str, Any]) -> WorkerState:
    values = {name: value for name, value in entry.items() if name != "at"}
    return WorkerState(**{**values, "models": tuple(values["models"])})
