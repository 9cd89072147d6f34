"""One job, from the claim to the end: claim → input → model → storage → finish. Plain Python, no Celery, no Flask."""

import json
import math
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any, Protocol

import structlog
from PIL import Image

from app import metrics, tracing
from app.errors import (
    AttemptsExhausted,
    Canceled,
    ClaimLost,
    DeadlineExceeded,
    DeviceLost,
    InputInvalid,
    Internal,
    JobError,
    ModelLoadFailed,
    ObjectExists,
    StorageFailed,
    StorageUnavailable,
)
from app.lease import Lease
from app.line import Line
from app.patience import PatientStorage
from app.pictures import Picture, decode, decode_mask, encode, reread
from app.previews import Look, Previews, Window
from app.record import Job, Phase
from app.schemas import Params
from app.services import Services

log = structlog.get_logger("darkroom.generate")


class OnStep(Protocol):
    """What a model calls after each step; `look` gives the picture so far, for whoever wants to see it."""

    def __call__(self, step: int, steps: int, look: Look | None = None) -> None: ...


class Model(Protocol):
    """A loaded model. `provenance` is written into each picture.

    One that has `checks_safety` set raises SafetyBlocked for pictures that its checker flags.
    """

    @property
    def provenance(self) -> Mapping[str, str]: ...

    def generate(
        self, params: Params, source: Image.Image | None, on_step: OnStep, *mask: Image.Image
    ) -> Iterator[Image.Image]:
        """`params.num_images` pictures, from seed, seed + 1, …; calls `on_step` after each step.

        A mask comes only to models that can inpaint: grey, white where the source is painted anew.
        """


