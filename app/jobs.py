"""The record of a job, and the only ways in which it changes.

The record in Redis is the truth; a message in the broker is a hint that there is work. Each change is one call
of jobs.lua, which checks the state before it writes (compare-and-set).
"""

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from typing import Any, cast

from pydantic import ValidationError
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from app.errors import (
    Canceled,
    ClaimLost,
    InvalidTransition,
    JobError,
    StoreUnavailable,
    TaskExpired,
    TaskNotFound,
)
from app.params import Params
from app.record import TRANSITIONS, Job, Phase, Status, from_record, to_record

EVENTS = "jobs:events"
DISCARDED_TTL = 3600
DELETED_TTL = 86_400
TICKET_TTL = 86_400
# Within so many seconds a new record is written or never: soon afterwards its client is told that it was not.
WRITTEN_WITHIN = 1.5
# A job of low priority stands in line as if it had come so many seconds later.
LATER = 86_400

# The names of what this version can run, as jobs.lua reads them.
_KNOWN_PARAMETERS = json.dumps(list(Params.model_fields))

# What says that Redis is away, and not that we asked for something wrong.
_AWAY = (RedisConnectionError, RedisTimeoutError)


@dataclass(frozen=True)
class Claim:
    """The answer to a worker that asked for a job: `job` is there only when the verdict is `claimed`."""

    verdict: str
    job: Job | None = None
    task_id: str = ""


@dataclass(frozen=True)
class Waiting:
    """A job in the line of its queue, and what it asks for."""

    task_id: str
    params: Params


@dataclass(frozen=True)
class Terms:
    """On which terms a job is taken: `ticket` and `digest` make a repeated request one job; 0 is no limit."""

    ticket: str = ""
    digest: str = ""
    most_queued: int = 0
    most_open: int = 0


@dataclass(frozen=True)
class Standing:
    """How many jobs of its queue go before a job, None when it is not queued; and seconds of one step of its model."""

    position: int | None = None
    step_seconds: float | None = None

    def typical_seconds(self, params: Params) -> float | None:
        """How long such a job takes a worker, by what its model's steps took lately; None while none is known."""
        steps = params.num_inference_steps * params.num_images
        return None if self.step_seconds is None else self.step_seconds * steps


@dataclass(frozen=True)
class Acceptance:
    """`created`, or why not, and for which job.

    Why not: `exists`, `overdue`, `replay`, `reused`, `queue_full`, `quota_exceeded`.
    With `created` comes the job as it is on the record, and how it stands.
    """

    verdict: str
    task_id: str
    job: Job | None = None
    standing: Standing | None = None


