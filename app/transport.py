"""Kombu's Redis transport with what it lacks: a message that is rejected goes to quarantine, as RabbitMQ does it."""

from typing import Any

import structlog
from kombu.transport import redis

from app.tasks import QUARANTINE

log = structlog.get_logger("darkroom.transport")


class QoS(redis.QoS):
    """Dead letters keep the name of their queue: it is the routing key that they were delivered with."""

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        message = self._delivered.get(delivery_tag) if self._delivered else None
        if message and not requeue:
            self.channel._put(QUARANTINE, message._raw)  # noqa: SLF001, the base class has no other way
        super().reject(delivery_tag, requeue=requeue)


class Channel(redis.Channel):
    """A channel whose dead letters are kept."""

    QoS = QoS

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]
        except (ValueError, TypeError, KeyError) as error:
            # Somebody wrote into the list what no client of the queue writes. It is off the list by now.
            log.error("broker.no_message", error_type=type(error).__name__)  # noqa: TRY400, its text shows the data
            return None


class Transport(redis.Transport):
    """For `redis://` and `rediss://` brokers; kombu finds it by its aliases, which tasks.py sets."""

    Channel = Channel
