"""What Redis knows about jobs, workers and webhooks, counted when Prometheus asks the courier.

These numbers belong to no process: they outlive all of them, and a second courier tells the same ones.
"""

from collections.abc import Iterator
from contextlib import suppress

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from redis import Redis

from app.errors import JOB_CODES, BrokerUnavailable, StoreUnavailable
from app.jobs import ask
from app.quarantine import MESSAGES, TASKS
from app.services import Services
from app.webhooks import OUTBOX
from app.workers import WorkerState

# How a job may end, as it is counted.
ENDS = ("succeeded", *JOB_CODES)


class Census(Collector):
    """Tells nothing but who answers while Redis is away: a number that is not known is not told."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def describe(self) -> list[Metric]:
        """Nothing: it is not asked before it is registered, when Redis may be away."""
        return []

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("darkroom_store_up", "Whether Redis answers the courier.")
        broker = GaugeMetricFamily("darkroom_broker_up", "Whether the broker answers the courier.")
        broker.add_metric([], self._broker_answers())
        try:
            found = [
                *self._queues(),
                *self._jobs(),
                self._finished(),
                *self._workers(),
                self._quarantine(),
                self._webhooks(),
            ]
        except StoreUnavailable:
            found = []
        up.add_metric([], 1 if found else 0)
        yield from (up, broker, *found)

    def _broker_answers(self) -> bool:
        with suppress(BrokerUnavailable):
            self._services.check_broker()
            return True
        return False

    def _queues(self) -> list[Metric]:
        queued = GaugeMetricFamily("darkroom_jobs_queued", "Jobs that wait for a worker.", labels=["queue"])
        oldest = GaugeMetricFamily(
            "darkroom_oldest_queued_seconds", "For how long the first in line has waited, if not low.", labels=["queue"]
        )
        now = self._services.jobs.now()
        for queue in self._services.catalogue.queues():
            since = self._waits_since(f"jobs:queued:{queue}")
            queued.add_metric([queue], self._services.jobs.queue_depth(queue))
            oldest.add_metric([queue], max(now - since, 0) if since else 0)
        return [queued, oldest]

    def _jobs(self) -> list[Metric]:
        opened = GaugeMetricFamily("darkroom_jobs_open", "Jobs accepted and not done.", labels=["model_version"])
        now = self._services.jobs.now()
        for spec in self._services.catalogue.all():
            opened.add_metric([spec.model_version], self._open(spec.model_version, now))
        return [
            opened,
            self._size("darkroom_jobs_running", "Jobs that a worker holds.", "jobs:leases"),
            self._size("darkroom_jobs_awaiting_upload", "Jobs whose input has not come.", "jobs:uploads"),
            self._size("darkroom_jobs_unconfirmed", "Jobs on their way into the broker.", "jobs:unconfirmed"),
        ]

    def _finished(self) -> Metric:
        finished = CounterMetricFamily(
            "darkroom_jobs_finished",
            "Jobs that ended, each one once: `succeeded`, or the code of its error.",
            labels=["model_version", "outcome"],
        )
        known = dict.fromkeys(f"{spec.model_version} {end}" for spec in self._services.catalogue.all() for end in ENDS)
        # There at 0 before there is one: for Prometheus a number that begins at 1 has not risen.
        for name, count in {**known, **ask(lambda: self._redis.hgetall("jobs:finished"))}.items():
            finished.add_metric(name.split(" "), int(count or 0))
        return finished

    def _workers(self) -> list[Metric]:
        workers = self._services.workers.all()
        serving = GaugeMetricFamily(
            "darkroom_model_workers",
            "Workers that are ready to serve a model; `without_worker` is what its jobs meet where there is none.",
            labels=["model_version", "queue", "without_worker"],
        )
        for spec in self._services.catalogue.all():
            of_queue = (worker for worker in workers if worker.queue == spec.queue)
            count = sum(worker.status_of(spec.model_version) == "ready" for worker in of_queue)
            serving.add_metric([spec.model_version, spec.queue, spec.without_worker], count)
        return [serving, self._by_state(workers)]

    def _by_state(self, workers: list[WorkerState]) -> Metric:
        there = GaugeMetricFamily("darkroom_workers", "Workers by how they stand.", labels=["queue", "state"])
        for queue in self._services.catalogue.queues():
            for state in ("loading", "ready", "failed"):
                there.add_metric([queue, state], sum((w.queue, w.state) == (queue, state) for w in workers))
        return there

    def _webhooks(self) -> Metric:
        return self._size("darkroom_webhooks_pending", "Webhooks still to be delivered.", OUTBOX)

    def _quarantine(self) -> Metric:
        kept = GaugeMetricFamily(
            "darkroom_quarantine_entries", "What an operator has to look at, tasks or messages.", labels=["kind"]
        )
        for kind, key in (("task", TASKS), ("message", MESSAGES)):
            kept.add_metric([kind], self._count(key))
        return kept

    def _size(self, name: str, help_text: str, key: str) -> Metric:
        family = GaugeMetricFamily(name, help_text)
        family.add_metric([], self._count(key))
        return family

    def _count(self, key: str) -> int:
        return int(ask(lambda: self._redis.zcard(key)))

    def _waits_since(self, key: str) -> float | None:
        """Since when the first in line waits; its place there may be from before a worker had it and was lost."""
        first = ask(lambda: self._redis.zrange(key, 0, 0, withscores=True))
        if not first:
            return None
        task_id, place = first[0]
        queued_at = ask(lambda: self._redis.hget(f"job:{task_id}", "queued_at"))
        return max(float(queued_at or 0), float(place))

    def _open(self, model_version: str, now: float) -> int:
        # Sorted by deadline, and nothing is open long after that: a record that was lost leaves its id behind.
        return int(ask(lambda: self._redis.zcount(f"jobs:model:{model_version}", now - 3600, "+inf")))

    @property
    def _redis(self) -> Redis:
        return self._services.redis
