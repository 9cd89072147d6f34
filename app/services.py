"""The one place that builds things: `Settings` → `Services`, for every role."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from redis import Redis
from redis.backoff import ConstantBackoff, NoBackoff
from redis.client import Pipeline
from redis.exceptions import ResponseError
from redis.retry import Retry

from app import tls
from app.callers import Callers, load_callers
from app.errors import SettingsError
from app.jobs import JobStore, takes_no_writes
from app.models import Catalogue, load_catalogue
from app.previews import Previews
from app.record import Job
from app.settings import Settings
from app.storage import Storage, make_storage
from app.workers import WorkerRegistry

if TYPE_CHECKING:
    from app.quarantine import Quarantine

Role = Literal["web", "worker", "courier"]
T = TypeVar("T")


@dataclass(frozen=True)
class Services:
    """What the roles work with.

    `publish`, `check_broker` and `waiting` (messages in a queue) raise BrokerUnavailable. `clock` is seconds since
    1970.
    """

    settings: Settings
    jobs: JobStore
    workers: WorkerRegistry
    storage: Storage
    catalogue: Catalogue
    callers: Callers
    publish: Callable[[Job], None]
    check_broker: Callable[[], None]
    waiting: Callable[[str], int]
    quarantine: "Quarantine"
    previews: Previews
    redis: Redis
    clock: Callable[[], float] = time.time


def build(settings: Settings, role: Role) -> Services:
    """Everything a process of this role needs. Opens no connection."""
    # Deferred: Celery reads the environment when it is imported, which the roles set first.
    from app.broker import Broker
    from app.quarantine import Quarantine
    from app.tasks import make_celery

    redis = make_redis(settings, role)
    catalogue = load_catalogue(settings.models_file, settings.default_model_version)
    broker = Broker(make_celery(settings, catalogue, role))
    jobs = JobStore(redis, result_ttl=settings.result_ttl, lease=settings.lease)
    return Services(
        settings=settings,
        jobs=jobs,
        workers=WorkerRegistry(redis),
        # A worker has a job to finish; in the web tier people wait.
        storage=make_storage(settings, 30 if role == "worker" else 2),
        catalogue=catalogue,
        # Only the web tier is called by anyone.
        callers=load_callers(settings, redis) if role == "web" else Callers(redis),
        publish=broker.publish,
        check_broker=broker.check,
        waiting=broker.waiting,
        quarantine=Quarantine(redis, jobs, broker, settings.result_ttl),
        # The model itself brings them, and is not to wait for a store that is away.
        previews=Previews(make_redis(settings, "web") if role == "worker" else redis),
        redis=redis,
    )


def make_redis(settings: Settings, role: Role) -> Redis:
    """A client that gives up at once where people wait, and never in a worker, whose job would be lost.

    Raises SettingsError for an option of REDIS_URL that there is not, which would show at the first command only.
    """
    options: dict[str, Any] = {"decode_responses": True, "socket_connect_timeout": 1, "health_check_interval": 30}
    if role == "worker":
        options |= {"socket_timeout": 5, "retry": Retry(ConstantBackoff(1), -1)}
    else:
        options |= {"socket_timeout": 1, "retry": Retry(NoBackoff(), 1)}
    kind = PatientRedis if role == "worker" else Redis
    client: Redis = kind.from_url(tls.redis_url(settings.redis_url, settings), **options)
    try:
        client.connection_pool.connection_class(**client.connection_pool.connection_kwargs)
    except TypeError as error:
        raise SettingsError(f"REDIS_URL: has an option that there is not ({error})") from None
    return client


class PatientRedis(Redis):
    """Asks a server that takes no writes again until it does, as its `retry` asks one that is away.

    Such a server refuses a PING too, with which a connection that was idle begins whatever it is asked.
    """

    def execute_command(self, *args: Any, **options: Any) -> Any:
        return _patiently(lambda: super(PatientRedis, self).execute_command(*args, **options))  # type: ignore[no-untyped-call]

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        return PatientPipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)


class PatientPipeline(Pipeline):
    """The same for several commands at once. Those that the server did take are sent again too."""

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        commands = list(self.command_stack)

        def ask() -> list[Any]:
            self.command_stack = list(commands)
            return super(PatientPipeline, self).execute(raise_on_error)

        return _patiently(ask)


def _patiently(ask: Callable[[], T]) -> T:
    while True:
        try:
            return ask()
        except ResponseError as error:
            if not takes_no_writes(error):
                raise
        time.sleep(1)
