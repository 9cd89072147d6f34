"""The worker's ear: Celery's, but what it cannot read it refuses, so that the broker puts it into quarantine.

And one that notices that it hears nothing more.
"""

import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog
from celery.utils.log import get_logger
from celery.worker import consumer
from celery.worker import state as celery_state

from app.messages import Unreadable, read

log = structlog.get_logger("darkroom.consumer")

# How often a worker that does nothing looks whether there is something to do, and how long it may see that in vain.
LOOK_SECONDS = 2
UNHEARD_SECONDS = 15


class Consumer(consumer.Consumer):
    """Reads each message before the child is bothered. Celery itself would acknowledge some that it cannot read."""

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        handle = super().create_task_handler(*args, **kwargs)

        def on_message(message: Any) -> None:
            try:
                read(message.headers, message.content_type, message.body)
                handle(message)
            except Unreadable as error:
                self._refuse(message, str(error))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                if message.headers["id"] in celery_state.requests:
                    # It was read.
                    raise
                # Celery's own headers hold what it cannot read: that would end this worker, and the next.
                self._refuse(message, f"Celery cannot read its headers ({type(error).__name__})")

        return on_message

    def on_invalid_task(self, _: Any, message: Any, error: Exception) -> None:
        """Not by Celery's own way, which logs the message, and so its prompt."""
        self._refuse(message, f"Celery cannot read it ({type(error).__name__})")

    def on_decode_error(self, message: Any, error: Exception) -> None:
        """Nor by that, which acknowledges it besides."""
        self._refuse(message, f"Celery cannot unpack it ({type(error).__name__})")

    def _refuse(self, message: Any, reason: str) -> None:
        log.warning("message.unreadable", reason=reason)
        message.reject_log_error(get_logger(__name__), self.connection_errors)  # type: ignore[attr-defined]


def keep_hearing(worker: Any, waits: Callable[[], bool]) -> None:
    """For a thread: connect anew when messages wait (`waits()`), and this worker, which does nothing, is given none.

    RabbitMQ does so after a queue was deleted while a message of it was at work, and made again at once: what the new
    queue sends on the old one's channel gets lost on the way.
    """
    since = time.monotonic()
    while True:
        time.sleep(LOOK_SECONDS)
        if celery_state.reserved_requests or not _socket(worker) or not waits():
            since = time.monotonic()
        elif time.monotonic() - since > UNHEARD_SECONDS:
            log.warning("worker.hears_nothing")
            hang_up(worker)
            since = time.monotonic()


def hang_up(worker: Any) -> None:
    """As if the broker had: Celery comes back from that by itself."""
    if sock := _socket(worker):
        with suppress(OSError):
            # By the plain socket's way: TLS' own forgets its state at once, and who is just reading falls over that.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _socket(worker: Any) -> Any:
    """Of the connection to the broker; None while there is none, which is made by Celery and not from here."""
    # Asked for by its public name, it would connect.
    connection = getattr(getattr(worker.consumer, "connection", None), "_connection", None)
    return getattr(getattr(connection, "transport", None), "sock", None)