class Runner:
    """Runs jobs with the models of this process, under this worker's name."""

    def __init__(self, services: Services, models: Mapping[str, Model], line: Line, name: str) -> None:
        self._services = services
        self._models = models
        self._line = line
        self._name = name
        self._storage: PatientStorage

    def run(self, message: dict[str, Any]) -> dict[str, Any]:
        """Run the job whose turn this message is; its id and the verdict. Raises JobError when it FAILED."""
        own = Job.from_message(message)
        task_id, verdict = own.task_id, ""
        for task_id in self._line.turns(own):
            verdict = self._turn(task_id, own)
            if verdict not in _NOT_OURS:
                break
        return {"task_id": task_id, "verdict": verdict}

    def _turn(self, task_id: str, own: Job) -> str:
        token = secrets.token_hex(8)
        with structlog.contextvars.bound_contextvars(task_id=task_id):
            verdict, job = self._claim(task_id, own, token)
            if job is None:
                self._close(task_id, verdict)
            else:
                with tracing.continued(job.traceparent) if task_id != own.task_id else nullcontext():
                    verdict = self._attempt(job, token)
            log.info("job.attempt_ended", verdict=verdict)
        return verdict

    @tracing.span("job.claim")
    def _claim(self, task_id: str, own: Job, token: str) -> tuple[str, Job | None]:
        """The verdict, and the job when it is ours now. A record that is lost is made again from its message."""
        jobs, limit = self._services.jobs, self._services.settings.max_attempts
        claim = jobs.claim(task_id, token, self._name, limit)
        if claim.verdict == "missing" and task_id == own.task_id:
            log.warning("job.record_made_again", task_id=task_id)
            jobs.create(own)
            claim = jobs.claim(task_id, token, self._name, limit)
        return claim.verdict, claim.job

    def _close(self, task_id: str, verdict: str) -> None:
        """End a queued job that may not be claimed any more, and raise why. The rest is someone else's to end."""
        error: JobError
        if verdict == "canceled":
            error = Canceled("Canceled by the client.")
        elif verdict == "overdue":
            error = DeadlineExceeded("The deadline passed before a worker was free.")
        elif verdict == "exhausted":
            error = AttemptsExhausted(f"Lost with {self._services.settings.max_attempts} workers; not tried again.")
        else:
            return
        # Its message may have come twice, and the other worker been first.
        with suppress(ClaimLost):
            self._services.jobs.fail(task_id, error, quarantine=verdict == "exhausted")
            raise error

    def _attempt(self, job: Job, token: str) -> str:
        """Do the work under a lease; whatever ends it is on the record before it goes on to Celery."""
        model = job.params.model_version
        metrics.ATTEMPTS.labels(model).inc()
        metrics.QUEUE_WAIT.labels(model).observe((job.started_at or 0) - (job.queued_at or 0))
        try:
            with tracing.span("job.attempt", task_id=job.task_id, model_version=model, attempt=job.attempt):
                self._work_under_lease(job, token)
            return "succeeded"
        except ClaimLost:
            metrics.CLAIMS_LOST.inc()
            return "claim_lost"

    def _work_under_lease(self, job: Job, token: str) -> None:
        jobs, started = self._services.jobs, time.monotonic()
        try:
            with Lease(jobs, job.task_id, token, self._services.settings.lease) as lease:
                left = partial(self._time_left, job, started)
                self._storage = PatientStorage(self._services.storage, lease, left)
                self._work(job, lease)
        except (ClaimLost, DeviceLost):
            raise
        except SystemExit as stop:
            if not _by_signal(stop):
                raise self._fail(job, token, Internal("The model tried to end its worker.")) from stop
            # SIGTERM's way into the child. Celery must see it, to put the message back.
            if time.monotonic() - started < self._services.settings.time_limit - 1:
                with suppress(ClaimLost):
                    jobs.release(job.task_id, token)
            # Else the time limit sent it: the lease ends by itself, and the attempt counts.
            raise
        except JobError as error:
            self._fail(job, token, error)
            raise
        except StorageUnavailable as error:
            if self._deadline_in(job) > AT_LAST:
                # The time of one worker is over, not yet the job's.
                jobs.release(job.task_id, token)
                raise ClaimLost(f"{job.task_id}: released") from error
            raise self._fail(job, token, StorageFailed(str(error))) from error
        except (Exception, MemoryError) as error:
            log.exception("job.failed_unexpectedly", task_id=job.task_id)
            raise self._fail(job, token, Internal("The worker met a fault of its own; its log knows more.")) from error

    def _deadline_in(self, job: Job) -> float:
        return (job.deadline_at or math.inf) - self._services.jobs.now()

    def _time_left(self, job: Job, started: float) -> float:
        """Seconds that this worker may still spend on the job, which began at that monotonic time."""
        worker = self._services.settings.time_limit - (time.monotonic() - started)
        # A little less than there is: the sweep and the time limit must not come first.
        return min(self._deadline_in(job), worker) - AT_LAST

    def _fail(self, job: Job, token: str, error: JobError) -> JobError:
        self._services.jobs.fail(job.task_id, error, token)
        return error

    def _work(self, job: Job, lease: Lease) -> None:
        clock = _Stopwatch()
        pictures = self._earlier(job)
        if pictures is None:
            # Before the model, which may have to be loaded: what is no picture ends the job at once.
            source, mask = self._source(job), self._mask(job)
            model = self._model(job)
            clock.lap("load_ms")
            lease.advance(Phase.RUNNING)
            pictures = self._generate(model, source, mask, job, lease)
            clock.lap("inference_ms")
        else:
            lease.advance(Phase.RUNNING)
        lease.advance(Phase.UPLOADING)
        images = [self._store(job, index, picture) for index, picture in enumerate(pictures)]
        clock.lap("upload_ms")
        self._succeed(job, lease, images, clock.laps)

    @tracing.span("job.load_model")
    def _model(self, job: Job) -> Model:
        try:
            return self._models[job.params.model_version]
        except KeyError:
            raise ModelLoadFailed(f"This worker does not serve {job.params.model_version}.") from None

    def _source(self, job: Job) -> Image.Image | None:
        """The input picture; None when the job has none."""
        return decode(self._fetched(job.params.input_url, "input picture")) if job.params.input_url else None

    def _mask(self, job: Job) -> Image.Image | None:
        """The mask, in grey; None when the job has none."""
        return decode_mask(self._fetched(job.params.mask_url, "mask")) if job.params.mask_url else None

    @tracing.span("job.fetch_input")
    def _fetched(self, url: str, what: str) -> bytes:
        name, limit = self._services.storage.name_of(url), self._services.settings.upload_max_bytes
        data = self._storage.get(name, limit)
        if data is None:
            raise InputInvalid(f"The {what} is not there.")
        return data

    @tracing.span("job.inference")
    def _generate(
        self, model: Model, source: Image.Image | None, mask: Image.Image | None, job: Job, lease: Lease
    ) -> list[Picture]:
        masks = () if mask is None else (mask,)
        window = Window(Previews(self._services.redis), job.task_id)
        advance = _timed(lease.step, job.params.model_version)

        def on_step(step: int, steps: int, look: Look | None = None) -> None:
            advance(step, steps)
            if look:
                window.offer(look)

        images = list(model.generate(job.params, source, on_step, *masks))
        # After the work: how it was done is part of it.
        provenance = {**model.provenance, "worker_version": self._services.settings.worker_version}
        if len(images) != job.params.num_images:
            raise RuntimeError(f"the model made {len(images)} pictures where {job.params.num_images} were asked for")
        return [encode(image, job.params, index, provenance) for index, image in enumerate(images)]

    def _earlier(self, job: Job) -> list[Picture] | None:
        """What an earlier attempt stored before it was lost, when that is everything: no GPU is needed again."""
        if len(job.attempts) < 2:
            return None
        pictures = [self._stored(job, index) for index in range(job.params.num_images)]
        return None if None in pictures else [picture for picture in pictures if picture]

    def _stored(self, job: Job, index: int) -> Picture | None:
        data = self._storage.get(output_name(job.task_id, index), MAX_OUTPUT_BYTES)
        return reread(data, job.params, index) if data else None

    @tracing.span("job.upload")
    def _store(self, job: Job, index: int, picture: Picture) -> dict[str, Any]:
        """Upload one picture; where an earlier attempt came first, its picture is the result."""
        name = output_name(job.task_id, index)
        try:
            self._storage.put(name, picture.data, "image/png")
        except ObjectExists:
            earlier = self._stored(job, index)
            if earlier is None:
                raise StorageFailed(f"{name} holds something else.") from None
            picture = earlier
        size = {"bytes": len(picture.data), "width": picture.width, "height": picture.height}
        return {"index": index, "seed": picture.seed, "name": name, "sha256": picture.sha256, **size}

    @tracing.span("job.finish")
    def _succeed(self, job: Job, lease: Lease, images: list[dict[str, Any]], laps: dict[str, int]) -> None:
        waited = int(1000 * ((job.started_at or 0) - (job.queued_at or 0)))
        result = {
            "images": json.dumps(images),
            "metrics": json.dumps({"queue_ms": waited, **laps}),
            "worker_version": self._services.settings.worker_version,
        }
        if self._services.catalogue.get(job.params.model_version).safety_checker:
            result["safety"] = json.dumps({"flagged": False, "images": [False] * len(images)})
        self._services.jobs.succeed(job.task_id, lease.token, result)
        self._note(job, laps)

    def _note(self, job: Job, laps: dict[str, int]) -> None:
        model = job.params.model_version
        # The client's own time for its upload is not ours.
        since = job.queued_at if job.upload_seconds else job.created_at
        metrics.JOB.labels(model).observe(self._services.jobs.now() - (since or 0))
        for lap, milliseconds in laps.items():
            metrics.PHASE.labels(model, lap.removesuffix("_ms")).observe(milliseconds / 1000)


MAX_OUTPUT_BYTES = 500_000_000

# Seconds that the last word of a job needs at most.
AT_LAST = 2.0

# Verdicts of a claim after which the turn goes to the next in line.
_NOT_OURS = ("done", "held", "waiting", "missing")


def _by_signal(stop: SystemExit) -> bool:
    """Whether the worker was told to stop: the pool's signal handler exits with a number that nothing else does."""
    return isinstance(stop.code, int) and -256 < stop.code < 0


def _timed(on_step: Callable[[int, int], None], model_version: str) -> Callable[[int, int], None]:
    """The same, and the seconds since the step before are counted."""
    last = time.monotonic()

    def step(step: int, steps: int) -> None:
        nonlocal last
        last, before = time.monotonic(), last
        metrics.STEP.labels(model_version).observe(last - before)
        on_step(step, steps)

    return step


class _Stopwatch:
    """Milliseconds between laps."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self.laps: dict[str, int] = {}

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name] = round(1000 * (now - self._last))
        self._last = now


def output_name(task_id: str, index: int) -> str:
    """`output/{task_id}.png`, `output/{task_id}-1.png`, …"""
    return f"output/{task_id}.png" if index == 0 else f"output/{task_id}-{index}.png"
