"""Telling a caller's own server what became of a task: Standard Webhooks, delivered by the courier.

The move that changes a job's state writes the entry of the outbox in the same script, so that nothing is lost
between the two. An entry is delivered under a lease: a courier that dies leaves it to the next one. What is sent is
made from the record at that moment, so that its URLs are fresh and no second copy of it has to be kept.
"""

import json
import random
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib import resources
from typing import Any, cast
from urllib.parse import urlsplit

import structlog
from opentelemetry.trace import SpanKind
from redis import Redis
from standardwebhooks import Webhook

from app import __version__, metrics, tracing
from app.documents import as_time, task_document
from app.egress import Answer, Egress, parse
from app.errors import (
    DarkroomError,
    EgressError,
    InvalidRequest,
    NotReady,
    StorageUnavailable,
    TaskExpired,
    TaskNotFound,
    WebhookNotFound,
)
from app.jobs import ask
from app.places import ALL, Places, Seat
from app.record import Job
from app.schemas import WebhookPayload
from app.services import Services
from app.settings import Settings

log = structlog.get_logger("darkroom.webhooks")

OUTBOX = "webhooks:due"
MAX_TRIES = 8
KEPT_DELIVERIES = 20

# A claim is good for the time of the request and this much more, in seconds.
MARGIN = 5.0

# Each pause is so many times the one before, so that eight tries with a base of 5 s take about eight hours.
GROWTH = 4

# A receiver that asks for more time gets it, as long as this: about the longest pause of our own.
MOST_ASKED_SECONDS = 6 * 3600

# At once in one courier, how many of these to one host, and for one caller: who is slow holds up its own only.
THREADS = 16
SHARES = {"all": THREADS, "host": 4, "caller": 12}

POLL_SECONDS = 0.1
# Between two tries while the store is away.
OUTAGE_SECONDS = 2.0
# So many entries are read at once, and at most so often in one round.
BATCH = 200
MOST_BATCHES = 50


def check(url: str | None, settings: Settings) -> None:
    """Raises InvalidRequest for a webhook that this deployment will not call. Looks up no name."""
    if url is not None and (reason := _fault(url, settings)):
        raise InvalidRequest(f"webhook_url {reason}", [{"field": "webhook_url", "reason": reason}])


def _fault(url: str, settings: Settings) -> str | None:
    if not settings.webhook_secret.get_secret_value():
        return "cannot be served: this deployment has no WEBHOOK_SECRET to sign with"
    try:
        parse(url, allow_private=settings.webhook_allow_private)
    except ValueError as error:
        return str(error)
    return None


def sign(secret: str, message_id: str, body: str) -> dict[str, str]:
    """The headers of Standard Webhooks, signed now with each of the secrets, which are separated by spaces."""
    # The library takes the numbers of this time for UTC, whatever zone it names.
    moment = datetime.now(UTC)
    signatures = (Webhook(one).sign(message_id, moment, body) for one in secret.split())
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


def pause(tries: int, base: float) -> float:
    """Seconds until the next try, after so many; uneven, so that what failed together does not come back together."""
    return base * float(GROWTH) ** (tries - 1) * random.uniform(0.75, 1.25)  # noqa: S311, no secret


def asked_pause(answer: Answer, now: float) -> float:
    """Seconds for which a receiver that is overloaded or closed asks to be left alone; 0 when it asks for nothing."""
    if answer.status not in (429, 503):
        return 0
    try:
        if answer.retry_after.isdecimal():
            seconds = float(answer.retry_after)
        else:
            seconds = parsedate_to_datetime(answer.retry_after).timestamp() - now
    except (ValueError, OverflowError):
        return 0
    return min(max(seconds, 0), MOST_ASKED_SECONDS)


@dataclass(frozen=True)
class Claim:
    """The right to make one delivery, its `tries`th; over at `until` by the monotonic clock."""

    task_id: str
    event: str
    token: str
    tries: int
    until: float

    @property
    def entry(self) -> str:
        """Its name in the outbox, and the `webhook-id`: the same for all tries."""
        return f"{self.task_id}.{self.event}"


