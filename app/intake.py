"""Accepting a job: record, then publish, then undo on failure. The web tier and the courier share it."""

import uuid
from contextlib import suppress

import structlog

from app.errors import BrokerUnavailable, ClaimLost, InputInvalid, InputMissing, UploadExpired
from app.jobs import Job, Phase
from app.schemas import GenerateRequest, Params, resolve
from app.services import Services
from app.storage import SignedUpload, name_in

log = structlog.get_logger("darkroom.intake")


class Intake:
    """The way of a request into the queue."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def submit(self, request: GenerateRequest) -> tuple[Job, SignedUpload | None]:
        """Accept a request; with an input picture still to come it waits for that, else it is queued.

        Raises RequestError; then nothing was accepted.
        """
        job, upload = self._prepare(request)
        self._services.jobs.create(job)
        if job.phase is Phase.QUEUED:
            self._publish_or_undo(job)
        return self._services.jobs.get(job.task_id), upload

    def start(self, job: Job) -> Job:
        """The client says that the input is there; raises InputMissing when it is not."""
        if job.phase is Phase.AWAITING_UPLOAD and not self.start_if_uploaded(job):
            raise InputMissing("PUT the input picture to the upload_url first.")
        return self._services.jobs.get(job.task_id)

    def start_if_uploaded(self, job: Job) -> bool:
        """Queue a job whose input has arrived; False while it has not."""
        stored = self._services.storage.stat(input_name(job.task_id))
        if stored is None:
            return False
        limit = self._services.settings.upload_max_bytes
        if stored.size > limit:
            # Whoever else saw the same picture may have said so already.
            with suppress(ClaimLost):
                self._services.jobs.fail(job.task_id, InputInvalid(f"The input picture is larger than {limit} bytes."))
        elif self._services.jobs.queue(job.task_id):
            self._try_to_publish(job)
        return True

    def give_up_waiting(self, job: Job) -> None:
        """The upload's time is over."""
        self._services.jobs.fail(job.task_id, UploadExpired("No input picture came while the upload_url was good."))

    def publish_again(self, task_id: str) -> None:
        """Send a queued job's message once more; a worker that gets it twice finds it claimed."""
        job = self._services.jobs.get(task_id)
        if job.phase is Phase.QUEUED:
            self._services.publish(job)
        self._services.jobs.confirm(task_id)

    def _prepare(self, request: GenerateRequest) -> tuple[Job, SignedUpload | None]:
        catalogue, settings = self._services.catalogue, self._services.settings
        spec = catalogue.get(request.model_version) if request.model_version else catalogue.default
        params, task_id = resolve(request, spec), str(uuid.uuid4())
        if params.input_url:
            name_in(settings.storage_url, params.input_url)
        upload = self._upload(task_id) if request.input_image else None
        job = Job(
            task_id=task_id,
            params=self._with_input(params, task_id) if upload else params,
            queue=spec.queue,
            phase=Phase.AWAITING_UPLOAD if upload else Phase.QUEUED,
            max_attempts=settings.max_attempts,
            deadline_seconds=request.deadline_seconds or settings.deadline,
            upload_seconds=settings.upload_ttl if upload else None,
            client_ref=request.client_ref,
        )
        return job, upload

    def _upload(self, task_id: str) -> SignedUpload:
        settings = self._services.settings
        return self._services.storage.upload_url(input_name(task_id), settings.upload_ttl, settings.upload_max_bytes)

    def _with_input(self, params: Params, task_id: str) -> Params:
        return params.model_copy(update={"input_url": self._services.storage.url_of(input_name(task_id))})

    def _publish_or_undo(self, job: Job) -> None:
        try:
            self._services.publish(job)
        except BrokerUnavailable:
            self._services.jobs.discard(job.task_id)
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


def input_name(task_id: str) -> str:
    """Where the client's input picture goes."""
    return f"input/{task_id}"
