"""Accepting a job: record, then publish, then undo on failure. The web tier and the courier share it."""

import hashlib
import math
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import structlog

from app import metrics, tracing, webhooks
from app.callers import Caller
from app.errors import (
    BrokerUnavailable,
    ClaimLost,
    IdempotencyConflict,
    IdempotencyKeyReuse,
    InputInvalid,
    InputMissing,
    Internal,
    InvalidRequest,
    NotReady,
    NoWorker,
    QueueFull,
    QuotaExceeded,
    RequestError,
    StoreUnavailable,
    TaskExpired,
    TaskNotFound,
    UploadExpired,
)
from app.jobs import WRITTEN_WITHIN, Acceptance, Standing, Terms
from app.params import Params, resolve
from app.record import Job, Phase
from app.schemas import GenerateRequest
from app.services import Services
from app.storage import SignedUpload, not_ours
from app.tasks import PUBLISH_TIMEOUT
from app.workers import status_among

log = structlog.get_logger("darkroom.intake")

# Seconds within which a first request with an idempotency key is over: half of them are the broker's at most.
IN_FLIGHT = 8 * PUBLISH_TIMEOUT

TASK_ID_LENGTH = len(str(uuid.UUID(int=0)))


_REFUSALS: dict[str, type[RequestError]] = {
    "queue_full": QueueFull,
    "quota_exceeded": QuotaExceeded,
}


@dataclass(frozen=True)
class Submission:
    """An accepted job; `replayed` when an earlier request with the same idempotency key made it.

    `upload` and `mask_upload` say how the client brings the picture and the mask; None where none is awaited.
    """

    job: Job
    upload: SignedUpload | None
    mask_upload: SignedUpload | None
    replayed: bool = False
    notice: str | None = None
    standing: Standing | None = None


