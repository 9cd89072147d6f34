"""The worker's ear: Celery's, but what it cannot read it refuses, so that the broker puts it into quarantine."""

from collections.abc import Callable
from typing import Any

import structlog
from celery.utils.log import get_logger
from celery.worker import consumer

from app.messages import Unreadable, read

log = structlog.get_logger("darkroom.consumer")


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
                # Celery's own headers hold what it cannot read: that would end this worker, and the next.
                self._refuse(message, f"Celery cannot read its headers ({type(error).__name__})")

        return on_message

    def on_invalid_task(self, _: Any, message: Any, error: Exception) -> None:
        """Not by Celery's own way, which logs the message, and so its prompt."""
        self._refuse(message, f"Celery cannot read it ({type(error).__name__})")

    def _refuse(self, message: Any, reason: str) -> None:
        log.warning("message.unreadable", reason=reason)
        message.reject_log_error(get_logger(__name__), self.connection_errors)  # type: ignore[attr-defined]
