"""One GPU worker: a parent that talks to the broker, and one child that holds the models and runs the jobs.

The child is a fresh interpreter (spawn), loads the models of its queue, makes one warm-up picture, and says so in
the registry. Only then does the parent begin to consume. A child that cannot load its models ends the worker.
"""

import os
import secrets
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import billiard.pool
import billiard.util
import celery.apps.worker
import structlog
from celery import bootsteps, signals
from celery.platforms import EX_FAILURE, EX_OK
from celery.worker import state as celery_state

from app import alive, metrics, telemetry, tracing
from app import settings as settings_module
from app.consumer import keep_hearing
from app.errors import BrokerUnavailable, DeviceLost, ModelLoadFailed, SettingsError, StoreUnavailable
from app.generate import Runner
from app.line import Line
from app.record import Job
from app.services import Services, build, make_redis
from app.settings import Settings
from app.tasks import RECYCLE_KIB, declare_queues, make_celery, serve
from app.workers import TTL, WorkerRegistry, WorkerState

if TYPE_CHECKING:
    from app.models.residency import Residents

log = structlog.get_logger("darkroom.worker")

# Seconds that a child may take to hand its job back.
HAND_BACK = 5

# Seconds that the broker may take to say goodbye, once nothing is at work: the last message is acknowledged within one.
# With those for handing back they are less than the patience of up.py.
GOODBYE = 4.0
LOOK = 0.1

# What tells the child that its turn ends with the job it is at.
STOP = signal.SIGUSR2

# In the parent: its child cannot go on, so neither can it.
_gave_up = threading.Event()


def _registry(settings: Settings) -> WorkerRegistry:
    """Without a worker's patience: while the store is away there must be signs of life, and ears for a stop."""
    return WorkerRegistry(make_redis(settings, "courier"))


class Herald:
    """Says at once and then every few seconds how this worker stands: who is silent is taken for gone."""

    def __init__(self, services: Services, state: Callable[[], WorkerState]) -> None:
        self._workers = _registry(services.settings)
        self._settings = services.settings
        self._state = state
        threading.Thread(target=self._repeat, name="herald", daemon=True).start()
        self.say(state)

    def say(self, state: Callable[[], WorkerState]) -> None:
        """From now on this is how it stands; a store that is away hears of it later."""
        self._state = state
        try:
            self._workers.announce(state())
        except StoreUnavailable as error:
            log.warning("worker.not_announced", reason=f"{error} ({error.__cause__})")

    def _repeat(self) -> None:
        while True:
            alive.beat(self._settings)
            time.sleep(TTL / 3)
            self.say(self._state)


class Child:
    """The process that holds the models: it runs jobs, tells how it stands, and knows when it must end."""

    def __init__(self, services: Services, models: "Residents", me: WorkerState, herald: Herald) -> None:
        self._me = me
        self._models = models
        self._herald = herald
        settings = services.settings
        line = Line(services.jobs, models, settings.model_patience)
        spent = partial(_holds_more_than, settings.worker_max_memory)
        self._runner = Runner(services, models, line, me.name, settings.worker_turn, spent)
        # The parent says so as soon as it is told to stop.
        signal.signal(STOP, lambda *_: self._runner.stop())
        herald.say(self._how_it_stands)

    def _how_it_stands(self) -> WorkerState:
        # Asked every few seconds, within a job too: the moment to see what the models hold by now.
        self._models.measure()
        return replace(self._me, state="ready", models=tuple(self._models), loads=self._models.report())

    def run(self, job: Job) -> dict[str, Any]:
        """See `Runner.run`. Memory that ran out ends the process after this job, a device that failed at once."""
        try:
            return self._runner.run(job)
        except DeviceLost as error:
            # Without a word to Celery, so that the message goes back. The lease ends by itself, and the attempt
            # counts: a job that breaks the device each time must not go round for ever.
            log.exception("worker.device_lost", worker=self._me.name)
            reason = f"The device failed: {error}"
            self._herald.say(lambda: replace(self._me, state="failed", reason=reason))
            os._exit(EX_FAILURE)
        finally:
            if self._runner.worn:
                _end_after_this_job()


def _end_after_this_job() -> None:
    """What torch keeps after it ran out of memory is best given back by ending the process.

    The pool asks after each job how much memory the child holds, and replaces one that holds too much.
    """
    billiard.pool.mem_rss = lambda: 2 * RECYCLE_KIB  # type: ignore[attr-defined]


