"""Who calls: API keys, kept as hashes in a file, with a name, a role, a rate and a number of unfinished tasks."""

import hashlib
import hmac
import math
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

import structlog
import yaml
from limits import parse, parse_many
from limits.storage import RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator
from redis import Redis
from redis.exceptions import RedisError, ResponseError

from app.errors import RateLimited, SettingsError, StoreUnavailable, Unauthorized, reason
from app.jobs import takes_no_writes
from app.settings import Settings

log = structlog.get_logger("darkroom.callers")

# A changed API_KEYS_FILE is read again this many seconds later at most.
FRESH = 1.0

# Of a rate: beyond, Redis cannot count any more.
MOST = 1_000_000_000
YEAR = 366 * 86_400


class Caller(BaseModel):
    """One caller. `rate` is in the words of the limits library (`10/second`), empty for none; 0 tasks is no limit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    role: Literal["client", "operator"] = "client"
    rate: str = "10/second"
    open_tasks: int = Field(100, ge=0)

    @field_validator("rate")
    @classmethod
    def _is_a_rate(cls, rate: str) -> str:
        try:
            rates = parse_many(rate) if rate else []
        except ValueError:
            raise ValueError("must be written like 10/second, 100/minute or 1000/day; empty for none") from None
        if len(rates) > 1:
            raise ValueError("must be one rate alone")
        if any(each.amount < 1 for each in rates):
            raise ValueError("must be above 0")
        if any(each.amount > MOST or each.get_expiry() > YEAR for each in rates):
            raise ValueError(f"must be at most {MOST}, and within a year")
        return rate

    @property
    def is_operator(self) -> bool:
        return self.role == "operator"


ANYONE = Caller.model_construct(name="anonymous", sha256="", role="operator", rate="", open_tasks=0)


class Callers:
    """All callers of this deployment. Without a file of keys everyone may do everything: on loopback only."""

    def __init__(self, redis: Redis, path: str = "") -> None:
        self._file = _KeyFile(path) if path else None
        # The address is not looked at: the connections are the ones that the records use, with their time limits.
        storage = RedisStorage("redis://", connection_pool=redis.connection_pool)
        self._limiter = SlidingWindowCounterRateLimiter(storage)

    @property
    def are_unknown(self) -> bool:
        """Whether no key is asked for."""
        return self._file is None

    def identify(self, authorization: str) -> Caller:
        """Whose request this is, by its `Authorization` header; raises Unauthorized, RateLimited, StoreUnavailable."""
        if self._file is None:
            return ANYONE
        scheme, _, key = authorization.partition(" ")
        caller = _holder(self._file.callers(), key.strip() if scheme.lower() == "bearer" else "")
        if caller.rate:
            self._count(caller)
        return caller

    def check(self, caller: Caller) -> None:
        """Raises Unauthorized for one who was identified once, and whose key was revoked since."""
        if self._file and caller.sha256 not in [known.sha256 for known in self._file.callers()]:
            raise Unauthorized("The key was revoked.")

    def _count(self, caller: Caller) -> None:
        rate = parse(caller.rate)
        try:
            if self._limiter.hit(rate, caller.name):
                return
            seconds = self._limiter.get_window_stats(rate, caller.name).reset_time - time.time()
        except RedisError as error:
            if isinstance(error, ResponseError) and takes_no_writes(error):
                # Reading goes on; what would write is refused by what it would write.
                return
            raise StoreUnavailable("The status store does not answer; try again shortly.") from error
        most = f"At most {rate.amount} requests per {_window(rate)}."
        raise RateLimited(most, retry_after=max(math.ceil(seconds), 1))


class _KeyFile:
    """The callers in a file, read again when it has changed, so that a new or revoked key needs no restart."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._callers = read_callers(self._path)
        if not self._callers:
            raise SettingsError(f"API_KEYS_FILE: {path} holds no caller: `python -m app keys new NAME` makes one.")
        self._stamp = self._look()
        self._looked_at = time.monotonic()

    def callers(self) -> list[Caller]:
        """The callers as the file has them now, or had them before it held a mistake."""
        if time.monotonic() - self._looked_at > FRESH:
            self._looked_at = time.monotonic()
            if (stamp := self._look()) != self._stamp:
                self._stamp = stamp
                self._read()
        return self._callers

    def _read(self) -> None:
        try:
            self._callers = read_callers(self._path)
        except SettingsError as error:
            log.warning("callers.unreadable", reason=str(error))
        else:
            log.info("callers.read", callers=len(self._callers))

    def _look(self) -> tuple[int, ...]:
        try:
            found = self._path.stat()
        except OSError:
            return ()
        return found.st_ino, found.st_size, found.st_mtime_ns


