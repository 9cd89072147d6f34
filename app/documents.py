"""From a job's record to the task document that clients read."""

import base64
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from app.egress import without_query
from app.errors import InputInvalid
from app.jobs import Standing
from app.models import ModelSpec
from app.record import Job, Phase, Status
from app.schemas import (
    MAX_INLINE_BYTES,
    Delivery,
    Image,
    Model,
    ModelOnWorker,
    Progress,
    Safety,
    Submitted,
    Task,
    TaskError,
    TaskUrls,
    Webhook,
)
from app.services import Services
from app.storage import SignedUpload
from app.workers import WorkerState, status_among


def task_document(job: Job, services: Services, *, inline: bool = False) -> Task:
    """The task document; every URL in it is signed now. `inline` adds the first picture as base64."""
    return Task(**_fields(job, services), image_base64=_inline(job, services) if inline else None)


def submitted_document(
    job: Job,
    services: Services,
    upload: SignedUpload | None,
    mask_upload: SignedUpload | None = None,
    notice: str | None = None,
    standing: Standing | None = None,
) -> Submitted:
    """The task document with the ways to bring the input picture and the mask, when they are to come."""
    awaited = upload or mask_upload
    return Submitted(
        **_fields(job, services, standing),
        notice=notice,
        upload_url=upload.url if upload else None,
        mask_upload_url=mask_upload.url if mask_upload else None,
        upload_method=awaited.method if awaited else None,
        upload_headers=awaited.headers if awaited else None,
        upload_expires_at=as_time(job.upload_expires_at) if awaited else None,
        upload_max_bytes=services.settings.upload_max_bytes if awaited else None,
    )


def retry_after(document: Task) -> dict[str, str]:
    """When to look again, as a header: half of what is left, between one second and half a minute."""
    if document.status != "PENDING":
        return {}
    return {"Retry_After": str(min(max(round((document.eta_seconds or 0) / 2), 1), 30))}


def model_documents(services: Services) -> list[Model]:
    """Every model of the catalogue, and how it stands now."""
    workers, steps = services.workers.all(), services.jobs.step_seconds()
    return [_model(spec, workers, services, steps.get(spec.model_version)) for spec in services.catalogue.all()]


def _model(spec: ModelSpec, workers: list[WorkerState], services: Services, step_seconds: float | None) -> Model:
    status = status_among(workers, spec.model_version, spec.queue)
    return Model(
        model_version=spec.model_version,
        default=spec is services.catalogue.default,
        capabilities=list(spec.capabilities),
        defaults=spec.defaults.model_dump(),
        limits=spec.limits.model_dump(),
        multiple_of=spec.multiple_of,
        schedulers=list(spec.schedulers),
        negative_prompt=spec.negative_prompt,
        safety_checker=spec.safety_checker,
        licence=spec.licence,
        available=status == "ready",
        status=status,
        without_worker=spec.without_worker,
        on_workers=[
            ModelOnWorker(
                worker_version=worker.version,
                **{name: value for name, value in asdict(load).items() if name != "model_version"},
            )
            for worker in workers
            for load in worker.loads
            if load.model_version == spec.model_version and worker.state == "ready"
        ],
        queue_depth=services.jobs.queue_depth(spec.queue),
        typical_seconds=None if step_seconds is None else round(step_seconds * spec.defaults.num_inference_steps, 1),
    )


def _fields(job: Job, services: Services, standing: Standing | None = None) -> dict[str, Any]:
    if standing is None:
        # Nothing more is to be known of a job that is done.
        standing = Standing() if job.phase.is_terminal else services.jobs.standing(job)
    images = [_image(image, services) for image in job.images]
    expires_at = services.clock() + services.settings.signed_url_ttl
    return {
        "task_id": job.task_id,
        "status": job.status,
        "phase": job.phase,
        **{name: as_time(getattr(job, name)) for name in _TIMES},
        "queue_position": standing.position if job.phase is Phase.QUEUED else None,
        "eta_seconds": _eta(job, standing, services),
        "progress": _progress(job),
        "attempt": job.attempt,
        "max_attempts": job.max_attempts,
        "attempts": [{**attempt, "started_at": as_time(attempt["started_at"])} for attempt in job.attempts],
        "image_url": images[0].url if images else None,
        "image_url_expires_at": as_time(expires_at) if images else None,
        "images": images,
        "seed": job.params.seed,
        "model_version": job.params.model_version,
        "worker_version": job.worker_version,
        "params": job.params.model_dump(exclude={"seed", "seed_drawn", "model_version"}),
        "metrics": job.metrics,
        "error": TaskError(**job.error) if job.error else None,
        "trace_id": job.trace_id,
        "safety": Safety(**job.safety) if job.safety else None,
        "rerun_of": job.rerun_of,
        "client_ref": job.client_ref,
        "webhook": _webhook(job),
        "urls": _urls(job, services.settings.base_url if services.settings.public_url else ""),
    }


_TIMES = ("created_at", "queued_at", "started_at", "finished_at", "expires_at", "deadline_at")


def _image(stored: dict[str, Any], services: Services) -> Image:
    url = services.storage.download_url(stored["name"], services.settings.signed_url_ttl)
    facts = {name: value for name, value in stored.items() if name != "name"}
    return Image(url=url, input_url=services.storage.url_of(stored["name"]), **facts)


def _webhook(job: Job) -> Webhook | None:
    if job.webhook_url is None:
        return None
    return Webhook(
        url=without_query(job.webhook_url),
        events=job.webhook_events,
        deliveries=[Delivery(**{**delivery, "at": as_time(delivery["at"])}) for delivery in job.deliveries],
    )


def _progress(job: Job) -> Progress | None:
    if job.step is None or not job.steps:
        return None
    return Progress(value=round(job.step / job.steps, 4), step=job.step, steps=job.steps)


def _eta(job: Job, standing: Standing, services: Services) -> float | None:
    """Seconds until the job is done; None when nothing is known yet."""
    typical, position = standing.typical_seconds(job.params), standing.position
    if typical is None or job.phase in (Phase.AWAITING_UPLOAD, Phase.DONE):
        return None
    if position is None:
        return round(typical * (1 - job.step / job.steps if job.step and job.steps else 1), 1)
    workers = services.workers.ready_on(job.queue)
    # Those in front go through all workers; the ones at work now are half done on average.
    return round(typical * (position / workers + 1.5), 1) if workers else None


def _urls(job: Job, base: str) -> TaskUrls:
    own = f"{base}/tasks/{job.task_id}"
    start = f"{own}/start" if job.phase is Phase.AWAITING_UPLOAD else None
    return TaskUrls(self=own, cancel=f"{own}/cancel", events=f"{own}/events", image=f"{own}/image", start=start)


def _inline(job: Job, services: Services) -> str | None:
    if job.status is not Status.SUCCEEDED or not job.images:
        return None
    try:
        data = services.storage.get(job.images[0]["name"], MAX_INLINE_BYTES)
    except InputInvalid:
        # Too large for an answer: its URL is there.
        return None
    return base64.b64encode(data).decode() if data else None


def as_time(seconds: float | None) -> str | None:
    """RFC 3339 in UTC."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
