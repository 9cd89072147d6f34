"""A turn at a worker: claim → input → model → storage → finish. Plain Python, no Celery, no Flask.

line.py says whose turn it is, held.py what is done for one job, batch.py how several are made at once.
"""

import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, nullcontext, suppress
from typing import Any

import structlog
from PIL import Image

from app import metrics, tracing
from app.batch import Made, make_together
from app.errors import (
    AttemptsExhausted,
    Canceled,
    ClaimLost,
    DeadlineExceeded,
    JobError,
    ModelLoadFailed,
)
from app.held import Held
from app.line import Line
from app.models.contract import Model
from app.pictures import Picture, encode
from app.record import Job, Phase
from app.services import Services

log = structlog.get_logger("darkroom.generate")


class Runner:
    """Runs jobs with the models of this process, under this worker's name."""

    def __init__(self, services: Services, models: Mapping[str, Model], line: Line, name: str) -> None:
        self._services = services
        self._models = models
        self._line = line
        self._name = name

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
        """Do the work under a lease, and that of queued jobs that are made at once with it."""
        with ExitStack() as hands:
            lead = hands.enter_context(Held(self._services, job, token))
            others = [hands.enter_context(other) for other in self._mates(job)]
            # Who has cost a worker before may do so again, and must not take the others with it.
            mates = sorted(others, key=lambda mate: mate.is_tried)
            together = [held for held in (lead, *mates) if not held.is_tried]
            made = make_together(self._models[job.params.model_version], together) if len(together) > 1 else {}
            outcome, *_ = [self._outcome(held, made, own=held is lead) for held in (lead, *mates)]
        if isinstance(outcome, JobError):
            raise outcome
        return outcome

    def _mates(self, lead: Job) -> Iterator[Held]:
        """Jobs that can be made at once with this one, claimed."""
        if lead.attempt > 1 or not lead.params.goes_with(lead.params):
            return
        # A model that cannot be loaded is met again when the job itself asks for it.
        with suppress(JobError, KeyError):
            most = getattr(self._models[lead.params.model_version], "most_together", 1)
            for task_id in self._line.mates(lead, most - 1):
                token = secrets.token_hex(8)
                _, job = self._claim(task_id, lead, token)
                if job:
                    yield Held(self._services, job, token)

    def _outcome(self, held: Held, made: Mapping[str, Made], *, own: bool) -> str | JobError:
        """How it ended, on the record already."""
        with (
            structlog.contextvars.bound_contextvars(task_id=held.job.task_id),
            nullcontext() if own else tracing.continued(held.job.traceparent),
        ):
            try:
                verdict: str | JobError = self._conclude(held, made)
            except JobError as error:
                verdict = error
            if not own:
                log.info("job.attempt_ended", verdict=verdict if isinstance(verdict, str) else "failed")
        return verdict

    def _conclude(self, held: Held, made: Mapping[str, Made]) -> str:
        job, model = held.job, held.job.params.model_version
        try:
            with (
                tracing.span("job.attempt", task_id=job.task_id, model_version=model, attempt=job.attempt),
                held.answered_for(),
            ):
                self._work(held, made)
            return "succeeded"
        except ClaimLost:
            metrics.CLAIMS_LOST.inc()
            return "claim_lost"

    def _work(self, held: Held, made: Mapping[str, Made]) -> None:
        task_id, pictures = held.job.task_id, held.earlier()
        if pictures is None:
            images = self._made(held, made[task_id]) if task_id in made else self._alone(held)
            pictures = self._encoded(held.job, images)
        held.enter(Phase.RUNNING)
        held.finish(pictures, len(made) if task_id in made else 1)

    @staticmethod
    def _made(held: Held, made: Made) -> list[Image.Image]:
        # From here on the time is this job's own again.
        held.lap()
        if isinstance(made, Image.Image):
            return [made]
        raise made

    def _alone(self, held: Held) -> list[Image.Image]:
        # Before the model, which may have to be loaded: what is no picture ends the job at once.
        source, mask = held.source(), held.mask()
        model = self._model(held.job)
        held.lap("load_ms")
        held.enter(Phase.RUNNING)
        with tracing.span("job.inference"):
            images = list(model.generate(held.job.params, source, held.on_step, *(() if mask is None else (mask,))))
        held.lap("inference_ms")
        return images

    @tracing.span("job.load_model")
    def _model(self, job: Job) -> Model:
        try:
            return self._models[job.params.model_version]
        except KeyError:
            raise ModelLoadFailed(f"This worker does not serve {job.params.model_version}.") from None

    def _encoded(self, job: Job, images: list[Image.Image]) -> list[Picture]:
        if len(images) != job.params.num_images:
            raise RuntimeError(f"the model made {len(images)} pictures where {job.params.num_images} were asked for")
        # Asked for after the work: how it was done is part of it.
        model = self._models[job.params.model_version]
        provenance = {**model.provenance, "worker_version": self._services.settings.worker_version}
        return [encode(image, job.params, index, provenance) for index, image in enumerate(images)]


# Verdicts of a claim after which the turn goes to the next in line.
_NOT_OURS = ("done", "held", "waiting", "missing")
