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
            except Unreadable as error:
                log.warning("message.unreadable", reason=str(error))
                message.reject_log_error(get_logger(__name__), self.connection_errors)  # type: ignore[attr-defined]
            else:
                handle(message)

        return on_message