def main(settings: Settings) -> int:
    """Run a worker until it is told to stop; the exit status."""
    telemetry.setup(settings, "worker")
    services = build(settings, "worker")
    metrics.begin("worker")
    metrics.serve(settings)
    queue = settings.worker_queue or services.catalogue.default.queue
    if not services.catalogue.on_queue(queue):
        raise SettingsError(f"WORKER_QUEUE: no model of the catalogue is on {queue}")
    app = make_celery(settings, services.catalogue, "worker")
    app.set_default()
    declare_queues(app, settings)
    app.steps["worker"].add(ModelGate)
    # Unique for each start: the broker may still hold the queues of a namesake that it has not missed yet.
    name = f"{queue}-{secrets.token_hex(4)}@{settings.worker_name}"
    # Workers know of each other by the registry: Celery's own ways cost each start a second, and a fleet its square.
    alone = {"without_mingle": True, "without_gossip": True}
    worker = app.Worker(
        hostname=name, queues=[queue], loglevel=settings.log_level, redirect_stdouts=False, quiet=True, **alone
    )
    _speak_as_one()
    _hear_of_hang_ups()
    signals.worker_shutting_down.connect(lambda **_: _leave_within(settings, worker), weak=False)
    if not settings.embedded:
        # Without a worker's patience, as the registry.
        watching = build(settings, "courier")
        _later(0, keep_hearing, worker, lambda: _has_messages(watching, queue))
    worker.start()
    _be_missed_by_nobody(settings, name)
    # A step that gives up says why; Celery keeps that as the exit code.
    if isinstance(worker.exitcode, str):
        raise ModelLoadFailed(worker.exitcode)
    # Celery forgets with which status it was told to terminate.
    return int(EX_FAILURE if _gave_up.is_set() else worker.exitcode or 0)


def _has_messages(services: Services, queue: str) -> bool:
    """Asked of Redis first: mostly there is nothing."""
    with suppress(StoreUnavailable, BrokerUnavailable):
        return services.jobs.queue_depth(queue) > 0 and services.waiting(queue) > 0
    return False


def _speak_as_one() -> None:
    """What Celery and its pool write past all logging goes where every line goes. After the Worker is made."""
    billiard.util.get_logger().propagate = True
    # With it a new child logs by itself until it has our logs.
    os.environ.pop("_MP_FORK_LOGLEVEL_", None)
    # Celery's farewell; `worker.stopping` says the same.
    celery.apps.worker.safe_say = lambda *_: None  # type: ignore[attr-defined]


def _hear_of_hang_ups() -> None:
    """SIGHUP stops a worker, unless whoever started it said that it is to be ignored (nohup).

    Celery would start itself anew, by a way in that is not ours, or do nothing at a terminal.
    """
    install = celery.apps.worker.install_worker_term_handler  # type: ignore[attr-defined]
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN

    def both(worker: Any) -> None:
        install(worker)
        # Installed after what Celery has for it.
        if ignored:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        else:
            install(worker, sig="SIGHUP")

    celery.apps.worker.install_worker_term_handler = both  # type: ignore[attr-defined]


def _be_missed_by_nobody(settings: Settings, name: str) -> None:
    with suppress(StoreUnavailable):
        # A store that is away will miss this one by itself.
        _registry(settings).leave(name)
    metrics.clear(settings)


def _leave_within(settings: Settings, worker: Any) -> None:
    """Celery waits for the running job however long it takes, and leaves as soon as it is done: bound that."""
    seconds = settings.worker_grace
    _signal_children(worker, STOP)
    # In a thread: this is the handler of a signal, which may have come in the midst of a line.
    _later(0, log.info, "worker.stopping")
    _later(seconds, _signal_children, worker, signal.SIGTERM)
    _later(seconds + HAND_BACK, _signal_children, worker, signal.SIGKILL)
    _later(0, _go_without_goodbye, settings, worker)


def _go_without_goodbye(settings: Settings, worker: Any) -> None:
    """Leave, once nothing is at work, whatever the broker says: one that holds publishers back answers no goodbye."""
    since = time.monotonic()
    end = since + settings.worker_grace + HAND_BACK + GOODBYE
    while time.monotonic() - since < GOODBYE and time.monotonic() < end:
        time.sleep(LOOK)
        if celery_state.reserved_requests and _is_any_alive(worker):
            since = time.monotonic()
    log.warning("worker.left_without_goodbye")
    # One that Celery has lost sight of, as it does over a lost connection, may have a job still: it hands that back.
    _signal_children(worker, signal.SIGTERM)
    until = min(time.monotonic() + HAND_BACK, end)
    while _is_any_alive(worker) and time.monotonic() < until:
        time.sleep(LOOK)
    _signal_children(worker, signal.SIGKILL)
    _be_missed_by_nobody(settings, worker.hostname)
    os._exit(EX_FAILURE if _gave_up.is_set() else EX_OK)