class JobStore:
    """Jobs on Redis. Every method raises StoreUnavailable when Redis does not answer."""

    def __init__(self, redis: Redis, *, result_ttl: int, lease: float) -> None:
        self._redis = redis
        self._result_ttl = result_ttl
        self._lease = lease
        self._script = redis.register_script(_table() + resources.files("app").joinpath("jobs.lua").read_text())

    def create(self, job: Job, terms: Terms | None = None) -> Acceptance:
        """Write a new record, if there is none of this id and the terms allow it."""
        latest = self.now() + WRITTEN_WITHIN if terms else 0
        terms = terms or Terms()
        header = (terms.ticket, terms.digest, TICKET_TTL, terms.most_queued, terms.most_open, self._listed, latest)
        fields = [part for pair in to_record(job).items() for part in pair]
        verdict, task_id, *more = self._move("create", job.task_id, *header, *fields)
        if verdict == "late":
            raise StoreUnavailable("The status store was busy for too long; try again shortly.")
        if not more:
            return Acceptance(verdict, task_id)
        record, *standing = more
        return Acceptance(verdict, task_id, from_record(task_id, _pairs(record)), _standing(*standing))

    def earlier(self, terms: Terms) -> Acceptance | None:
        """What became of an earlier request with this idempotency key: `replay` or `reused`; None without one."""
        if not terms.ticket:
            return None
        task_id, digest = ask(lambda: self._redis.hmget(f"idempotency:{terms.ticket}", ["task_id", "digest"]))
        return Acceptance("replay" if digest == terms.digest else "reused", task_id) if task_id else None

    def confirm(self, task_id: str) -> None:
        """The broker has the message: the sweep need not publish it again."""
        ask(lambda: self._redis.zrem("jobs:unconfirmed", task_id))

    def discard(self, task_id: str) -> bool:
        """The client is told no: forget the job, and make a stray message find nothing; False when a worker has it."""
        return bool(self._move("discard", task_id, DISCARDED_TTL)[0] == "discarded")

    def queue(self, task_id: str) -> bool:
        """The input is there. True for the one caller who moved the job on and must publish it."""
        return bool(self._move("queue", task_id)[0] == "queued")

    def claim(self, task_id: str, token: str, owner: str) -> Claim:
        """Ask for a job. Any verdict but `claimed` means: not yours, acknowledge the message."""
        return self._claim(task_id, token, *self._move("claim", task_id, token, owner, self._lease))

    def claim_next(self, queue: str, most: int, models: list[str], token: str, owner: str) -> Claim:
        """The same for the first in this queue's line that is for one of these models; looks at so many at most."""
        known = (_KNOWN_PARAMETERS, json.dumps(models))
        task_id, *answer = self._move("claim_next", "", token, owner, self._lease, queue, most, *known)
        return self._claim(task_id, token, *answer)

    def _claim(self, task_id: str, token: str, verdict: str, record: list[str] | None = None) -> Claim:
        """The answer; a job of which a newer version wrote what this one does not know goes back into the line."""
        try:
            return Claim(verdict, from_record(task_id, _pairs(record), to_run=True) if record else None, task_id)
        except ValidationError:
            self.release(task_id, token)
            return Claim("held", task_id=task_id)

    def renew(self, task_id: str, token: str, step: int | None = None, steps: int | None = None) -> None:
        """Hold the claim for another lease, and tell how far the work is; raises ClaimLost, and Canceled."""
        progress = () if step is None or steps is None else (step, steps)
        answer = self._move("renew", task_id, token, self._lease, *progress)
        self._hold(task_id, answer)
        if answer[0] == "cancel":
            raise Canceled

    def advance(self, task_id: str, token: str, phase: Phase) -> None:
        """Enter the next phase of running; raises ClaimLost, InvalidTransition."""
        self._hold(task_id, self._move("advance", task_id, token, phase))

    def release(self, task_id: str, token: str) -> None:
        """Give the job back unharmed; the attempt is not counted. Raises ClaimLost."""
        self._hold(task_id, self._move("release", task_id, token, *self._if_canceled))

    def requeue(self, task_id: str) -> bool:
        """Take the job from a worker whose lease ran out. True for the one caller who must publish it."""
        return bool(self._move("requeue", task_id, *self._if_canceled)[0] == "queued")

    def forget(self, task_id: str, queues: Iterable[str] = ()) -> None:
        """Take an id whose record is gone out of the indexes, and out of these queues."""
        self._move("forget", task_id, *(f"queued:{queue}" for queue in queues))

    def succeed(self, task_id: str, token: str, result: dict[str, str]) -> None:
        """The end everyone hopes for; `result` is written into the record. Raises ClaimLost."""
        self._finish(task_id, token, Status.SUCCEEDED, result)

    def fail(
        self, task_id: str, error: JobError, token: str = "", *, phase: Phase | None = None, quarantine: bool = False
    ) -> None:
        """The other end. Without a token it is said over the head of whoever holds the job. Raises ClaimLost.

        With a `phase` only a job that is in it still ends: it may have moved since whoever says so has looked.
        """
        fields = {"error": json.dumps(error.document()), **error.fields()}
        self._finish(task_id, token, Status.FAILED, fields, phase=phase, quarantine=quarantine)

    def cancel(self, task_id: str) -> None:
        """End a job that nobody works on; ask the worker of one that runs to stop at its next step."""
        self._move("cancel", task_id, *self._if_canceled)

    def delete(self, task_id: str) -> None:
        """Leave nothing of a finished job but the word that it was there; raises InvalidTransition for another."""
        _allowed(task_id, self._move("delete", task_id, DELETED_TTL))

    def of(self, caller: str, before: float, limit: int) -> list[tuple[str, float]]:
        """Ids of this caller's jobs made before that time, and when, newest first."""
        key, oldest = f"jobs:of:{caller}", self.now() - self._listed
        ask(lambda: self._redis.zremrangebyscore(key, "-inf", oldest))
        found = ask(lambda: self._redis.zrevrangebyscore(key, f"({before}", "-inf", 0, limit, withscores=True))
        return cast("list[tuple[str, float]]", found)

    def standing(self, job: Job) -> Standing:
        """Where it stands in its queue, and what is known of its model's time."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.zrank(f"jobs:queued:{job.queue}", job.task_id)
        pipeline.hget("models:step_seconds", job.params.model_version)
        return _standing(*ask(pipeline.execute))

    def step_seconds(self) -> dict[str, float]:
        """By model version how long a step took workers lately; a model that has made nothing yet is not there."""
        told: dict[str, str] = ask(lambda: self._redis.hgetall("models:step_seconds"))
        return {model_version: float(seconds) for model_version, seconds in told.items()}

    def unconfirmed(self, task_id: str) -> bool:
        """Whether its message is still on the way to the broker."""
        return ask(lambda: self._redis.zscore("jobs:unconfirmed", task_id)) is not None

    def get(self, task_id: str, caller: str | None = None) -> Job:
        """The record; raises TaskNotFound, and TaskExpired once it is older than its keeping.

        With a `caller` everyone else's is not found, be it there, deleted or expired.
        """
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.hgetall(_key(task_id))
        pipeline.time()
        record, now = ask(pipeline.execute)
        if not record or "discarded" in record or caller not in (None, record.get("caller")):
            raise TaskNotFound(f"There is no task {task_id}.")
        if "deleted" in record:
            raise TaskExpired(f"Task {task_id} was deleted.")
        job = from_record(task_id, record)
        if job.expires_at and job.expires_at <= _seconds(now):
            raise TaskExpired(f"Task {task_id} was kept until its `expires_at` and is gone.")
        return job

    def now(self) -> float:
        """Redis' clock, in seconds since 1970."""
        return _seconds(ask(self._redis.time))

    def due(self, index: str, older_than: float = 0, limit: int = 1000) -> list[str]:
        """Ids whose time in this index (leases, uploads, deadlines, unconfirmed) has come, oldest first."""
        until = self.now() - older_than
        found = ask(lambda: self._redis.zrangebyscore(f"jobs:{index}", "-inf", until, 0, limit))
        return cast("list[str]", found)

    def waiting_uploads(self, after: float, limit: int) -> list[tuple[str, float]]:
        """Ids that wait for their input with when they expire, the first in front, but for those up to `after`."""
        key = "jobs:uploads"
        found = ask(lambda: self._redis.zrangebyscore(key, f"({after!r}", "+inf", 0, limit, withscores=True))
        return cast("list[tuple[str, float]]", found)

    def line(self, queue: str, limit: int) -> list[Waiting]:
        """Who waits in this queue, first come first; but for those whose parameters this version cannot read."""
        ids = ask(lambda: self._redis.zrange(f"jobs:queued:{queue}", 0, limit - 1))
        pipeline = self._redis.pipeline(transaction=False)
        for task_id in ids:
            pipeline.hget(_key(task_id), "params")
        found = zip(ids, ask(pipeline.execute), strict=True)
        return [waiting for task_id, params in found if params and (waiting := _waiting(task_id, params))]

    def queued_before(self, queue: str, seconds: float, limit: int = 1000) -> list[str]:
        """Ids that have waited in this queue for longer than that, the first in line in front."""
        key, now = f"jobs:queued:{queue}", self.now()
        found: list[str] = ask(lambda: self._redis.zrangebyscore(key, "-inf", now - seconds, 0, limit))
        # Whoever came this moment stands before the low ones.
        low = ask(lambda: self._redis.zrangebyscore(key, now + seconds, now + LATER - seconds, 0, limit))
        return [*found, *low][:limit]

    def queue_depth(self, queue: str) -> int:
        """How many jobs wait for a worker of this queue."""
        return int(ask(lambda: self._redis.zcard(f"jobs:queued:{queue}")))

    def to_be_confirmed(self) -> int:
        """How many jobs' messages are still on their way to the broker, whichever their queue."""
        return int(ask(lambda: self._redis.zcard("jobs:unconfirmed")))

    def lock(self, name: str, seconds: float) -> bool:
        """Take a lock that ends by itself; False when someone else has it."""
        key, milliseconds = f"lock:{name}", int(seconds * 1000)
        taken = bool(ask(lambda: self._redis.set(key, "1", nx=True, px=milliseconds)))
        if not taken:
            # Redis keeps the moment of its end: by a clock that has jumped back, that could be hours away.
            ask(lambda: self._redis.pexpire(key, milliseconds, lt=True))
        return taken

    def unlock(self, name: str) -> None:
        """End a lock before its time."""
        ask(lambda: self._redis.delete(f"lock:{name}"))

    def ping(self) -> None:
        """Raises StoreUnavailable when Redis does not answer."""
        ask(self._redis.ping)

    @property
    def _if_canceled(self) -> tuple[str, int]:
        """The error of a canceled job, and for how long that is kept."""
        return json.dumps(Canceled().document()), self._result_ttl

    @property
    def _listed(self) -> int:
        """How long a record may be there after the job was made: no deadline is later than results are kept."""
        return 2 * self._result_ttl + DELETED_TTL

    def _finish(
        self,
        task_id: str,
        token: str,
        status: Status,
        fields: dict[str, str],
        *,
        phase: Phase | None = None,
        quarantine: bool = False,
    ) -> None:
        flat = [part for pair in fields.items() for part in pair]
        terms = (self._result_ttl, "1" if quarantine else "", phase or "")
        self._hold(task_id, self._move("finish", task_id, token, status, *terms, *flat))

    def _move(self, name: str, task_id: str, *args: str | float) -> list[Any]:
        answer: list[Any] = ask(lambda: self._script(keys=[_key(task_id)], args=[name, task_id, *args]))
        return answer

    @staticmethod
    def _hold(task_id: str, answer: list[Any]) -> None:
        _allowed(task_id, answer)
        if answer[0] in ("lost", "done", "missing"):
            raise ClaimLost(f"{task_id}: {answer[0]}")


