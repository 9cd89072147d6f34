"""One job in a worker's hands: what it needs, what comes of it, and how it ends. See generate.py for the whole way."""

import json
import math
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self

import structlog
from PIL import Image

from app import leftovers, metrics, tracing
from app.errors import (
    ClaimLost,
    DeviceLost,
    InputInvalid,
    Internal,
    JobError,
    ObjectExists,
    StorageFailed,
    StorageUnavailable,
    StoreUnavailable,
    TaskExpired,
    TaskNotFound,
)
from app.lease import Lease
from app.patience import PatientStorage
from app.pictures import Picture, decode, decode_mask, reread
from app.previews import Look, Window
from app.record import Job, Phase, compact, output_name
from app.services import Services

log = structlog.get_logger("darkroom.generate")

MAX_OUTPUT_BYTES = 500_000_000

# How an attempt ended: a verdict, or why the job FAILED.
Outcome = str | JobError

# Seconds that the last word of a job needs at most.
AT_LAST = 2.0


class Held:
    """A claimed job and its lease, from `with` to the end; a worker that is told to stop within hands it back."""

    def __init__(self, services: Services, job: Job, token: str) -> None:
        self.job = job
        self.lease = Lease(services.jobs, job.task_id, token, services.settings.lease)
        self.outcome: Outcome = ""
        self._services = services
        self._phase = Phase.STARTING
        self._window = Window(services.previews, job.task_id)
        self._started = self._lap = self._step = time.monotonic()
        self._laps: dict[str, int] = {}
        self._storage = PatientStorage(services.storage, self.lease, self._time_left)

    @property
    def is_tried(self) -> bool:
        """Whether it has cost a worker before."""
        return self.job.attempt > 1

    @property
    def _waited(self) -> float:
        """Seconds from the queue, for the last time, to this claim."""
        return (self.job.started_at or 0) - (self.job.queued_at or 0)

    def trace_wait(self) -> None:
        """Its time in the queue as a step of the trace under way: so long by Redis' clock, ended with the claim."""
        tracing.record("job.wait", time.monotonic() - self._started, self._waited)

    def trace_batch(self, size: int) -> None:
        """The call of the model that made it with the first of a batch, in its own trace too."""
        ago, took = time.monotonic() - self._lap, self._laps["inference_ms"] / 1000
        with tracing.continued(self.job.traceparent):
            tracing.record("job.inference", ago, took, batch_size=size)

    def __enter__(self) -> Self:
        self.lease.__enter__()
        model = self.job.params.model_version
        metrics.ATTEMPTS.labels(model).inc()
        metrics.QUEUE_WAIT.labels(model).observe(self._waited)
        return self

    def __exit__(self, _: object, error: BaseException | None, *rest: object) -> None:
        self.lease.__exit__()
        in_time = time.monotonic() - self._started < self._services.settings.time_limit - 1
        # After the time limit the lease ends by itself, and the attempt counts.
        if by_signal(error) and in_time:
            with suppress(ClaimLost):
                self._services.jobs.release(self.job.task_id, self.lease.token)

    @contextmanager
    def answered_for(self) -> Iterator[None]:
        """Whatever goes wrong within is on the record before it goes on. Raises JobError, ClaimLost, DeviceLost."""
        try:
            yield
        except (ClaimLost, DeviceLost):
            raise
        except SystemExit as stop:
            # SIGTERM's way into the child. Celery must see it, to put the message back.
            if by_signal(stop):
                raise
            raise self._fail(Internal("The model tried to end its worker.")) from stop
        except JobError as error:
            self._fail(error)
            raise
        except StorageUnavailable as error:
            if self._deadline_in() > AT_LAST:
                # The time of one worker is over, not yet the job's.
                self._services.jobs.release(self.job.task_id, self.lease.token)
                raise ClaimLost(f"{self.job.task_id}: released") from error
            raise self._fail(StorageFailed(str(error))) from error
        except Exception:  # noqa: BLE001, whatever a model raises
            log.error("job.failed_unexpectedly", task_id=self.job.task_id, exception=self._traceback())  # noqa: TRY400
            # Said above; with its cause Celery would say it again.
            raise self._fail(Internal("The worker met a fault of its own; its log knows more.")) from None

    def _traceback(self) -> str:
        """Of the exception in hand; a model's own may repeat the prompt."""
        text = traceback.format_exc()
        for prompt in (self.job.params.prompt, self.job.params.negative_prompt):
            # A shorter one tells nothing, and may be part of any word.
            for written in _spellings(prompt) if len(prompt) > 5 else ():
                text = text.replace(written, "[prompt]")
        return text

    def _deadline_in(self) -> float:
        return (self.job.deadline_at or math.inf) - self._services.jobs.now()

    def _time_left(self) -> float:
        """Seconds that this worker may still spend on the job."""
        worker = self._services.settings.time_limit - (time.monotonic() - self._started)
        # A little less than there is: the sweep and the time limit must not come first.
        return min(self._deadline_in(), worker) - AT_LAST

    def _fail(self, error: JobError) -> JobError:
        self._services.jobs.fail(self.job.task_id, error, self.lease.token)
        return error

    def source(self) -> Image.Image | None:
        """The input picture; None when the job has none."""
        url = self.job.params.input_url
        return decode(self._fetched(url, "input picture")) if url else None

    def mask(self) -> Image.Image | None:
        """The mask, in grey; None when the job has none."""
        url = self.job.params.mask_url
        return decode_mask(self._fetched(url, "mask")) if url else None

    @tracing.span("job.fetch_input")
    def _fetched(self, url: str, what: str) -> bytes:
        name, limit = self._services.storage.name_of(url), self._services.settings.upload_max_bytes
        data = self._storage.get(name, limit)
        if data is None:
            raise InputInvalid(f"The {what} is not there.")
        return data

    def enter(self, phase: Phase) -> None:
        """Be in this phase of running; raises ClaimLost, Canceled."""
        if phase is self._phase:
            return
        if phase is Phase.RUNNING:
            self.lease.begin()
        else:
            self.lease.advance(phase)
        self._phase = phase

    def on_step(self, step: int, steps: int, look: Look | None = None) -> None:
        """What its model calls after each step; raises ClaimLost, Canceled."""
        self._step, before = time.monotonic(), self._step
        metrics.STEP.labels(self.job.params.model_version).observe(self._step - before)
        self.lease.step(step, steps)
        if look:
            self._window.offer(look)

    def lap(self, name: str = "") -> None:
        """What was done since the last lap took so long: its milliseconds are told under this name, if it has one."""
        self._lap, before = time.monotonic(), self._lap
        self._step = self._lap
        if name:
            self._laps[name] = round(1000 * (self._lap - before))

    def earlier(self) -> list[Picture] | None:
        """What an earlier attempt stored before it was lost, when that is everything: no GPU is needed again."""
        if len(self.job.attempts) < 2:
            return None
        pictures = [self._stored(index) for index in range(self.job.params.num_images)]
        return None if None in pictures else [picture for picture in pictures if picture]

    def _stored(self, index: int) -> Picture | None:
        data = self._storage.get(output_name(self.job.task_id, index), MAX_OUTPUT_BYTES)
        return reread(data, self.job.params, index) if data else None

    def finish(self, pictures: list[Picture], batch_size: int) -> None:
        """Store the pictures, and only then say SUCCEEDED; raises ClaimLost."""
        self.enter(Phase.UPLOADING)
        try:
            images = [self._store(index, picture) for index, picture in enumerate(pictures)]
            self.lap("upload_ms")
            self._succeed(images, batch_size)
        except ClaimLost:
            self._leave_if_deleted(len(pictures))
            raise

    def _leave_if_deleted(self, pictures: int) -> None:
        """Where the task was deleted while its pictures were stored, nobody else knows of them."""
        names = [output_name(self.job.task_id, index) for index in range(pictures)]
        with suppress(TaskNotFound, StoreUnavailable):
            try:
                self._services.jobs.get(self.job.task_id)
            except TaskExpired:
                leftovers.leave(self._services, names)

    @tracing.span("job.upload")
    def _store(self, index: int, picture: Picture) -> dict[str, Any]:
        """Upload one picture; where an earlier attempt came first, its picture is the result."""
        name = output_name(self.job.task_id, index)
        if index:
            # It may have been ended, and deleted, since the one before.
            self.lease.check()
        try:
            self._storage.put(name, picture.data, "image/png")
        except ObjectExists:
            earlier = self._stored(index)
            if earlier is None:
                raise StorageFailed(f"{name} holds something else.") from None
            picture = earlier
        size = {"bytes": len(picture.data), "width": picture.width, "height": picture.height}
        return {"sha256": picture.sha256, **size}

    @tracing.span("job.finish")
    def _succeed(self, images: list[dict[str, Any]], batch_size: int) -> None:
        job, settings = self.job, self._services.settings
        result = {
            "images": compact(images),
            "metrics": compact({"queue_ms": int(1000 * self._waited), **self._laps, "batch_size": batch_size}),
            "worker_version": settings.worker_version,
        }
        if self._services.catalogue.get(job.params.model_version).safety_checker:
            result["safety"] = compact({"flagged": False, "images": [False] * len(images)})
        self._services.jobs.succeed(job.task_id, self.lease.token, result)
        self._note()

    def _note(self) -> None:
        model = self.job.params.model_version
        # The client's own time for its upload is not ours.
        since = self.job.queued_at if self.job.upload_seconds else self.job.created_at
        metrics.JOB.labels(model).observe(self._services.jobs.now() - (since or 0))
        for lap, milliseconds in self._laps.items():
            metrics.PHASE.labels(model, lap.removesuffix("_ms")).observe(milliseconds / 1000)


def _spellings(prompt: str) -> tuple[str, ...]:
    """As it is, and as Python or JSON write it, which differs by quotes, backslashes, ends of lines and accents."""
    return prompt, *(form(prompt)[1:-1] for form in (repr, ascii, json.dumps))


def by_signal(error: BaseException | None) -> bool:
    """Whether the worker was told to stop: the pool's signal handler exits with a number that nothing else does."""
    return isinstance(error, SystemExit) and isinstance(error.code, int) and -256 < error.code < 0
