"""A turn at a worker: claim → input → model → storage → finish. Plain Python, no Celery, no Flask.

line.py says whose turn it is, held.py what is done for one job, batch.py how several are made at once, endings.py how
jobs end beside the next one.
"""

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from contextvars import copy_context
from functools import partial
from typing import Any, cast

import structlog
from PIL import Image

from app import metrics, tracing
from app.batch import Made, make_together
from app.endings import Endings
from app.errors import (
    AttemptsExhausted,
    Canceled,
    ClaimLost,
    DeadlineExceeded,
    DeviceLost,
    GpuOutOfMemory,
    JobError,
    TaskExpired,
    TaskNotFound,
)
from app.held import Held, Outcome
from app.jobs import Claim
from app.line import Line
from app.models.contract import Model
from app.pictures import Picture, encode
from app.record import Job, Phase
from app.services import Services

log = structlog.get_logger("darkroom.generate")


class Runner:
    """Runs jobs with the models of this process, under this worker's name.

    `turn`: seconds for which the turn of one message goes on with the next jobs in the line, but not once `spent()`:
    this process holds too much. `worn`: memory ran out.
    """

    def __init__(
        self,
        services: Services,
        models: Mapping[str, Model],
        line: Line,
        name: str,
        turn: float = 0,
        spent: Callable[[], bool] = lambda: False,
    ) -> None:
        self._services = services
        self._models = models
        self._line = line
        self._name = name
        self._turn = turn
        self._spent = spent
        self._endings = Endings()
        self._stops = False
        self.worn = False

    def run(self, own: Job) -> dict[str, Any]:
        """Run the job whose turn this message is, and go on with the line behind it for as long as a turn lasts.

        Gives the first job's id and the verdict. Raises JobError when the message's own job has FAILED by then, in
        this turn or an earlier one: another's failure is told by that one's message.
        """
        task_id, first = self._turn_of(own)
        while isinstance(first, Held) and first.outcome == "claim_lost" and self._is_gone(own):
            # With all of Redis' data: from this message its record is made again.
            task_id, first = self._turn_of(own)
        outcome = first.outcome if isinstance(first, Held) else first
        is_own = task_id == own.task_id and outcome != "done"
        error = outcome if is_own else self._own_error(own)
        if isinstance(error, JobError):
            raise error
        return {"task_id": task_id, "verdict": told(outcome)}

    def stop(self) -> None:
        """Begin no further job in this turn: the worker is about to leave."""
        self._stops = True

    def _turn_of(self, own: Job) -> tuple[str, Held | Outcome]:
        """The first job of the turn, which has ended, as all after it; or why there was none."""
        began = time.monotonic()
        with self._endings:
            task_id, first = self._first(own)
            while isinstance(first, Held) and self._goes_on(began) and self._another(own):
                continue
        return task_id, first

    def _is_gone(self, own: Job) -> bool:
        try:
            self._services.jobs.get(own.task_id)
        except TaskNotFound:
            return True
        except TaskExpired:
            # Deleted: of that there is a word left.
            return False
        return False

    def _goes_on(self, began: float) -> bool:
        return not (self._stops or self.worn or self._spent()) and time.monotonic() - began < self._turn

    def _first(self, own: Job) -> tuple[str, Held | Outcome]:
        """The first job in this message's turn that could be had, or what the last one was found to be."""
        task_id, found = "", cast("Held | Outcome", "")
        for task_id in self._line.turns(own):
            found = self._take(task_id, own)
            if found not in _NOT_OURS:
                break
        return task_id, found

    def _another(self, own: Job) -> bool:
        """Whether there was one more in the line. Who loses one to another worker leaves it at that."""
        token, began = secrets.token_hex(8), time.monotonic()
        claim = self._line.claim(own.queue, token, self._name)
        if claim.job:
            # Whose trace it belongs to is known only now.
            with _trace_of(claim.job, own):
                tracing.record("job.claim", 0, time.monotonic() - began)
        return self._serve(claim, token, own) not in _NOT_OURS

    def _take(self, task_id: str, own: Job) -> Held | Outcome:
        token = secrets.token_hex(8)
        return self._serve(self._claim(task_id, own, token), token, own)

    def _serve(self, claim: Claim, token: str, own: Job) -> Held | Outcome:
        """The job, its pictures made and its end under way; or why it is not to be had."""
        with structlog.contextvars.bound_contextvars(task_id=claim.task_id):
            if claim.job:
                with _trace_of(claim.job, own):
                    return self._attempt(claim.job, token, own)
            outcome = self._closed(claim.task_id, claim.verdict)
            if outcome != "empty":
                log.info("job.attempt_ended", verdict=told(outcome))
        return outcome

    @tracing.span("job.claim")
    def _claim(self, task_id: str, own: Job, token: str) -> Claim:
        """The claim on this job. A record that is lost is made again from its message."""
        jobs = self._services.jobs
        claim = jobs.claim(task_id, token, self._name)
        if claim.verdict == "missing" and task_id == own.task_id:
            if jobs.create(own).verdict == "created":
                log.warning("job.record_made_again", task_id=task_id)
            claim = jobs.claim(task_id, token, self._name)
        return claim

    def _closed(self, task_id: str, verdict: str) -> Outcome:
        """End a queued job that may not be claimed any more, and say why. The rest is someone else's to end."""
        error: JobError
        if verdict == "canceled":
            error = Canceled()
        elif verdict == "overdue":
            error = DeadlineExceeded("The deadline passed before a worker was free.")
        elif verdict == "exhausted":
            error = AttemptsExhausted("Lost with as many workers as `max_attempts` allows; not tried again.")
        else:
            return verdict
        # Its message may have come twice, and the other worker been first.
        with suppress(ClaimLost):
            self._services.jobs.fail(task_id, error, quarantine=verdict == "exhausted")
            return error
        return verdict

    def _own_error(self, own: Job) -> Outcome:
        """Why the message's own job FAILED in an earlier message's turn; empty where it did not."""
        with suppress(TaskNotFound, TaskExpired):
            if document := self._services.jobs.get(own.task_id).error:
                return JobError.of(document)
        return ""

    def _attempt(self, job: Job, token: str, own: Job) -> Held:
        """Do the work under a lease, and that of queued jobs that are made at once with it."""
        with ExitStack() as hands:
            lead = hands.enter_context(Held(self._services, job, token))
            # From here on there is more to wait for than to do, be it a model that is loaded or one that works.
            self._endings.begin()
            others = [hands.enter_context(other) for other in self._mates(job)]
            jobs = [lead, *sorted(others, key=lambda mate: mate.is_tried)]
            together = [held for held in jobs if not held.is_tried]
            made = make_together(self._models[job.params.model_version], together) if len(together) > 1 else {}
            ends = self._ends(jobs, made, own)
            self.worn = self.worn or any(isinstance(held.outcome, GpuOutOfMemory) for held in jobs)
            self._endings.over(jobs, ends, hands)
        return lead

    def _ends(self, jobs: list[Held], made: Mapping[str, Made], own: Job) -> list[Callable[[], None]]:
        """Make what is not made yet; gives what is left to do."""
        ends: list[Callable[[], None]] = []
        for held in jobs:
            if held.is_tried:
                # Who has cost a worker before may do so again, and must not take the others with it.
                self._endings.wait()
                while ends:
                    ends.pop(0)()
            ends.append(self._made(held, made, own))
        return ends

    def _mates(self, lead: Job) -> Iterator[Held]:
        """Jobs that can be made at once with this one, claimed."""
        if lead.attempt > 1 or not lead.params.goes_with(lead.params):
            return
        for task_id in self._line.mates(lead, self._most_together(lead) - 1):
            token = secrets.token_hex(8)
            if job := self._claim(task_id, lead, token).job:
                yield Held(self._services, job, token)

    def _most_together(self, lead: Job) -> int:
        try:
            return getattr(self._models[lead.params.model_version], "most_together", 1)
        except DeviceLost:
            raise
        except Exception:  # noqa: BLE001, a model that cannot be loaded is met again when the job itself asks for it
            return 1

    def _made(self, held: Held, made: Mapping[str, Made], own: Job) -> Callable[[], None]:
        """Make its pictures, if they are not made yet; gives what is left to do."""
        job = held.job
        with _trace_of(job, own):
            held.trace_wait()
            tell = partial(copy_context().run, _tell, held)
        with (
            structlog.contextvars.bound_contextvars(task_id=job.task_id),
            _trace_of(job, own),
            _settled(held),
            tracing.span("job.attempt", task_id=job.task_id, model_version=job.params.model_version,
                         attempt=job.attempt),
            held.answered_for(),
        ):  # fmt: skip
            batch_size = len(made) if job.task_id in made else 1
            return partial(copy_context().run, _end, held, self._pictures(held, made), batch_size)
        return tell

    def _pictures(self, held: Held, made: Mapping[str, Made]) -> Callable[[], list[Picture]]:
        """Its pictures, which may have to be encoded still."""
        job = held.job
        if earlier := held.earlier():
            return lambda: earlier
        images = _of_batch(held, made[job.task_id]) if job.task_id in made else self._alone(held)
        if len(images) != job.params.num_images:
            raise RuntimeError(f"the model made {len(images)} pictures where {job.params.num_images} were asked for")
        # Asked for after the work, and before the next: how it was done is part of it.
        model = self._models[job.params.model_version]
        provenance = {**model.provenance, "worker_version": self._services.settings.worker_version}
        return lambda: [encode(image, job.params, index, provenance) for index, image in enumerate(images)]

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
        return self._models[job.params.model_version]


