"""What no GPU is needed for: the sweep, which finds jobs that nobody looks after and moves them on; and webhooks.

Each index is sorted by time, so that a sweep costs what it moves and not what exists; but for uploads that are awaited:
each is a question to the bucket, and a sweep has so much time for them and no more.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from app import alive, leftovers, metrics, telemetry, tracing
from app.census import Census
from app.errors import (
    BrokerUnavailable,
    ClaimLost,
    DarkroomError,
    DeadlineExceeded,
    StorageUnavailable,
    StoreUnavailable,
    TaskExpired,
    TaskNotFound,
)
from app.intake import Intake
from app.record import Job
from app.services import Services, build
from app.settings import Settings
from app.storage import LocalStorage
from app.webhooks import Dispatcher

log = structlog.get_logger("darkroom.courier")

HOUR = 3600
# Uploads that are read from the store at once.
PAGE = 1000


def main(settings: Settings) -> int:
    """Sweep and deliver webhooks until told to stop; the exit status."""
    telemetry.setup(settings, "courier")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    services = build(settings, "courier")
    metrics.begin("courier")
    metrics.serve(settings, Census(services))
    courier = Courier(services)
    # On threads of its own: no receiver's slowness may hold up the sweep.
    deliveries = threading.Thread(target=Dispatcher(services).run, args=(stop,), name="webhooks")
    deliveries.start()
    log.info("courier.ready")
    alive.beat(settings)
    while not stop.wait(settings.sweep_interval):
        courier.sweep_if_first()
        alive.beat(settings)
    deliveries.join()
    tracing.close()
    metrics.clear(settings)
    return 0


class Courier:
    """Sweeps. Any number may run: a lock lets one sweep at a time, and two at once would do no harm."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._intake = Intake(services)
        # How many messages each queue lacked at the last look.
        self._lacked = dict[str, int]()
        # Uploads that no sweep has had time for yet, and those behind which the next page begins.
        self._unseen = list[str]()
        self._seen_until = 0.0
        self._stale: Iterator[None] = iter(())
        # The queues that take no message now.
        self._closed = set[str]()

    def sweep_if_first(self) -> None:
        """Sweep unless another courier has just done so; an outage is logged, and over by itself."""
        try:
            if self._services.jobs.lock("sweep", self._services.settings.sweep_interval * 0.9):
                self.sweep()
        except DarkroomError as error:
            log.warning("sweep.interrupted", reason=str(error), error_type=type(error).__name__)
        except Exception:
            # A mistake in one part of it must not end what looks after lost jobs.
            log.exception("sweep.failed")

    def sweep(self) -> None:
        """One pass over everything whose time has come."""
        jobs, patience = self._services.jobs, self._services.settings.unconfirmed_after
        self._closed.clear()
        self._each(jobs.due("deadlines"), self._overdue)
        self._each(jobs.due("leases"), self._lost)
        self._each(jobs.due("unconfirmed", older_than=patience), self._publish)
        with self._if_open("all"):
            for queue in self._services.catalogue.queues():
                self._each(self._without_message(queue), self._publish)
            self._apart(self._services.quarantine.collect)
        # Last what asks the bucket, which may be slow.
        self._look_for_uploads()
        self._clear_leftovers()
        self._clear()
        if not self._closed:
            metrics.SWEEP.set_to_current_time()

    def _apart(self, part: Callable[[], None]) -> None:
        """A mistake in this part must not end the sweep; an outage does."""
        try:
            part()
        except DarkroomError:
            raise
        except Exception:
            log.exception("sweep.part_failed")
            # Not the whole sweep: Prometheus is not to hear of one.
            self._closed.add("quarantine")

    def _publish(self, job: Job) -> None:
        """Unless this sweep knows already that its queue is closed: each further try would take its time."""
        if job.queue not in self._closed:
            with self._if_open(job.queue):
                self._intake.publish_again(job)

    @contextmanager
    def _if_open(self, queue: str) -> Iterator[None]:
        """One queue that takes no message now, or a broker that is away, must not hold up what asks nothing of it."""
        try:
            yield
        except BrokerUnavailable as error:
            self._closed.add(queue)
            log.warning("sweep.queue_closed", queue=queue, reason=str(error))

    def _look_for_uploads(self) -> None:
        """From where the last sweep stopped, for as long as the time between two of them.

        Those who have lost their workers must not wait for a bucket that is slow; one that is away is asked once.
        """
        self._unseen = self._unseen or self._next_uploads()
        until = self._time_is_up()
        try:
            while self._unseen and self._services.clock() < until:
                self._each([self._unseen.pop(0)], self._waiting)
        except StorageUnavailable as error:
            log.warning("sweep.uploads_not_seen", reason=str(error))

    def _time_is_up(self) -> float:
        """When what may take long leaves the rest to the next sweep."""
        return self._services.clock() + self._services.settings.sweep_interval

    def _next_uploads(self) -> list[str]:
        page = self._services.jobs.waiting_uploads(self._seen_until, PAGE)
        # One that is not full is the last, after which it begins anew.
        self._seen_until = page[-1][1] if len(page) == PAGE else 0.0
        return [task_id for task_id, _ in page]

    def _each(self, task_ids: list[str], move: Callable[[Job], None]) -> None:
        """Do it for each; one job that cannot be moved must not hold up the others, an outage stops the sweep."""
        for task_id in task_ids:
            alive.beat(self._services.settings)
            try:
                job = self._services.jobs.get(task_id)
                with structlog.contextvars.bound_contextvars(task_id=task_id), tracing.continued(job.traceparent):
                    move(job)
            except (StoreUnavailable, StorageUnavailable):
                raise
            except (ClaimLost, TaskNotFound, TaskExpired):
                self._services.jobs.forget(task_id, self._services.catalogue.queues())
                log.info("sweep.job_moved_meanwhile", task_id=task_id)
            except Exception:
                log.exception("sweep.job_failed", task_id=task_id)

    def _without_message(self, queue: str) -> list[str]:
        """The oldest jobs of a queue, as many as it has fewer messages than jobs: a broker may lose what it confirmed.

        A message on its way into a worker is in neither count, so that only what two looks miss is missing; jobs that
        are still to be published are not. Once they are published again nothing is missing any more, and a job that
        gets two messages is run once.
        """
        jobs, patience = self._services.jobs, self._services.settings.unconfirmed_after
        waiting = jobs.queued_before(queue, patience)
        lacks = jobs.queue_depth(queue) - self._services.waiting(queue) - jobs.to_be_confirmed() if waiting else 0
        missing = max(min(lacks, self._lacked.get(queue, 0)), 0)
        self._lacked[queue] = lacks
        if missing:
            log.warning("sweep.messages_lost", queue=queue, messages=missing)
        return waiting[:missing]

    def _clear_leftovers(self) -> None:
        try:
            self._for_a_while(leftovers.clear(self._services))
        except StorageUnavailable as error:
            log.warning("sweep.leftovers_stay", reason=str(error))

    def _clear(self) -> None:
        """Each hour, what a folder holds for longer than results are kept; a bucket has a rule for that.

        For as long as the time between two sweeps: a slow volume takes minutes for a hundred thousand files.
        """
        storage, kept = self._services.storage, self._services.settings.result_ttl
        if isinstance(storage, LocalStorage) and self._services.jobs.lock("clear", HOUR):
            # Not before the record, which says for how long.
            self._stale = storage.expire(kept + HOUR)
        self._for_a_while(self._stale)

    def _for_a_while(self, steps: Iterator[None]) -> None:
        """What the time between two sweeps is enough for; the rest is the next sweep's."""
        until = self._time_is_up()
        for _ in steps:
            alive.beat(self._services.settings)
            if self._services.clock() >= until:
                return

    def _overdue(self, job: Job) -> None:
        self._services.jobs.fail(job.task_id, DeadlineExceeded("The job was not done by its deadline."))
        metrics.SWEPT.labels("deadline_exceeded").inc()
        log.info("sweep.deadline_exceeded", task_id=job.task_id)

    def _lost(self, job: Job) -> None:
        if self._services.jobs.requeue(job.task_id):
            metrics.SWEPT.labels("lease_expired").inc()
            log.warning("sweep.lease_expired", task_id=job.task_id)
            self._publish(self._services.jobs.get(job.task_id))

    def _waiting(self, job: Job) -> None:
        if not self._intake.start_if_uploaded(job) and (job.upload_expires_at or 0) <= self._services.jobs.now():
            self._intake.give_up_waiting(job)
            metrics.SWEPT.labels("upload_expired").inc()