class Intake:
    """The way of a request into the queue."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def submit(self, request: GenerateRequest, caller: Caller, key: str = "") -> Submission:
        """Accept a request; with an input picture still to come it waits for that, else it is queued.

        `key` is the client's idempotency key: the same key and request again are the same job.
        Raises RequestError; then nothing was accepted.
        """
        terms = self._terms(request.model_dump_json(exclude_defaults=True), caller, key)
        return self._accept(terms, lambda: self._prepare(request, caller))

    def rerun(self, task_id: str, caller: Caller, key: str = "") -> Submission:
        """The caller's job once more, as a new one; `key` and what is raised as with `submit`."""
        terms = self._terms(f"rerun:{task_id}", caller, key)
        return self._accept(terms, lambda: self._again(self._services.jobs.get(task_id, caller.name), caller))

    def _accept(self, terms: Terms, prepare: Callable[[], Job]) -> Submission:
        # First of all: what was accepted once stays so, whatever would be said of the request today.
        if earlier := self._services.jobs.earlier(terms):
            return self._replay(earlier, terms)
        job = prepare()
        notice = self._look_for_workers(job)
        # Before there is a record: where nothing can be signed, nothing is accepted.
        uploads = self._uploads(job)
        accepted = self._create(job, terms)
        if accepted.verdict in ("replay", "reused"):
            return self._replay(accepted, terms)
        self._check_verdict(accepted.verdict, job, terms)
        # Without it the record was made by the same request, whose first answer was lost on its way.
        recorded = accepted.job or self._services.jobs.get(job.task_id)
        if job.phase is Phase.QUEUED:
            self._publish_or_undo(recorded)
        _note(job)
        return Submission(recorded, *uploads, notice=notice, standing=accepted.standing)

    def _create(self, job: Job, terms: Terms) -> Acceptance:
        """Write the record; when it is not known whether that was done, see to it that it was not."""
        began = time.monotonic()
        try:
            return self._services.jobs.create(job, terms)
        except StoreUnavailable:
            # A Redis that is slow sees for itself that it is too late; the client is not to wait for it once more.
            if time.monotonic() - began < WRITTEN_WITHIN / 2:
                with suppress(StoreUnavailable):
                    self._services.jobs.discard(job.task_id)
            raise

    def _uploads(self, job: Job) -> tuple[SignedUpload | None, SignedUpload | None]:
        return self._upload(job, input_name(job.task_id)), self._upload(job, mask_name(job.task_id))

    def _upload(self, job: Job, name: str) -> SignedUpload | None:
        if name not in self._awaited(job):
            return None
        # A job that is not on the record yet has all of its time.
        ends = job.upload_expires_at
        seconds = (job.upload_seconds or 0) if ends is None else ends - self._services.jobs.now()
        most = self._services.settings.upload_max_bytes
        return self._services.storage.upload_url(name, max(int(seconds), 1), most)

    def _awaited(self, job: Job) -> list[str]:
        """The names of the objects that the client brings before the job is queued: input picture, mask or both."""
        names = (input_name(job.task_id), mask_name(job.task_id))
        urls = (job.params.input_url, job.params.mask_url)
        waits = job.phase is Phase.AWAITING_UPLOAD
        return [name for name in names if waits and self._services.storage.url_of(name) in urls]

    def start(self, job: Job) -> Job:
        """The client says that the input is there; raises InputMissing when it is not."""
        if job.phase is Phase.AWAITING_UPLOAD and not self.start_if_uploaded(job):
            raise InputMissing("PUT the input picture to the upload_url first, and a mask to the mask_upload_url.")
        return self._services.jobs.get(job.task_id)

    def start_if_uploaded(self, job: Job) -> bool:
        """Queue a job whose inputs have all arrived; False while one has not."""
        for name in self._awaited(job):
            size = self._services.storage.size(name)
            if size is None:
                return False
            if fault := self._fault(size, "mask" if name == mask_name(job.task_id) else "input picture"):
                # Whoever else saw the same picture may have said so already.
                with suppress(ClaimLost):
                    self._services.jobs.fail(job.task_id, InputInvalid(fault), phase=Phase.AWAITING_UPLOAD)
                return True
        if self._services.jobs.queue(job.task_id):
            self._try_to_publish(job)
        return True

    def _fault(self, size: int, what: str) -> str:
        """What no worker need be asked about an upload of that many bytes; empty where there is nothing."""
        limit = self._services.settings.upload_max_bytes
        if not size:
            return f"The {what} is empty."
        return f"The {what} is larger than {limit} bytes." if size > limit else ""

    def give_up_waiting(self, job: Job) -> None:
        """The upload's time is over; raises ClaimLost where it came at the last moment."""
        error = UploadExpired("No input picture came while the upload_url was good.")
        self._services.jobs.fail(job.task_id, error, phase=Phase.AWAITING_UPLOAD)

    def publish_again(self, job: Job) -> None:
        """Send a queued job's message once more; a worker that gets it twice finds it claimed."""
        if job.is_newer:
            # Its couriers' and its workers'.
            return
        if job.phase is Phase.QUEUED:
            if not self._services.catalogue.is_served(job.params.model_version, job.queue):
                error = Internal("Its model is served no more, or from another queue; run the task again.")
                self._services.jobs.fail(job.task_id, error, phase=Phase.QUEUED)
                return
            self._services.publish(job)
        self._services.jobs.confirm(job.task_id)

    def _prepare(self, request: GenerateRequest, caller: Caller) -> Job:
        catalogue, settings = self._services.catalogue, self._services.settings
        spec = catalogue.get(request.model_version) if request.model_version else catalogue.default
        params = resolve(request, spec)
        webhooks.check(request.webhook_url, settings)
        for field, name in self._pictures(params):
            self._check_owner(name, field, caller)
        deadline = request.deadline_seconds or settings.deadline
        if deadline > settings.result_ttl:
            raise _too_late(settings.result_ttl)
        job = self._job(params, spec.queue, caller, deadline, client_ref=request.client_ref, **_webhook(request))
        return self._awaiting(job, request) if request.input_image or request.mask_image else job

    def _again(self, job: Job, caller: Caller) -> Job:
        """A new job like this one, from the same pictures; raises InputMissing when they never came, NotReady."""
        if job.is_newer:
            raise NotReady("A newer version of the service made this task, and asks for more than this one knows.")
        if any(self._services.storage.size(name) is None for _, name in self._pictures(job.params)):
            raise InputMissing("The picture that the task starts from is not there; submit it anew and bring one.")
        same = job.params.model_copy(update={"seed_drawn": False})
        # Where its model is served now.
        queue = self._services.catalogue.get(same.model_version).queue
        deadline = min(job.deadline_seconds, self._services.settings.result_ttl)
        names = {"rerun_of": job.task_id, "client_ref": job.client_ref}
        return self._job(same, queue, caller, deadline, **names, **_webhook(job))

    def _pictures(self, params: Params) -> Iterator[tuple[str, str]]:
        """The objects that the job starts from, each after the field that names it; raises InvalidRequest."""
        for field in ("input_url", "mask_url"):
            if url := getattr(params, field):
                yield field, self._services.storage.name_of(url, field)

    def _check_owner(self, name: str, field: str, caller: Caller) -> None:
        """An object belongs to the task whose id its name begins with; raises InvalidRequest for another caller's."""
        task_id = name.partition("/")[2][:TASK_ID_LENGTH]
        try:
            if not caller.is_operator:
                self._services.jobs.get(task_id, caller.name)
        except (TaskNotFound, TaskExpired):
            raise not_ours(field) from None

    def _look_for_workers(self, job: Job) -> str | None:
        """What to tell a client whose model nobody serves now; raises NoWorker where its entry refuses such jobs."""
        spec = self._services.catalogue.get(job.params.model_version)
        if status_among(self._services.workers.all(), spec.model_version, spec.queue) != "no_worker":
            return None
        if spec.without_worker == "refuse":
            raise NoWorker(f"No worker serves {spec.model_version} now.")
        return f"No worker serves {spec.model_version} now; the job waits for one until its deadline."

    def _job(self, params: Params, queue: str, caller: Caller, deadline: float, **more: Any) -> Job:
        return Job(
            task_id=str(uuid.uuid4()),
            params=params,
            queue=queue,
            max_attempts=self._services.settings.max_attempts,
            deadline_seconds=deadline,
            caller=caller.name,
            traceparent=tracing.traceparent(),
            **more,
        )

    def _awaiting(self, job: Job, request: GenerateRequest) -> Job:
        """The same job, which waits for its input picture, its mask or both."""
        url_of, urls = self._services.storage.url_of, {}
        if request.input_image:
            urls["input_url"] = url_of(input_name(job.task_id))
        if request.mask_image:
            urls["mask_url"] = url_of(mask_name(job.task_id))
        params = job.params.model_copy(update=urls)
        seconds = min(self._services.settings.upload_ttl, job.deadline_seconds)
        return replace(job, params=params, phase=Phase.AWAITING_UPLOAD, upload_seconds=seconds)

    def _terms(self, words: str, caller: Caller, key: str) -> Terms:
        """The client's own words make the digest, so that a seed drawn for it is not part of them."""
        return Terms(
            ticket=f"{caller.name}:{key}" if key else "",
            digest=hashlib.sha256(words.encode()).hexdigest(),
            most_queued=self._services.settings.queue_limit,
            most_open=caller.open_tasks,
        )

    def _check_verdict(self, verdict: str, job: Job, terms: Terms) -> None:
        """Raises what the store's refusal means; a place is free again when a job of this model is done, about."""
        if refusal := _REFUSALS.get(verdict):
            seconds = self._services.jobs.standing(job).typical_seconds(job.params) or 1
            detail = f"At most {terms.most_open} unfinished tasks." if verdict == "quota_exceeded" else ""
            raise refusal(detail, retry_after=min(max(math.ceil(seconds), 1), 60))

    def _replay(self, earlier: Acceptance, terms: Terms) -> Submission:
        if earlier.verdict == "reused":
            raise IdempotencyKeyReuse
        jobs = self._services.jobs
        # Asked before the record: a job that its first request takes back between the two is not there any more.
        in_flight = jobs.unconfirmed(earlier.task_id)
        job = self._accepted_earlier(earlier.task_id, terms)
        # Later on it is unconfirmed for other reasons: it went back into the line, or its web process has died.
        if in_flight and jobs.now() - (job.created_at or 0) < IN_FLIGHT:
            raise IdempotencyConflict
        return Submission(job, *self._uploads(job), replayed=True)

    def _accepted_earlier(self, task_id: str, terms: Terms) -> Job:
        """The job of this key; raises TaskExpired for one that is gone, IdempotencyConflict for one taken back."""
        jobs = self._services.jobs
        try:
            return jobs.get(task_id)
        except TaskNotFound:
            still = jobs.earlier(terms)
            if still and still.task_id == task_id:
                raise TaskExpired("The task of this Idempotency-Key was kept until its `expires_at`.") from None
            # With the job its key was given back: the next try is a first one.
            raise IdempotencyConflict from None

    def _publish_or_undo(self, job: Job) -> None:
        try:
            self._services.publish(job)
        except BrokerUnavailable:
            # A confirmation that came too late is none: but the message may have its worker already.
            if self._services.jobs.discard(job.task_id):
                raise
        self._services.jobs.confirm(job.task_id)

    def _try_to_publish(self, job: Job) -> None:
        """The client has its 202 already: what the broker does not take now, the sweep brings again."""
        try:
            self._services.publish(job)
        except BrokerUnavailable:
            log.warning("job.publish_postponed", task_id=job.task_id)
        else:
            self._services.jobs.confirm(job.task_id)


def _note(job: Job) -> None:
    """The job is accepted; from here on the request's lines tell its id."""
    metrics.JOBS_SUBMITTED.labels(job.params.model_version).inc()
    structlog.contextvars.bind_contextvars(task_id=job.task_id)


def _too_late(seconds: int) -> InvalidRequest:
    """An input picture is kept for no longer, and the job may need it until its deadline."""
    reason = f"must be at most {seconds}, for which pictures are kept here"
    return InvalidRequest(f"deadline_seconds {reason}", [{"field": "deadline_seconds", "reason": reason}])


def _webhook(source: GenerateRequest | Job) -> dict[str, Any]:
    return {"webhook_url": source.webhook_url, "webhook_events": list(source.webhook_events)}


def input_name(task_id: str) -> str:
    """Where the client's input picture goes."""
    return f"input/{task_id}"


def mask_name(task_id: str) -> str:
    """Where the client's mask goes."""
    return f"input/{task_id}-mask"
