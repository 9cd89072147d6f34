"""The broker, as the web tier and the courier use it: what goes in, how much waits, and what it gave up on."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import amqp.exceptions
from celery import Celery
from celery.exceptions import OperationalError
from kombu.exceptions import KombuError
from opentelemetry.trace import SpanKind
from redis.exceptions import RedisError

from app import tracing
from app.errors import BrokerUnavailable, NotRequeuable
from app.record import Job
from app.tasks import GENERATE, PUBLISH_TIMEOUT, QUARANTINE

# A broker that stops says so on connections that it closes, and one that refuses a message says so on its channel:
# amqp's own errors, which are none of kombu's.
_AWAY = (OperationalError, KombuError, RedisError, amqp.exceptions.AMQPError, OSError)

CHECK_SECONDS = 1.0
# For which one who publishes waits for others who do: with what the broker itself may take, it is below two seconds.
SEAT_SECONDS = 0.4


@dataclass(frozen=True)
class DeadLetter:
    """A message that left its queue unread: rejected by a worker, or brought too often. `body` is as it came.

    `reason` is RabbitMQ's word for why; empty where another broker gives none.
    """

    queue: str
    body: bytes
    headers: dict[str, Any]
    content_type: str
    content_encoding: str
    reason: str = ""


class Broker:
    """One process' way to the broker. Every method raises BrokerUnavailable."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._connection: Any = None
        # As many as the pool has producers. Whoever waits for one of those waits without end: while a broker hangs, one
        # after the other for its own time-out.
        self._seats = threading.BoundedSemaphore(app.conf.broker_pool_limit)
        self._checking = threading.Lock()
        self._fault: Exception | None = None
        self._checked = float("-inf")

    def publish(self, job: Job) -> None:
        """Send the job's message and wait until the broker has it."""
        # In the job's own trace, whoever publishes: the sweep, or a look at a task whose input has come. Celery's
        # instrumentation has a span for the sender too, which never ends when the broker is away.
        with (
            self._seat(),
            tracing.continued(job.traceparent),
            tracing.span(f"send {job.queue}", SpanKind.PRODUCER, task_id=job.task_id),
        ):
            self._send(job)

    @contextmanager
    def _seat(self) -> Iterator[None]:
        """The right to take a producer from the pool."""
        if not self._seats.acquire(timeout=SEAT_SECONDS):
            raise BrokerUnavailable("The queue takes messages too slowly; try again shortly.")
        try:
            yield
        except _AWAY as error:
            raise BrokerUnavailable("The queue does not take messages; try again shortly.") from error
        finally:
            self._seats.release()

    def _send(self, job: Job) -> None:
        try:
            self._send_once(job)
        except amqp.exceptions.ChannelError:
            # Nobody takes it: the queue was deleted behind our back. The next try makes it again.
            self._send_once(job)

    def _send_once(self, job: Job) -> None:
        # Beside what is in the body, which the workers of the version before would not read.
        headers: dict[str, Any] = {"deadline_at": job.deadline_at}
        tracing.inject(headers)
        self._app.send_task(
            GENERATE,
            kwargs={"message": job.message()},
            task_id=job.task_id,
            queue=job.queue,
            headers=headers,
            # Refused rather than dropped where no queue is bound.
            mandatory=True,
            confirm_timeout=PUBLISH_TIMEOUT,
            # What Flower and the events show: the prompt is user data.
            argsrepr="()",
            kwargsrepr=f"{{'task_id': '{job.task_id}', 'model_version': '{job.params.model_version}'}}",
        )

    def check(self) -> None:
        """Whether the broker answers, known anew each second: whoever asks more often makes no more connections."""
        with self._checking:
            if time.monotonic() - self._checked >= CHECK_SECONDS:
                self._fault = self._connect()
                self._checked = time.monotonic()
            if self._fault:
                raise BrokerUnavailable("The broker does not answer.") from self._fault

    def _connect(self) -> Exception | None:
        """What a fresh connection meets: a held one may be dead."""
        try:
            with self._app.connection_for_write() as connection:
                connection.ensure_connection(max_retries=1, timeout=1)
        except _AWAY as error:
            return error
        return None

    def waiting(self, queue: str) -> int:
        """How many messages wait in this queue for a worker; 0 when there is no such queue."""
        with self._channel() as channel:
            try:
                return int(channel.queue_declare(queue, passive=True).message_count)
            except channel.connection.client.channel_errors:
                return 0

    def dead_letters(self, limit: int) -> Iterator[DeadLetter]:
        """What workers rejected and what came too often, oldest first; each is gone once the next is asked for."""
        with self._channel() as channel:
            while limit and (message := _next(channel)):
                yield _letter(message)
                message.ack()
                limit -= 1

    def send_again(self, letter: DeadLetter) -> None:
        """Put a dead letter back into the queue that it came from; raises NotRequeuable where that is no more."""
        queue = self._app.amqp.queues.get(letter.queue)
        if queue is None:
            raise NotRequeuable("The queue that it came from is served no more; drop it.")
        with self._seat(), self._app.producer_pool.acquire(block=True) as producer:
            producer.publish(
                letter.body, exchange=queue.exchange, routing_key=queue.routing_key, declare=[queue], retry=True,
                retry_policy=self._app.conf.task_publish_retry_policy, mandatory=True,
                headers=letter.headers, content_type=letter.content_type, content_encoding=letter.content_encoding,
            )  # fmt: skip

    @contextmanager
    def _channel(self) -> Iterator[Any]:
        """A channel of its own, on a connection that is kept until it fails."""
        try:
            if self._connection is None:
                self._connection = self._app.connection_for_write()
                self._connection.ensure_connection(max_retries=1, timeout=1)
            with closing(self._connection.channel()) as channel:
                yield channel
        except _AWAY as error:
            self._drop()
            raise BrokerUnavailable("The broker does not answer.") from error

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        with suppress(*_AWAY):
            connection.release()


def _next(channel: Any) -> Any:
    """None when the queue is empty, or is not there yet: workers make it.

    Not by kombu's Queue.get, which raises for one that cannot be unpacked, and so would meet it again and again.
    """
    with suppress(*channel.connection.client.channel_errors):
        raw = channel.basic_get(queue=QUARANTINE, no_ack=False)
        return None if raw is None else channel.message_to_python(raw)
    return None


def _letter(message: Any) -> DeadLetter:
    headers = message.headers if isinstance(message.headers, dict) else {}
    body = message.body
    return DeadLetter(
        queue=text(headers.get("x-first-death-queue") or message.delivery_info.get("routing_key")),
        body=bytes(body) if isinstance(body, bytes | bytearray | memoryview) else str(body or "").encode(),
        # What the broker wrote about its death would be counted again.
        headers={name: value for name, value in headers.items() if not str(name).startswith("x-")},
        content_type=text(message.content_type),
        content_encoding=text(message.content_encoding),
        reason=text(headers.get("x-first-death-reason")),
    )


def text(value: Any) -> str:
    """What can be kept, asked for and shown of it: a stranger's may hold what is no text."""
    return str(value or "").encode("utf-8", "replace").decode()