class Outbox:
    """What is still to be delivered. Every method raises StoreUnavailable when Redis does not answer."""

    def __init__(self, redis: Redis, *, timeout: float) -> None:
        self._redis = redis
        self._timeout = timeout
        self._script = redis.register_script(resources.files("app").joinpath("webhooks.lua").read_text())

    def due(self, limit: int = BATCH) -> list[str]:
        """Entries whose time has come, the longest due first."""
        seconds, microseconds = ask(self._redis.time)
        now = seconds + microseconds / 1e6
        return cast("list[str]", ask(lambda: self._redis.zrangebyscore(OUTBOX, "-inf", now, 0, limit)))

    def claim(self, entry: str) -> Claim | None:
        """Take an entry, for the one who gets it; None for all others, and when there is no more to be tried."""
        task_id, _, event = entry.rpartition(".")
        token = secrets.token_hex(8)
        until = time.monotonic() + self._timeout
        verdict, tries = self._move("claim", entry, token, self._timeout + MARGIN, MAX_TRIES)
        if verdict == "exhausted":
            log.warning("webhook.given_up", task_id=task_id, webhook_event=event)
        return Claim(task_id, event, token, tries, until) if verdict == "claimed" else None

    def settle(self, claim: Claim, status: int | None, error: str | None, again_in: float | None) -> bool:
        """Note how a delivery went; whether it will be tried again, when `again_in` seconds are given for that."""
        happened = json.dumps({"event": claim.event, "attempt": claim.tries, "status": status, "error": error})
        wait = "" if again_in is None else again_in
        return bool(
            self._move("settle", claim.entry, claim.token, wait, MAX_TRIES, KEPT_DELIVERIES, happened)[0] == "again"
        )

    def postpone(self, entries: Mapping[str, float]) -> None:
        """Let others go before each of these, for so many seconds."""
        with self._redis.pipeline(transaction=False) as together:
            for entry, seconds in entries.items():
                self._move("postpone", entry, seconds, client=together)
            ask(together.execute)

    def redeliver(self, job: Job) -> None:
        """Deliver once more what has happened so far; raises WebhookNotFound, NotReady when nothing has."""
        if job.webhook_url is None:
            raise WebhookNotFound("The task was submitted without a `webhook_url`.")
        answers = [self._move("redeliver", f"{job.task_id}.{event}")[0] for event in job.webhook_events]
        if "queued" not in answers:
            raise NotReady("Nothing has happened yet that the webhook asked for.")

    def _move(self, name: str, entry: str, *args: str | float, client: Redis | None = None) -> list[Any]:
        task_id, _, event = entry.rpartition(".")
        keys = [f"job:{task_id}", OUTBOX]
        answer: list[Any] = ask(lambda: self._script(keys=keys, args=[name, event, entry, *args], client=client))
        return answer


