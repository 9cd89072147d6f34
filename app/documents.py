"""From a job's record to the task document that clients read."""

import base64
from datetime import UTC, datetime
from typing import Any

from app.jobs import Job, Phase, Status
from app.schemas import Image, Model, Progress, Submitted, Task, TaskError, TaskUrls
from app.services import Services
from app.storage import SignedUpload

MAX_INLINE_BYTES = 50_000_000


def task_document(job: Job, services: Services, *, inline: bool = False) -> Task:
    """The task document; every URL in it is signed now. `inline` adds the first picture as base64."""
    return Task(**_fields(job, services), image_base64=_inline(job, services) if inline else None)


def submitted_document(job: Job, services: Services, upload: SignedUpload | None) -> Submitted:
    """The task document with the way to bring the input picture, when one is to come."""
    if upload is None:
        return Submitted(**_fields(job, services), upload_url=None)
    return Submitted(
        **_fields(job, services),
        upload_url=upload.url,
        upload_method=upload.method,
        upload_headers=upload.headers,
        upload_expires_at=_time(job.upload_expires_at),
        upload_max_bytes=services.settings.upload_max_bytes,
    )


def model_documents(services: Services) -> list[Model]:
    """Every model of the catalogue, and how it stands now."""
    serving = services.workers.serving()
    return [
        Model(
            model_version=spec.model_version,
            default=spec is services.catalogue.default,
            capabilities=list(spec.capabilities),
            defaults=spec.defaults.model_dump(),
            limits=spec.limits.model_dump(),
            multiple_of=spec.multiple_of,
            licence=spec.licence,
            available=spec.model_version in serving,
            queue_depth=services.jobs.queue_depth(spec.queue),
        )
        for spec in services.catalogue.all()
    ]


def _fields(job: Job, services: Services) -> dict[str, Any]:
    images = [_image(image, services) for image in job.images]
    expires_at = services.clock() + services.settings.signed_url_ttl
    return {
        "task_id": job.task_id,
        "status": job.status,
        "phase": job.phase,
        **{name: _time(getattr(job, name)) for name in _TIMES},
        "queue_position": services.jobs.queue_position(job) if job.phase is Phase.QUEUED else None,
        "progress": _progress(job),
        "attempt": job.attempt,
        "max_attempts": job.max_attempts,
        "attempts": [{**attempt, "started_at": _time(attempt["started_at"])} for attempt in job.attempts],
        "image_url": images[0].url if images else None,
        "image_url_expires_at": _time(expires_at) if images else None,
        "images": images,
        "seed": job.params.seed,
        "model_version": job.params.model_version,
        "worker_version": job.worker_version,
        "params": job.params.model_dump(exclude={"seed", "model_version"}),
        "metrics": job.metrics,
        "error": TaskError(**job.error) if job.error else None,
        "client_ref": job.client_ref,
        "urls": _urls(job, services.settings.base_url if services.settings.public_url else ""),
    }


_TIMES = ("created_at", "queued_at", "started_at", "finished_at", "expires_at", "deadline_at")


def _image(stored: dict[str, Any], services: Services) -> Image:
    url = services.storage.download_url(stored["name"], services.settings.signed_url_ttl)
    return Image(url=url, **{name: value for name, value in stored.items() if name != "name"})


def _progress(job: Job) -> Progress | None:
    if job.step is None or not job.steps:
        return None
    return Progress(value=round(job.step / job.steps, 4), step=job.step, steps=job.steps)


def _urls(job: Job, base: str) -> TaskUrls:
    own = f"{base}/tasks/{job.task_id}"
    start = f"{own}/start" if job.phase is Phase.AWAITING_UPLOAD else None
    return TaskUrls(self=own, image=f"{own}/image", start=start)


def _inline(job: Job, services: Services) -> str | None:
    if job.status is not Status.SUCCEEDED:
        return None
    data = services.storage.get(job.images[0]["name"], MAX_INLINE_BYTES)
    return base64.b64encode(data).decode() if data else None


def _time(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
