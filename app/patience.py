"""The picture store as one job at work sees it: one that is away is asked again for as long as the job has time."""

import time
from collections.abc import Callable
from typing import TypeVar

import structlog

from app import metrics
from app.errors import StorageUnavailable
from app.lease import Lease
from app.storage import Storage

log = structlog.get_logger("darkroom.patience")

# Seconds between two tries: the first, and the most.
PAUSE, LONGEST_PAUSE = 0.5, 8.0

T = TypeVar("T")


class PatientStorage:
    """Reads and writes as `Storage` does. Raises StorageUnavailable only when `left()`, in seconds, is used up.

    While it waits the lease is held: a job that was canceled or given up on waits no longer (Canceled, ClaimLost).
    """

    def __init__(self, storage: Storage, lease: Lease, left: Callable[[], float]) -> None:
        self._storage = storage
        self._lease = lease
        self._left = left

    def put(self, name: str, data: bytes, content_type: str) -> None:
        self._ask(lambda: self._storage.put(name, data, content_type))

    def get(self, name: str, max_bytes: int) -> bytes | None:
        return self._ask(lambda: self._storage.get(name, max_bytes))

    def _ask(self, command: Callable[[], T]) -> T:
        pause = PAUSE
        while True:
            try:
                return command()
            except StorageUnavailable as error:
                if self._left() <= pause:
                    raise
                metrics.STORAGE_RETRIES.inc()
                log.warning("storage.away", task_id=self._lease.task_id, reason=str(error))
            self._lease.check()
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
