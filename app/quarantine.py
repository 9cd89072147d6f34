"""What is kept for an operator to look at: tasks that killed their workers, and messages that nobody can read.

Each kind has an index sorted by time. A task's record is its own; a message is kept in `quarantine:{id}`.
"""

import base64
import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, cast

import structlog
from redis import Redis

from app.broker import Broker, DeadLetter, text
from app.errors import AttemptsExhausted, ClaimLost, EntryNotFound, Internal, NotRequeuable, TaskExpired, TaskNotFound
from app.jobs import JobStore, ask
from app.messages import Unreadable, read
from app.record import Job, Phase

log = structlog.get_logger("darkroom.quarantine")

TASKS, MESSAGES = "jobs:quarantine", "quarantine:messages"
# No message of ours is longer; of a stranger's the beginning is kept, for the operator to see whose it is.
MAX_BODY_BYTES = 256 * 1024
# Those beyond it stay in the broker's own queue.
MAX_MESSAGES = 500
# For which an entry is one operator's, who may be gone by then.
TAKEN_SECONDS = 10

# An operator's policy took the message out of its queue, for its age or for the queue's length.
_BY_POLICY = ("expired", "maxlen")

# KEYS: its index, and what is kept of it; ARGV: its id, and since when it was here.
_REMOVE = """
if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or '') == tonumber(ARGV[2]) then
  redis.call('ZREM', KEYS[1], ARGV[1])
  redis.call('DEL', KEYS[2])
end
"""


@dataclass(frozen=True)
class Entry:
    """A task or a message in quarantine. `job` is there for a task, `letter` for a message."""

    id: str
    reason: str
    detail: str
    quarantined_at: float
    job: Job | None = None
    letter: DeadLetter | None = field(default=None, repr=False)


