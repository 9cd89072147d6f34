"""A job's record: what it holds, its phases, and how it is written in Redis."""

import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.params import Params


class Status(StrEnum):
    """What the simplest client has to know."""

    PENDING = "PENDING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"


class Phase(StrEnum):
    """Where the job is on its way."""

    AWAITING_UPLOAD = "AWAITING_UPLOAD"
    QUEUED = "QUEUED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    UPLOADING = "UPLOADING"
    DONE = "DONE"

    @property
    def is_terminal(self) -> bool:
        return self is Phase.DONE


TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.AWAITING_UPLOAD: frozenset({Phase.QUEUED, Phase.DONE}),
    Phase.QUEUED: frozenset({Phase.STARTING, Phase.DONE}),
    Phase.STARTING: frozenset({Phase.RUNNING, Phase.QUEUED, Phase.DONE}),
    Phase.RUNNING: frozenset({Phase.UPLOADING, Phase.QUEUED, Phase.DONE}),
    Phase.UPLOADING: frozenset({Phase.QUEUED, Phase.DONE}),
    Phase.DONE: frozenset(),
}


@dataclass(frozen=True)
class Job:
    """A job's record. Times are seconds since 1970 by Redis' clock, None for what has not happened."""

    task_id: str
    params: Params
    queue: str
    phase: Phase = Phase.QUEUED
    status: Status = Status.PENDING
    version: int = 0
    attempt: int = 0
    max_attempts: int = 3
    attempts: list[dict[str, Any]] = field(default_factory=list)
    step: int | None = None
    steps: int | None = None
    created_at: float | None = None
    queued_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    expires_at: float | None = None
    deadline_at: float | None = None
    upload_expires_at: float | None = None
    deadline_seconds: float = 86_400
    upload_seconds: float | None = None
    worker_version: str | None = None
    images: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, int] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    safety: dict[str, Any] | None = None
    client_ref: str | None = None
    caller: str = "anonymous"
    rerun_of: str | None = None
    traceparent: str | None = None
    cancel: bool = False
    webhook_url: str | None = field(default=None, repr=False)
    webhook_events: list[str] = field(default_factory=list)
    deliveries: list[dict[str, Any]] = field(default_factory=list)
    # A newer version wrote more of it than this one knows.
    is_newer: bool = False

    @property
    def trace_id(self) -> str | None:
        """The trace of the request that made it, which its worker and its webhook continue."""
        return self.traceparent.split("-")[1] if self.traceparent else None

    def message(self) -> dict[str, Any]:
        """What travels through the broker: enough to make a lost record again."""
        # Without what equals the defaults: a worker of the version before knows no field that was added since.
        blank = Job(task_id="", params=self.params, queue="")
        own = {name: getattr(self, name) for name in _OWN if getattr(self, name) != getattr(blank, name)}
        return own | self.params.model_dump(exclude_defaults=True)

    @classmethod
    def from_message(cls, message: dict[str, Any], deadline_at: float | None = None) -> "Job":
        """The queued job that `message()` described, and the deadline that it had."""
        own = {key: message[key] for key in _OWN if key in message} | {"deadline_at": deadline_at}
        params = Params.model_validate({k: v for k, v in message.items() if k not in own})
        return cls(params=params, **_Own.model_validate(own).model_dump(exclude_unset=True))


class _Own(BaseModel):
    """What of a message is the job's own; the rest are its parameters. Who writes messages may be a stranger.

    A default says here only that the field may be left out: which it is then, Job says.
    """

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    task_id: str = Field(min_length=1, max_length=100)
    queue: str
    deadline_seconds: float = Field(0, ge=0, le=1e9)
    deadline_at: float | None = Field(None, ge=0, le=1e12)
    max_attempts: int = Field(0, ge=1, le=100)
    client_ref: str | None = None
    caller: str = ""
    rerun_of: str | None = None
    traceparent: str | None = Field(None, pattern="^[0-9a-f]+(-[0-9a-f]+){3}$")
    webhook_url: str | None = None
    webhook_events: list[str] = []


_OWN = _Own.model_fields.keys() - {"deadline_at"}
_TIMES = {
    "created_at", "queued_at", "started_at", "finished_at", "expires_at", "deadline_at", "upload_expires_at",
    "deadline_seconds", "upload_seconds",
}  # fmt: skip
_COUNTS = {"version", "attempt", "max_attempts", "step", "steps"}
_DOCUMENTS = {"attempts", "images", "metrics", "error", "safety", "webhook_events", "deliveries"}
_TEXTS = {"queue", "worker_version", "client_ref", "caller", "rerun_of", "traceparent", "webhook_url"}


def from_record(task_id: str, record: dict[str, str], *, to_run: bool = False) -> Job:
    """Raises ValidationError for a job `to_run` of which a newer version wrote what this one does not know."""
    is_newer = False
    try:
        params = Params.model_validate_json(record["params"])
    except ValidationError:
        if to_run:
            raise
        params, is_newer = _known_of(record["params"]), True
    values: dict[str, Any] = {name: record[name] for name in _TEXTS & record.keys()}
    values |= {name: float(record[name]) for name in _TIMES & record.keys()}
    values |= {name: int(record[name]) for name in _COUNTS & record.keys()}
    values |= {name: json.loads(record[name]) for name in _DOCUMENTS & record.keys()}
    stored = values.pop("images", [])
    return Job(
        task_id=task_id,
        params=params,
        phase=Phase(record["phase"]),
        status=Status(record["status"]),
        cancel="cancel" in record,
        is_newer=is_newer,
        images=[{**_image(task_id, params, index), **image} for index, image in enumerate(stored)],
        **values,
    )


def _known_of(text: str) -> Params:
    """What this version knows of what a newer one wrote: to be told, and not to be run."""
    told = json.loads(text)
    return Params.model_construct(**{name: told[name] for name in Params.model_fields if name in told})


def _image(task_id: str, params: Params, index: int) -> dict[str, Any]:
    """What need not be kept of a picture."""
    return {"index": index, "seed": params.seed + index, "name": output_name(task_id, index)}


def output_name(task_id: str, index: int) -> str:
    """`output/{task_id}.png`, `output/{task_id}-1.png`, …"""
    return f"output/{task_id}.png" if index == 0 else f"output/{task_id}-{index}.png"


def compact(value: Any) -> str:
    """JSON as a record keeps it: very many are kept."""
    return json.dumps(value, separators=(",", ":"))


def to_record(job: Job) -> dict[str, str | int | float]:
    record: dict[str, str | int | float | None] = {
        "params": job.params.model_dump_json(exclude_defaults=True),
        "queue": job.queue,
        "model_version": job.params.model_version,
        "priority": None if job.params.priority == "normal" else job.params.priority,
        "phase": job.phase,
        "status": job.status,
        "attempt": job.attempt,
        "max_attempts": job.max_attempts,
        "deadline_seconds": job.deadline_seconds,
        "deadline_at": job.deadline_at,
        "upload_seconds": job.upload_seconds,
        "client_ref": job.client_ref,
        "caller": job.caller,
        "rerun_of": job.rerun_of,
        "traceparent": job.traceparent,
        "webhook_url": job.webhook_url,
        "webhook_events": compact(job.webhook_events) if job.webhook_url else None,
    }
    return {name: value for name, value in record.items() if value is not None}