def _is_any_alive(worker: Any) -> bool:
    return any(process.is_alive() for process in _children(worker))


def _later(seconds: float, act: Callable[..., Any], *args: Any) -> None:
    timer = threading.Timer(seconds, act, args)
    timer.daemon = True
    timer.start()


def _signal_children(worker: Any, number: int) -> None:
    """SIGTERM makes the child hand its job back (held.py)."""
    for process in _children(worker):
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


def _children(worker: Any) -> list[Any]:
    """The processes of the worker's pool: one, or none once the pool has ended."""
    pool = worker.pool._pool  # noqa: SLF001, no public way
    return list(pool._pool) if pool else []  # noqa: SLF001


class ModelGate(bootsteps.StartStopStep):
    """Holds the parent back from the broker until its child has loaded the models, and ends it when that fails."""

    requires = ("celery.worker.components:Pool",)

    def start(self, parent: Any) -> None:
        workers = _registry(settings_module.load())
        while (worker := _known(workers, parent.hostname)) is None or worker.state == "loading":
            # Asked first: told to stop before there was any job, so the models need not be loaded to their end.
            if celery_state.should_stop is not None:
                _signal_children(parent, signal.SIGKILL)
                raise SystemExit(EX_OK)
            if not all(process.is_alive() for process in _children(parent)):
                raise SystemExit("The worker's child died while it was loading its models.")
            time.sleep(0.05)
        if worker.state == "failed":
            raise SystemExit(worker.reason)
        log.info("worker.ready", worker=parent.hostname, models=list(worker.models))
        threading.Thread(target=_end_when_failed, args=(workers, parent.hostname), daemon=True).start()


def _known(workers: WorkerRegistry, name: str) -> WorkerState | None:
    """How this worker stands; None while nobody has said so, or the store is away."""
    with suppress(StoreUnavailable):
        return workers.get(name)
    return None


def _end_when_failed(workers: WorkerRegistry, name: str) -> None:
    """A replacement child that cannot load its models must end the worker: its supervisor starts it afresh."""
    while (worker := _known(workers, name)) is None or worker.state != "failed":
        time.sleep(0.5)
    log.error("worker.models_failed", worker=name, reason=worker.reason)
    _gave_up.set()
    celery_state.should_terminate = EX_FAILURE  # type: ignore[assignment]


@signals.setup_logging.connect(weak=False)
def _keep_our_logs(**_: Any) -> None:
    """Celery leaves logging alone when this signal has a receiver; telemetry.setup has done it."""


@signals.task_received.connect(weak=False)
def _tell_of_task(request: Any, **_: Any) -> None:
    """In the parent: the message is here. The child's lines follow in the same trace."""
    with tracing.continued(request.request_dict.get("traceparent")):
        log.info("task.received", task_id=request.id)


@signals.worker_process_shutdown.connect(weak=False)
def _end_child(**_: Any) -> None:
    tracing.close()


@signals.worker_process_init.connect(weak=False)
def _start_child(sender: str, **_: Any) -> None:
    """In the child: load, warm up, announce. A failure ends the child at once, with its reason in the registry."""
    # A terminal tells it to all at once: what becomes of the job is the parent's to say.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    settings = settings_module.load()
    telemetry.setup(settings, "worker")
    billiard.util.get_logger().propagate = True
    services = build(settings, "worker")
    me = WorkerState(name=sender, queue=_queue_of(sender), version=settings.worker_version)
    herald = Herald(services, lambda: me)
    try:
        models = _load(services, me.queue)
    except BaseException as error:
        log.exception("worker.model_load_failed", worker=sender)
        reason = str(error)
        herald.say(lambda: replace(me, state="failed", reason=reason))
        os._exit(EX_FAILURE)
    if _holds_more_than(settings.worker_max_memory):
        log.warning("worker.loads_for_each_job", worker=sender)
    serve(Child(services, models, me, herald).run)


def _holds_more_than(limit: int) -> bool:
    """Whether the pool will replace this process after its message, by the pool's own measure; 0 is no limit."""
    return bool(0 < limit < 1024 * billiard.pool.mem_rss())  # type: ignore[attr-defined]


def _queue_of(name: str) -> str:
    # Only what stands before the first @ is ours: WORKER_NAME may hold another.
    return name.partition("@")[0].rpartition("-")[0]


def _load(services: Services, queue: str) -> "Residents":
    # Deferred: only a child loads torch.
    from app.models.residency import Residents

    models = Residents(services.catalogue.on_queue(queue), services.settings)
    models.load_all()
    return models