def _of_batch(held: Held, made: Made) -> list[Image.Image]:
    # From here on the time is this job's own again.
    held.lap()
    if isinstance(made, Image.Image):
        return [made]
    raise made


def _end(held: Held, pictures: Callable[[], list[Picture]], batch_size: int) -> None:
    """Encode, store, finish."""
    held.lap()
    with _settled(held), held.answered_for():
        encoded = pictures()
        held.enter(Phase.RUNNING)
        held.finish(encoded, batch_size)
        held.outcome = "succeeded"
    _tell(held)


def _tell(held: Held) -> None:
    log.info("job.attempt_ended", task_id=held.job.task_id, verdict=told(held.outcome))


@contextmanager
def _settled(held: Held) -> Iterator[None]:
    """How it ended, if it did within, is on the record already; here it is kept for the turn."""
    try:
        yield
    except ClaimLost:
        metrics.CLAIMS_LOST.inc()
        held.outcome = "claim_lost"
    except JobError as error:
        held.outcome = error


def _trace_of(job: Job, own: Job) -> AbstractContextManager[None]:
    """The job's trace, which is under way already where the message is its own."""
    return nullcontext() if job.task_id == own.task_id else tracing.continued(job.traceparent)


def told(outcome: Outcome) -> str:
    """The outcome as one word."""
    return outcome if isinstance(outcome, str) else "failed"


# Verdicts of a claim after which the turn goes to the next in line.
_NOT_OURS = ("done", "held", "waiting", "missing", "empty")