class Quarantine:
    """The shelf of what was given up on. Every method raises StoreUnavailable."""

    def __init__(self, redis: Redis, jobs: JobStore, broker: Broker, seconds: int) -> None:
        self._redis = redis
        self._jobs = jobs
        self._broker = broker
        self._seconds = seconds
        self._remove = redis.register_script(_REMOVE)

    def collect(self, limit: int = 100) -> None:
        """Take in what the broker gave up on, as far as there is room for it; raises BrokerUnavailable."""
        # Before any is fetched: what is handed back again and again is dropped by the broker in the end.
        for letter in self._broker.dead_letters(min(limit, self._room())):
            try:
                job = read(letter.headers, letter.content_type, letter.body)
            except Unreadable as error:
                self._keep(letter, str(error))
            else:
                self._take_in(job, letter)

    def entries(self, before: float, limit: int) -> tuple[list[Entry], float | None]:
        """The entries put in before that time, newest first, and the time before which the next page begins.

        A page has fewer entries than `limit` where one is gone by now; the last page has no next one.
        """
        found = [pair for index in (TASKS, MESSAGES) for pair in self._newest(index, before, limit)]
        newest = sorted(found, key=lambda pair: -pair[1])[:limit]
        there = [entry for entry_id, since in newest if (entry := self._read(entry_id, since))]
        return there, newest[-1][1] if len(newest) == limit else None

    def _newest(self, index: str, before: float, limit: int) -> list[tuple[str, float]]:
        ask(lambda: self._redis.zremrangebyscore(index, "-inf", self._jobs.now() - self._seconds))
        found = ask(lambda: self._redis.zrevrangebyscore(index, f"({before}", "-inf", 0, limit, withscores=True))
        return cast("list[tuple[str, float]]", found)

    def take(self, entry_id: str) -> Entry:
        """An entry, for the one caller who decides about it now; raises EntryNotFound.

        It stays here until that is done (`remove`): whoever decides may be killed over it.
        """
        if self._jobs.lock(_key(entry_id), TAKEN_SECONDS):
            for index in (TASKS, MESSAGES):
                since = ask(partial(self._redis.zscore, index, entry_id))
                if since is not None and (entry := self._read(entry_id, since)):
                    return entry
            self._jobs.unlock(_key(entry_id))
        raise EntryNotFound(f"Nothing of the id {entry_id} is in quarantine, or someone else is dealing with it.")

    def put_back(self, entry: Entry) -> None:
        """What was taken could not be dealt with."""
        self._jobs.unlock(_key(entry.id))

    def remove(self, entry: Entry) -> None:
        """It is dealt with; a task's record stays as long as any other. A message may be here again by now."""
        keys, values = [MESSAGES if entry.letter else TASKS, _key(entry.id)], [entry.id, repr(entry.quarantined_at)]
        ask(lambda: self._remove(keys=keys, args=values))
        self._jobs.unlock(_key(entry.id))

    def send_again(self, entry: Entry) -> None:
        """Put a message that was taken back into its queue; raises NotRequeuable, BrokerUnavailable."""
        if entry.letter is None or len(entry.letter.body) >= MAX_BODY_BYTES:
            raise NotRequeuable("The message is longer than what is kept of it; drop it.")
        self._broker.send_again(entry.letter)

    def _room(self) -> int:
        messages = int(ask(lambda: self._redis.zcard(MESSAGES)))
        if messages >= MAX_MESSAGES:
            log.warning("quarantine.full", messages=messages)
        return max(MAX_MESSAGES - messages, 0)

    def _take_in(self, job: Job, letter: DeadLetter) -> None:
        if letter.reason in _BY_POLICY:
            # Nobody has failed at it: the sweep misses the job's message, and sends another.
            self._jobs.create(job)
            log.warning("quarantine.dropped_by_policy", task_id=job.task_id, queue=letter.queue, reason=letter.reason)
        else:
            self._give_up(job)

    def _give_up(self, job: Job) -> None:
        """End a job that nobody has begun or ended. One that runs or is done only had a message too many."""
        self._jobs.create(job)
        self._fail(job.task_id, AttemptsExhausted("The broker brought it again and again, and none began it."))

    def _fail(self, task_id: str, error: AttemptsExhausted | Internal) -> bool:
        """Whether the job was queued, and has ended now."""
        try:
            self._jobs.fail(task_id, error, phase=Phase.QUEUED, quarantine=True)
        except ClaimLost:
            return False
        log.warning("quarantine.task", task_id=task_id, reason=str(error))
        return True

    def _keep(self, letter: DeadLetter, detail: str) -> None:
        """A message that nobody can read; where it stood for a queued job of ours, that job ends.

        But for a newer version's: its couriers see that the job has no message, and its workers can read the next.
        """
        task_id = text(letter.headers.get("id"))
        if self._is_newer(task_id) or self._fail(task_id, Internal(f"No worker can read its message: {detail}")):
            return
        # The same message twice, after a crash between here and its acknowledgement, is one entry.
        entry_id = hashlib.sha256(task_id.encode() + letter.body).hexdigest()[:32]
        fields = {"letter": _written(letter), "detail": detail}
        ask(lambda: self._redis.hset(_key(entry_id), mapping=fields))
        ask(lambda: self._redis.expire(_key(entry_id), self._seconds))
        ask(lambda: self._redis.zadd(MESSAGES, {entry_id: self._jobs.now()}))
        log.warning("quarantine.message", entry_id=entry_id, queue=letter.queue, reason=detail)

    def _is_newer(self, task_id: str) -> bool:
        try:
            return self._jobs.get(task_id).is_newer
        except (TaskNotFound, TaskExpired):
            return False

    def _read(self, entry_id: str, since: float) -> Entry | None:
        """The entry; None when it has expired since."""
        kept = cast("dict[str, str]", ask(lambda: self._redis.hgetall(_key(entry_id))))
        if kept:
            return Entry(entry_id, "unreadable_message", kept["detail"], since, letter=_letter(kept["letter"]))
        try:
            job = self._jobs.get(entry_id)
        except (TaskNotFound, TaskExpired):
            return None
        error = job.error or {}
        return Entry(entry_id, error.get("code", ""), error.get("message", ""), since, job=job)


def _key(entry_id: str) -> str:
    return f"quarantine:{entry_id}"


def _written(letter: DeadLetter) -> str:
    body = base64.b64encode(letter.body[:MAX_BODY_BYTES]).decode()
    fields = {name: value for name, value in asdict(letter).items() if name != "reason"}
    return json.dumps({**fields, "body": body}, default=str)


def _letter(written: str) -> DeadLetter:
    fields: dict[str, Any] = json.loads(written)
    return DeadLetter(**{**fields, "body": base64.b64decode(fields["body"])})
