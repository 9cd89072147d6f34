"""Who calls: API keys, kept as hashes in a file, with a name, a role, a rate and a number of unfinished tasks."""

import hashlib
import hmac
import secrets
from pathlib import Path
from typing import Annotated, Literal

import yaml
from limits import parse
from limits.storage import storage_from_string
from limits.strategies import SlidingWindowCounterRateLimiter
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError
from redis.exceptions import RedisError

from app.errors import RateLimited, SettingsError, StoreUnavailable, Unauthorized
from app.settings import Settings


class Caller(BaseModel):
    """One caller. `rate` is in the words of the limits library (`10/second`), empty for none; 0 tasks is no limit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    role: Literal["client", "operator"] = "client"
    rate: str = "10/second"
    open_tasks: int = Field(100, ge=0)


ANYONE = Caller(name="anonymous", sha256="0" * 64, role="operator", rate="", open_tasks=0)


class Callers:
    """All callers of this deployment. With none configured everyone may do everything: on loopback only."""

    def __init__(self, callers: list[Caller], redis_url: str) -> None:
        self._callers = callers
        self._limiter = SlidingWindowCounterRateLimiter(storage_from_string(_limits_url(redis_url)))

    def identify(self, authorization: str) -> Caller:
        """Whose request this is, by its `Authorization` header; raises Unauthorized, RateLimited."""
        if not self._callers:
            return ANYONE
        caller = self._holder(authorization.removeprefix("Bearer ") if authorization.startswith("Bearer ") else "")
        if caller.rate:
            self._count(caller)
        return caller

    def _holder(self, key: str) -> Caller:
        """The holder of this key. Every hash is compared, in constant time, so that time tells nothing."""
        digest = hashlib.sha256(key.encode()).hexdigest()
        found = [caller for caller in self._callers if hmac.compare_digest(caller.sha256, digest)]
        if not found:
            raise Unauthorized("Send `Authorization: Bearer KEY` with a key of this deployment.")
        return found[0]

    def _count(self, caller: Caller) -> None:
        try:
            if not self._limiter.hit(parse(caller.rate), caller.name):
                raise RateLimited(f"At most {caller.rate}.")
        except RedisError as error:
            raise StoreUnavailable("The status store does not answer; try again shortly.") from error


def load_callers(settings: Settings) -> Callers:
    """The callers of API_KEYS_FILE; raises SettingsError that names every mistake in it."""
    return Callers(_parse(settings.api_keys_file) if settings.api_keys_file else [], settings.redis_url)


def new_key(name: str, role: Literal["client", "operator"]) -> tuple[str, Caller]:
    """A fresh key, which is shown once, and what of it is kept."""
    key = f"dk_{secrets.token_urlsafe(32)}"
    return key, Caller(name=name, role=role, sha256=hashlib.sha256(key.encode()).hexdigest())


def _parse(path: str) -> list[Caller]:
    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        callers = TypeAdapter(list[Caller]).validate_python((document or {}).get("callers", []))
        for caller in callers:
            if caller.rate:
                parse(caller.rate)
    except (OSError, yaml.YAMLError, AttributeError) as error:
        raise SettingsError(f"API_KEYS_FILE: {path} cannot be read: {error}") from None
    except ValidationError as error:
        lines = (f"{path}: callers.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise SettingsError("\n".join(lines)) from None
    except ValueError as error:
        raise SettingsError(f"{path}: {error}") from None
    return callers


def _limits_url(redis_url: str) -> str:
    """The limits library's spelling of a Redis address."""
    return "redis+unix" + redis_url.removeprefix("unix") if redis_url.startswith("unix:") else redis_url