def ask(command: Callable[[], Any]) -> Any:
    """Run one command of Redis; raises StoreUnavailable when Redis does not answer."""
    try:
        return command()
    except _AWAY as error:
        raise StoreUnavailable("The status store does not answer; try again shortly.") from error
    except ResponseError as error:
        if not takes_no_writes(error):
            raise
        raise StoreUnavailable("The status store takes no writes; try again shortly.") from error


def takes_no_writes(error: ResponseError) -> bool:
    """Whether Redis refuses only because its memory (OOM) or its disk (MISCONF) is full, or because it is a replica."""
    return isinstance(error, OutOfMemoryError | ReadOnlyError) or "MISCONF" in str(error)


def _allowed(task_id: str, answer: list[Any]) -> None:
    if answer[0] == "invalid":
        raise InvalidTransition(f"{task_id} cannot leave {answer[1]} that way")


def _key(task_id: str) -> str:
    return f"job:{task_id}"


def _seconds(time: tuple[int, int]) -> float:
    return time[0] + time[1] / 1e6


def _waiting(task_id: str, params: str) -> Waiting | None:
    """None where a newer version wrote what this one does not know: the others in the line are not to suffer."""
    with suppress(ValidationError):
        return Waiting(task_id, Params.model_validate_json(params))
    return None


def _standing(position: int | None, step_seconds: str | None) -> Standing:
    return Standing(position, float(step_seconds) if step_seconds else None)


def _pairs(flat: list[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _table() -> str:
    """TRANSITIONS and LATER as Lua source, so that they stand in one place only."""
    rows = (f"{old} = {{{', '.join(f'{new} = true' for new in sorted(news))}}}" for old, news in TRANSITIONS.items())
    return f"local ALLOWED, LATER = {{{', '.join(rows)}}}, {LATER}\n"
