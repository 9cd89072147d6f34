"""Waiting for a job to end: one Redis subscription per web process, handed to everyone who waits there."""

import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable

import structlog
from redis import Redis
from redis.exceptions import RedisError

from app.jobs import EVENTS, Job, Phase

log = structlog.get_logger("darkroom.watch")

# Looked at again after this long though nothing was told: an event may be lost while Redis restarts.
PATIENCE = 5.0


class Watch:
    """Wakes those who wait for a job when its record says that it is done."""

    def __init__(self, redis: "Redis") -> None:
        self._redis = redis
        self._waiting: defaultdict[str, set[threading.Event]] = defaultdict(set)
        self._lock = threading.Lock()
        self._listener: threading.Thread | None = None

    def wait(self, read: Callable[[], Job], seconds: float) -> Job:
        """The job as soon as it is done, or as it is after `seconds`."""
        until = time.monotonic() + seconds
        done = threading.Event()
        task_id = (job := read()).task_id
        self._enter(task_id, done)
        try:
            # Read again once we listen: it may have ended in between.
            while not (job := read()).phase.is_terminal and (left := until - time.monotonic()) > 0:
                done.wait(min(left, PATIENCE))
        finally:
            self._leave(task_id, done)
        return job

    def _enter(self, task_id: str, done: threading.Event) -> None:
        with self._lock:
            self._waiting[task_id].add(done)
            # Started by the first who waits, and so never in a process that forks afterwards.
            if self._listener is None:
                self._listener = threading.Thread(target=self._listen, name="watch", daemon=True)
                self._listener.start()

    def _leave(self, task_id: str, done: threading.Event) -> None:
        with self._lock:
            self._waiting[task_id].discard(done)
            if not self._waiting[task_id]:
                del self._waiting[task_id]

    def _listen(self) -> None:
        while True:
            try:
                self._listen_once()
            except (RedisError, OSError) as error:
                log.warning("watch.interrupted", reason=str(error))
                time.sleep(1)

    def _listen_once(self) -> None:
        with self._redis.pubsub(ignore_subscribe_messages=True) as subscription:  # type: ignore[no-untyped-call]
            subscription.subscribe(EVENTS)
            while True:
                if message := subscription.get_message(timeout=PATIENCE):
                    self._tell(json.loads(message["data"]))

    def _tell(self, event: dict[str, str]) -> None:
        if event["phase"] == Phase.DONE:
            with self._lock:
                for done in self._waiting.get(event["task_id"], ()):
                    done.set()
