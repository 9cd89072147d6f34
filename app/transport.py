"""Kombu's Redis transport with what it lacks: a message that is rejected goes to quarantine, as RabbitMQ does it.

What somebody wrote raw into a queue's list arrives as a message too, one that nobody can read, as it does at RabbitMQ.
"""

import json
from typing import Any

from kombu.transport import redis

from app.tasks import QUARANTINE


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

    def _create_client(self, asynchronous: bool = False) -> Any:
        client = super()._create_client(asynchronous)  # type: ignore[misc]
        client.set_response_callback("BRPOP", lambda answer: answer and (answer[0], self._whole(*answer)))
        return client

    def _whole(self, queue: bytes, item: bytes) -> bytes:
        """What came off the list if kombu can read it, else a message around it."""
        try:
            message = self.Message(json.loads(item), channel=self)
            message.delivery_info["exchange"], message.delivery_info["routing_key"]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return self._wrapped(queue.decode(), item)
        return item

    def _wrapped(self, queue: str, item: bytes) -> bytes:
        message = self.prepare_message(item, content_type="application/octet-stream", content_encoding="binary")
        self._inplace_augment_message(message, queue, queue)
        return json.dumps(message).encode()


class Transport(redis.Transport):
    """For `redis://` and `rediss://` brokers; kombu finds it by its aliases, which tasks.py sets."""

    Channel = Channel