def load_callers(settings: Settings, redis: Redis) -> Callers:
    """The callers of API_KEYS_FILE; raises SettingsError that names every mistake in it, or an open door."""
    if not settings.api_keys_file:
        check_door(settings)
    return Callers(redis, settings.api_keys_file)


def check_door(settings: Settings) -> None:
    """Without keys only this machine is served; raises SettingsError when others could come in, or for wrong keys."""
    if settings.api_keys_file:
        _KeyFile(settings.api_keys_file)
    elif not (settings.allow_anonymous or settings.is_local):
        raise SettingsError(
            f"WEB_BIND={settings.web_bind} can be reached from other machines and there are no API keys: set"
            " API_KEYS_FILE (`python -m app keys new NAME` makes a key), or ALLOW_ANONYMOUS=true behind your own proxy."
        )


def greet(settings: Settings) -> None:
    """Say at the start who may come in, when that is everyone."""
    if not settings.api_keys_file:
        whoever = "on this machine" if settings.is_local else f"who reaches {settings.web_bind}"
        log.warning("web.anonymous", reason=f"API_KEYS_FILE is not set: anyone {whoever} may use this service")


def digest_of(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def read_callers(path: Path) -> list[Caller]:
    """The callers in this file; raises SettingsError that names every mistake in it, and repeats no value."""
    entries = _entries(path)
    callers, mistakes = list[Caller](), list[str]()
    for index, entry in enumerate(entries):
        try:
            callers.append(Caller.model_validate(entry))
        except ValidationError as error:
            mistakes += [_told(index, e) for e in error.errors(include_input=False)]
    if mistakes := mistakes + _repeated(callers):
        raise SettingsError("\n".join(f"API_KEYS_FILE: {path}: {mistake}" for mistake in mistakes))
    return callers


def _entries(path: Path) -> list[Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        # Not the whole text of a YAML error: it repeats the line.
        reason = getattr(error, "problem", None) or getattr(error, "strerror", None) or type(error).__name__
        raise SettingsError(f"API_KEYS_FILE: {path} cannot be read: {reason}") from None
    document = document or {}
    if not isinstance(document, dict) or set(document) - {"callers"}:
        raise SettingsError(f"API_KEYS_FILE: {path} must hold `callers:` and a list under it")
    entries = document.get("callers") or []
    if not isinstance(entries, list):
        raise SettingsError(f"API_KEYS_FILE: {path}: callers must be a list")
    return entries


def _told(index: int, error: Any) -> str:
    place = ".".join(["callers", str(index), *map(str, error["loc"])])
    return f"{place}: {reason(error)}"


def _repeated(callers: list[Caller]) -> list[str]:
    names = Counter(caller.name for caller in callers)
    hashes = Counter(caller.sha256 for caller in callers)
    holders = [caller.name for caller in callers if hashes[caller.sha256] > 1]
    return [
        *(f"the name {name} stands there {times} times" for name, times in names.items() if times > 1),
        *([f"{' and '.join(holders)} have the same key"] if len(set(holders)) > 1 else []),
        *([f"{ANYONE.name} is the name of those without a key"] if ANYONE.name in names else []),
    ]


def _holder(callers: list[Caller], key: str) -> Caller:
    """The holder of this key. Every hash is compared, in constant time, so that time tells nothing."""
    digest = digest_of(key)
    found = [caller for caller in callers if hmac.compare_digest(caller.sha256, digest)]
    if not found:
        raise Unauthorized("Send `Authorization: Bearer KEY` with a key of this deployment.")
    return found[0]


def _window(rate: Any) -> str:
    return f"{rate.multiples} {rate.GRANULARITY.name}s" if rate.multiples > 1 else str(rate.GRANULARITY.name)
