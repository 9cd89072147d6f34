"""The claim of one worker on one job, held while the job runs."""

import threading
from typing import Self

import structlog
from opentelemetry.instrumentation.utils import suppress_instrumentation

from app.errors import Canceled, ClaimLost, StoreUnavailable
from app.jobs import JobStore
from app.record import Phase

log = structlog.get_logger("darkroom.lease")


class Lease:
    """A claim, renewed from a thread three times in a lease, and by each step.

    The first refusal means that someone else has the job or that it is over; the work stops at its next step.
    """

    def __init__(self, jobs: JobStore, task_id: str, token: str, seconds: float) -> None:
        self._jobs = jobs
        self._pause = seconds / 3
        self.task_id = task_id
        self.token = token
        self._over = threading.Event()
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease-{task_id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def step(self, step: int, steps: int) -> None:
        """Tell that `step` of `steps` is done; raises ClaimLost, and Canceled when the client asked to stop."""
        if self._lost.is_set():
            raise ClaimLost(self.task_id)
        # A span for each step would bury those that tell something.
        with suppress_instrumentation():
            self._jobs.renew(self.task_id, self.token, step, steps)

    def check(self) -> None:
        """Hold on without progress; raises ClaimLost, and Canceled when the client asked to stop."""
        if self._lost.is_set():
            raise ClaimLost(self.task_id)
        self._jobs.renew(self.task_id, self.token)

    def advance(self, phase: Phase) -> None:
        """Enter the next phase; raises ClaimLost."""
        self._jobs.advance(self.task_id, self.token, phase)

    def _keep(self) -> None:
        while not self._over.wait(self._pause):
            try:
                self._jobs.renew(self.task_id, self.token)
            except ClaimLost:
                self._lost.set()
                return
            except Canceled:
                # The next step meets it too, and stops the work.
                continue
            except StoreUnavailable:
                log.warning("lease.store_unavailable", task_id=self.task_id)
