"""The Celery app: its settings with the reason for each, its queues, and its tasks, which are thin.

The record in Redis is the truth about a job (jobs.py). Celery brings the message to one worker at a time and
brings it again when that worker is gone; it may do so twice, late, or to the wrong one.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import structlog
from celery import Celery, shared_task
from kombu import Exchange, Queue
from kombu.transport import TRANSPORT_ALIASES

from app import alive, tls
from app.errors import JobError
from app.models import Catalogue
from app.record import Job
from app.settings import Settings

log = structlog.get_logger("darkroom.tasks")

QUARANTINE = "quarantine"
GENERATE = "darkroom.generate"

# Seconds that a web process gives the broker for one answer. A hung broker costs three of them (publish, close,
# connect once more), and a POST must answer 503 within two seconds.
PUBLISH_TIMEOUT = 0.5

# The longest pause between two tries of a worker to reach the broker; its sign of life is looked for each 30 s.
ABSENCE_SECONDS = 10

DAY = 86_400

# More than any child holds: without WORKER_MAX_MEMORY the pool ends one only when it says so itself (worker.py).
RECYCLE_KIB = 2**40


def make_celery(settings: Settings, catalogue: Catalogue, role: str) -> Celery:
    """The Celery app of one process. Opens no connection."""
    app = Celery("darkroom", set_as_current=role == "worker")
    app.conf.update(_COMMON, **_broker(settings, catalogue, role))
    if role == "worker":
        app.conf.update(include=["app.worker"], **_worker(settings))
    return app


_COMMON: dict[str, Any] = {
    "task_serializer": "json",
    "accept_content": ["json"],
    "enable_utc": True,
    "task_publish_retry_policy": {"max_retries": 1, "interval_start": 0, "interval_max": 0.2},
    # A typo in a queue's name must fail, not make a queue that nobody consumes.
    "task_create_missing_queues": False,
    "broker_connection_timeout": PUBLISH_TIMEOUT,
}


def _broker(settings: Settings, catalogue: Catalogue, role: str) -> dict[str, Any]:
    url = tls.redis_url(settings.broker_url, settings)
    common = {"broker_url": url, "task_default_exchange_type": "topic", **tls.amqp_options(settings)}
    default = {"task_default_queue": catalogue.default.queue, "task_default_routing_key": catalogue.default.queue}
    make = _embedded if settings.embedded else _rabbitmq
    return {**common, **default, **make(settings, catalogue, role)}


def _rabbitmq(_: Settings, catalogue: Catalogue, role: str) -> dict[str, Any]:
    # A worker publishes Celery's events alone, and must not wait for a broker that takes none now.
    transport: dict[str, Any] = {}
    if role != "worker":
        # The broker's own word that the message is safe, or an error. Nothing but the socket's own timeout bounds a
        # broker that hangs or holds publishers back.
        transport = {"confirm_publish": True, "read_timeout": PUBLISH_TIMEOUT, "write_timeout": PUBLISH_TIMEOUT}
    return {
        "broker_transport_options": transport,
        "task_queues": [_work_queue(name) for name in catalogue.queues()] + [_quorum(QUARANTINE)],
        "task_default_queue_type": "quorum",
    }


def _embedded(settings: Settings, catalogue: Catalogue, role: str) -> dict[str, Any]:
    # By its aliases: kombu knows only from them that a `rediss://` is to be spoken to in TLS.
    TRANSPORT_ALIASES.update(dict.fromkeys(("redis", "rediss"), "app.transport:Transport"))
    # Far above the time limit: a message must not come again while its job is at work. Leases find lost jobs.
    options = {"visibility_timeout": 4 * settings.time_limit, "unacked_restore_interval": 5}
    timeouts = (
        {} if role == "worker" else {"socket_timeout": PUBLISH_TIMEOUT, "socket_connect_timeout": PUBLISH_TIMEOUT}
    )
    return {
        "broker_transport_options": {**options, **timeouts},
        "task_queues": [Queue(name, Exchange(name, type="topic"), routing_key=name) for name in catalogue.queues()],
    }


def _work_queue(name: str) -> Queue:
    """A quorum queue behind which stands quarantine, for what no worker survives or can read."""
    return _quorum(
        name,
        **{
            # High: every restart of a worker counts as a delivery. Our own attempts end a job long before.
            "x-delivery-limit": 20,
            "x-dead-letter-exchange": QUARANTINE,
            "x-dead-letter-routing-key": QUARANTINE,
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        },
    )


def _quorum(name: str, **arguments: Any) -> Queue:
    exchange = Exchange(name, type="topic", durable=True)
    return Queue(
        name, exchange, routing_key=name, durable=True, queue_arguments={"x-queue-type": "quorum", **arguments}
    )


def _worker(settings: Settings) -> dict[str, Any]:
    return {
        "result_backend": celery_url(tls.redis_url(settings.redis_url, settings)),
        # Nothing of ours reads it: the record has it all.
        "result_expires": min(settings.result_ttl, DAY),
        # Without it a worker acknowledges jobs unrun while Redis is away.
        "result_backend_always_retry": True,
        "result_backend_max_sleep_between_retries_ms": 2000,
        "redis_socket_connect_timeout": 2,
        "redis_socket_timeout": 5,
        "worker_consumer": "app.consumer:Consumer",
        # One job at a time, in a child that is a fresh interpreter: CUDA does not survive a fork.
        "worker_pool": "prefork",
        "worker_concurrency": 1,
        "worker_pool_start_method": "spawn",
        "worker_max_memory_per_child": settings.worker_max_memory // 1024 or RECYCLE_KIB,
        # A replacement child may load its models for this long.
        "worker_proc_alive_timeout": 900,
        "worker_prefetch_multiplier": 1,
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        # The record says so already.
        "task_track_started": False,
        "worker_deduplicate_successful_tasks": False,
        # The running job goes on when the broker goes away: its lease keeps a second run from starting.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        # Whichever job of the turn it is that hangs.
        "task_time_limit": settings.time_limit + settings.worker_turn,
        "broker_heartbeat": 20,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_channel_error_retry": True,
        "worker_send_task_events": True,
        "worker_hijack_root_logger": False,
        "worker_enable_remote_control": True,
    }


def declare_queues(app: Celery, settings: Settings) -> None:
    """Make every queue of the catalogue, and quarantine, to which the broker drops what it gives up on.

    A worker declares by itself only what it consumes. Waits for as long as the broker is away, and lives meanwhile.
    """
    with app.connection_for_write() as connection:
        missed = partial(_tell_of_absence, settings, connection.as_uri())
        connection.ensure_connection(missed, interval_max=ABSENCE_SECONDS)
        for queue in app.amqp.queues.values():
            queue(connection.default_channel).declare()


def _tell_of_absence(settings: Settings, address: str, error: Exception, seconds: float) -> None:
    alive.beat(settings)
    log.warning("broker.away", broker=address, reason=str(error), again_in=seconds)


def celery_url(redis_url: str) -> str:
    """Celery's spelling of a Redis address: its own word for a Unix socket."""
    return "redis+socket" + redis_url.removeprefix("unix") if redis_url.startswith("unix:") else redis_url


_run: Callable[[Job], dict[str, Any]] | None = None


def serve(run: Callable[[Job], dict[str, Any]]) -> None:
    """From now on this process runs jobs: the child of a worker, once its models are there."""
    global _run
    _run = run


@shared_task(name=GENERATE, bind=True, throws=(JobError,))
def generate(task: Any, message: dict[str, Any]) -> dict[str, Any]:
    """Run one job. A job that FAILED fails here too, so that Flower and the exporter tell the truth."""
    if _run is None:
        raise RuntimeError("no models are loaded in this process")
    return _run(Job.from_message(message, task.request.get("deadline_at")))
