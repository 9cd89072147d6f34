"""Waiting for a job: one Redis subscription per web process, handed to everyone who waits there."""

import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import structlog
from redis import Redis

from app import metrics
from app.jobs import EVENTS
from app.previews import Previews
from app.record import Job, Phase

log = structlog.get_logger("darkroom.watch")

# Who follows hears something after this long; who waits reads the record anew: an event may have been lost meanwhile,
# on a connection too that has gone silent and that nobody knows to be dead.
PATIENCE = 5.0

# How long the first who waits gives the subscription to begin; an outage must not hold a client up.
LISTEN_SECONDS = 0.5

Inbox = SimpleQueue[dict[str, Any]]


@dataclass(frozen=True)
class Event:
    """What a follower is told: `status` with the job as it is now, `progress` and `preview` with `data`, or `alive`."""

    kind: str
    version: int
    job: Job | None = None
    data: dict[str, Any] | None = None


class Watch:
    """Hands what is told about a job to those who wait for it."""

    def __init__(self, redis: Redis, previews: Previews) -> None:
        self._redis = redis
        self._previews = previews
        self._inboxes: defaultdict[str, set[Inbox]] = defaultdict(set)
        self._lock = threading.Lock()
        self._listener: threading.Thread | None = None
        # Set while Redis tells us: what happens before that is seen only by reading the record.
        self.listening = threading.Event()
        self._closed = threading.Event()

    def wait(
        self, task_id: str, read: Callable[[], Job], seconds: float, is_gone: Callable[[], bool] = lambda: False
    ) -> Job:
        """The job as soon as it is done, or as it is after `seconds`, or a little after who waits `is_gone`."""
        until = time.monotonic() + seconds
        with self._inbox(task_id) as inbox:
            while True:
                job = read()
                left = until - time.monotonic()
                if job.phase.is_terminal or left <= 0 or is_gone():
                    return job
                _hear_of_its_end(inbox, min(left, PATIENCE))

    def follow(self, task_id: str, read: Callable[[], Job], seen: int | None = None) -> Iterator[Event]:
        """The job as it is, then what happens to it, until it is done; `alive` when nothing happens.

        Who was told version `seen` already, and comes again, is not told that once more, unless it was the end.
        """
        with self._inbox(task_id) as inbox:
            job = read()
            version, asked = job.version, -PATIENCE
            told = version == seen and not job.phase.is_terminal
            yield Event("alive", version) if told else Event("status", version, job)
            while not job.phase.is_terminal:
                if time.monotonic() - asked >= PATIENCE:
                    self._previews.ask_for(job.task_id)
                    asked = time.monotonic()
                event = _next(inbox, PATIENCE)
                if event is None or event.get("phase") not in (None, job.phase):
                    before, job = job, read()
                    version, changed = job.version, job.phase is not before.phase
                    yield Event("status", version, job) if changed else Event("alive", version)
                elif "preview" in event:
                    yield Event("preview", version, data={"preview": event["preview"]})
                # A job that was only just claimed is at step 0 of a number that is not known yet.
                elif event.get("steps"):
                    version = max(version, event["version"])
                    yield Event("progress", version, data={"step": event["step"], "steps": event["steps"]})

    def close(self) -> None:
        """Listen no more, from the next event or failure on."""
        self._closed.set()

    @contextmanager
    def _inbox(self, task_id: str) -> Iterator[Inbox]:
        inbox: Inbox = SimpleQueue()
        self._enter(task_id, inbox)
        metrics.WAITING_CLIENTS.inc()
        try:
            yield inbox
        finally:
            metrics.WAITING_CLIENTS.dec()
            self._leave(task_id, inbox)

    def _enter(self, task_id: str, inbox: Inbox) -> None:
        with self._lock:
            self._inboxes[task_id].add(inbox)
            # Started by the first who waits, and so never in a process that forks afterwards.
            if self._listener is None:
                self._listener = threading.Thread(target=self._listen, name="watch", daemon=True)
                self._listener.start()
        self.listening.wait(LISTEN_SECONDS)

    def _leave(self, task_id: str, inbox: Inbox) -> None:
        with self._lock:
            self._inboxes[task_id].discard(inbox)
            if not self._inboxes[task_id]:
                del self._inboxes[task_id]

    def _listen(self) -> None:
        while not self._closed.is_set():
            try:
                self._listen_once()
            except Exception as error:  # noqa: BLE001, nobody starts it again: not even what is no text may end it
                self.listening.clear()
                if not self._closed.is_set():
                    log.warning("watch.interrupted", reason=str(error))
                    self._closed.wait(1)

    def _listen_once(self) -> None:
        with self._redis.pubsub() as subscription:  # type: ignore[no-untyped-call]
            subscription.subscribe(EVENTS)
            while not self._closed.is_set():
                message = subscription.get_message(timeout=PATIENCE)
                if message and message["type"] == "subscribe":
                    self.listening.set()
                elif message:
                    self._tell(message["data"])

    def _tell(self, text: str) -> None:
        try:
            event = json.loads(text)
            task_id = str(event["task_id"])
        except (ValueError, TypeError, KeyError, RecursionError):
            # Whoever says such a thing on our channel: it must not end our listening.
            log.warning("watch.unreadable")
            return
        with self._lock:
            for inbox in self._inboxes.get(task_id, ()):
                inbox.put(event)


def _next(inbox: Inbox, seconds: float) -> dict[str, Any] | None:
    try:
        return inbox.get(timeout=seconds)
    except Empty:
        return None


def _hear_of_its_end(inbox: Inbox, seconds: float) -> None:
    """Until the job's end is told, for these seconds at most."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if (event := _next(inbox, left)) and event.get("phase") == Phase.DONE:
            return