def _host(url: str) -> str:
    """Whose server that is; empty for what is no URL, which the delivery itself will find."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


@contextmanager
def _in_trace(job: Job, claim: Claim) -> Iterator[None]:
    """The delivery as a step of the job's own trace, and the job's id on its lines."""
    with (
        structlog.contextvars.bound_contextvars(task_id=job.task_id),
        tracing.continued(job.traceparent),
        tracing.span("webhook.deliver", SpanKind.CLIENT, task_id=job.task_id, event=claim.event, attempt=claim.tries),
    ):
        yield


class Dispatcher:
    """Delivers what is due, several at once. Any number of couriers may do so."""

    def __init__(self, services: Services, egress: Egress | None = None) -> None:
        settings = services.settings
        self._services = services
        self._outbox = Outbox(services.redis, timeout=settings.webhook_timeout)
        self._egress = egress or Egress(allow_private=settings.webhook_allow_private)
        self._pool = ThreadPoolExecutor(THREADS, "webhook")
        self._places = Places(SHARES)

    def run(self, stop: threading.Event) -> None:
        """Until told to stop, and then until what is under way has ended. An outage is over by itself."""
        while not stop.wait(POLL_SECONDS):
            try:
                self.dispatch()
            except DarkroomError as error:
                log.warning("webhook.interrupted", reason=str(error), error_type=type(error).__name__)
                stop.wait(OUTAGE_SECONDS)
            except Exception:
                log.exception("webhook.dispatch_failed")
                stop.wait(OUTAGE_SECONDS)
        self.close()

    def close(self) -> None:
        """Wait for what is under way: at most the time of one request."""
        self._pool.shutdown()

    def dispatch(self) -> None:
        """Start what is due, as far as there is room for it. Whoever finds their share taken lets others go first."""
        turned_away = Counter[Seat]()
        for _ in range(MOST_BATCHES):
            due = self._outbox.due()
            self._outbox.postpone(self._start(due, turned_away))
            if len(due) < BATCH or not self._places.is_free(ALL):
                return

    def _start(self, due: list[str], turned_away: Counter[Seat]) -> dict[str, float]:
        """Begin what finds its seats; gives the others, and for how many seconds they are to wait."""
        late = dict[str, float]()
        for entry, seats in zip(due, self._seats(due), strict=True):
            if self._places.take(*seats):
                self._begin(entry, seats)
            elif self._places.is_free(ALL):
                late[entry] = self._until_its_turn(seats, turned_away)
            else:
                break
        return late

    def _until_its_turn(self, seats: list[Seat], turned_away: Counter[Seat]) -> float:
        """When the seat that it lacks could be free, were all who are turned away before it done within one look.

        The more wait for one host, the less often each of them is looked at: they must not hold up everybody else.
        """
        lacks = next((seat for seat in seats if not self._places.is_free(seat)), ALL)
        turned_away[lacks] += 1
        return POLL_SECONDS * (1 + turned_away[lacks] // SHARES[lacks[0]])

    def _begin(self, entry: str, seats: list[Seat]) -> None:
        """Deliver it in a thread, which gives the seats back; nobody sits there for what is not to be had."""
        with ExitStack() as hands:
            hands.callback(self._places.leave, *seats)
            if claim := self._outbox.claim(entry):
                self._pool.submit(self._deliver, claim, seats)
                hands.pop_all()

    def _seats(self, entries: list[str]) -> list[list[Seat]]:
        """Of whose shares each entry takes a part."""
        with self._services.redis.pipeline(transaction=False) as together:
            for entry in entries:
                together.hmget(f"job:{entry.rpartition('.')[0]}", ["webhook_url", "caller"])
            found = ask(together.execute)
        return [[ALL, ("host", _host(url or "")), ("caller", caller or "")] for url, caller in found]

    def _deliver(self, claim: Claim, seats: list[Seat]) -> None:
        try:
            job = self._services.jobs.get(claim.task_id)
            with _in_trace(job, claim):
                self._try(job, claim)
        except (TaskNotFound, TaskExpired):
            # Deleted in between, and its entry goes with it when it is due again.
            log.info("webhook.task_gone", task_id=claim.task_id, webhook_event=claim.event)
        except DarkroomError as error:
            # Here and below: the lease ends, and the entry is due again.
            log.warning(
                "webhook.interrupted", task_id=claim.task_id, reason=str(error), error_type=type(error).__name__
            )
        except Exception:
            log.exception("webhook.failed", task_id=claim.task_id, webhook_event=claim.event)
        finally:
            self._places.leave(*seats)

    def _try(self, job: Job, claim: Claim) -> None:
        """Send, and note in the record how it went. A failure here changes nothing else of the task."""
        started = time.monotonic()
        answer, error = self._send(job, claim)
        status = answer.status if answer else None
        delivered = status is not None and 200 <= status < 300
        # By 410 it says that it wants no more.
        declined = status == 410
        again_in = None if delivered or declined else self._pause(claim, answer)
        again = self._outbox.settle(claim, status, None if delivered else error or f"status {status}", again_in)
        told = log.bind(task_id=job.task_id, webhook_event=claim.event, attempt=claim.tries, status=status)
        outcome = "delivered" if delivered else "declined" if declined else "postponed" if again else "given_up"
        metrics.WEBHOOK.labels(outcome).observe(time.monotonic() - started)
        if delivered or declined:
            told.info(f"webhook.{outcome}")
        else:
            tracing.failed(outcome)
            told.warning(f"webhook.{outcome}", reason=error)

    def _pause(self, claim: Claim, answer: Answer | None) -> float:
        """Our own pause, or a longer one that the receiver asks for."""
        own = pause(claim.tries, self._services.settings.webhook_pause)
        return max(own, asked_pause(answer, self._services.clock())) if answer else own

    def _send(self, job: Job, claim: Claim) -> tuple[Answer | None, str | None]:
        """The receiver's answer, or why there is none."""
        try:
            body = self._body(job, claim.event)
        except StorageUnavailable:
            # A try like any other, so that an outage is waited for as long as a receiver's.
            return None, "the task's URLs could not be signed"
        secret = self._services.settings.webhook_secret.get_secret_value()
        if not secret:
            # The web tier had one when it took the task.
            return None, "there is no WEBHOOK_SECRET to sign with"
        headers = sign(secret, claim.entry, body)
        headers |= {"Content-Type": "application/json", "User-Agent": f"Darkroom/{__version__}"}
        headers |= {"traceparent": parent} if (parent := tracing.traceparent()) else {}
        try:
            left = claim.until - time.monotonic()
            return self._egress.post(job.webhook_url or "", body.encode(), headers, left), None
        except EgressError as error:
            return None, str(error)

    def _body(self, job: Job, event: str) -> str:
        happened = job.started_at if event == "started" else job.finished_at
        return WebhookPayload(
            type="task.started" if event == "started" else "task.completed",
            timestamp=as_time(happened) or "",
            data=task_document(job, self._services),
        ).model_dump_json()
