"""The claim of one worker on one job, held while the job runs."""

import threading
from typing import Self

import structlog
from opentelemetry.instrumentation.utils import suppress_instrumentation

from app.errors import Canceled, ClaimLost, StoreUnavailable
from app.jobs import JobStore
from app.record import Phase

log = structlog.get_logger("darkroom.lease")

# How soon, in seconds, a model with long steps hears that nobody waits for it any more.
LISTEN = 1.0


class Lease:
    """A claim, kept by a thread that tells the store how far the work is and hears whether it is still wanted.

    The work itself never waits for the store: it says where it is, and is stopped at the step after a refusal.
    """

    def __init__(self, jobs: JobStore, task_id: str, token: str, seconds: float) -> None:
        self._jobs = jobs
        self._pause = min(seconds / 3, LISTEN)
        self.task_id = task_id
        self.token = token
        self._news = threading.Event()
        # Only who holds it tells the store, so that what was said first is told first.
        self._telling = threading.Lock()
        self._begins = False
        self._progress = self._told = (0, 0)
        self._over = False
        self._refusal: ClaimLost | Canceled | None = None
        self._thread = threading.Thread(target=self._keep, name=f"lease-{task_id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._news.set()

    def begin(self) -> None:
        """The model is at work: RUNNING. Raises ClaimLost, and Canceled when the client asked to stop."""
        self._heed()
        self._begins = True
        self._news.set()

    def step(self, step: int, steps: int) -> None:
        """So many steps are done; raises ClaimLost, and Canceled when the client asked to stop."""
        self._heed()
        self._progress = step, steps
        self._news.set()

    def check(self) -> None:
        """Hold on without progress; raises ClaimLost, and Canceled when the client asked to stop."""
        self._heed()
        self._jobs.renew(self.task_id, self.token)

    def advance(self, phase: Phase) -> None:
        """Enter the next phase when all that was said is told; raises ClaimLost, Canceled."""
        with self._telling:
            if self._news.is_set():
                self._tell()
            self._heed()
            self._jobs.advance(self.task_id, self.token, phase)

    def _heed(self) -> None:
        if self._refusal:
            raise self._refusal

    def _keep(self) -> None:
        # No trace of its own for each sign of life: they would bury those that tell something.
        with suppress_instrumentation():
            while not (self._over or isinstance(self._refusal, ClaimLost)):
                self._news.wait(self._pause)
                with self._telling:
                    self._tell()

    def _tell(self) -> None:
        self._news.clear()
        try:
            if not self._over:
                self._renew()
        except (ClaimLost, Canceled) as refusal:
            self._refusal = refusal
        except StoreUnavailable:
            log.warning("lease.store_unavailable", task_id=self.task_id)

    def _renew(self) -> None:
        if self._begins:
            self._jobs.advance(self.task_id, self.token, Phase.RUNNING)
            self._begins = False
        news, self._told = self._progress != self._told, self._progress
        self._jobs.renew(self.task_id, self.token, *(self._told if news else ()))
