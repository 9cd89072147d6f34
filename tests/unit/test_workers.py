"""Which workers are there, and what they serve."""

import json
import threading
from dataclasses import replace

import pytest

from app.errors import StoreUnavailable
from app.services import make_redis
from app.workers import FRESH, TTL, ModelState, WorkerRegistry, WorkerState

ANN = WorkerState("ann", "gen.tiny", "ready", ("one-1", "two-1"), version="7")


@pytest.fixture
def registry(services):
    return services.workers


def silence(services, name, seconds=TTL + 1):
    """As if this worker had said its last word so long ago."""
    entry = json.loads(services.redis.hget("workers", name))
    services.redis.hset("workers", name, json.dumps({**entry, "at": entry["at"] - seconds}))


def test_a_worker_is_known_as_it_said(registry):
    registry.announce(ANN)
    assert (registry.get("ann"), registry.all()) == (ANN, [ANN])


def test_the_last_word_of_a_worker_counts(registry):
    registry.announce(replace(ANN, state="loading"))
    registry.announce(ANN)
    assert registry.all() == [ANN]


def test_a_silent_worker_is_gone_and_forgotten(registry, services):
    registry.announce(ANN)
    registry.announce(replace(ANN, name="bob"))
    silence(services, "ann")
    silence(services, "bob", TTL - 2)
    assert [worker.name for worker in registry.all()] == ["bob"]
    assert services.redis.hkeys("workers") == ["bob"]


def test_a_worker_of_a_newer_version_may_say_more(registry, services):
    ann = replace(ANN, loads=(ModelState("one-1", "cpu", 0.5, 100, 200, "aa"),))
    registry.announce(ann)
    said = json.loads(services.redis.hget("workers", "ann"))
    newer = {**said, "mood": "calm", "loads": [{**load, "mood": "calm"} for load in said["loads"]]}
    services.redis.hset("workers", "ann", json.dumps(newer))
    assert registry.get("ann") == ann


class Clock:
    """Stands still but for whoever moves it."""

    now = 100.0

    def __call__(self):
        return self.now


def test_of_many_who_ask_at_once_one_reads_and_the_others_take_what_was_read_before(services, monkeypatch):
    clock, begun, go, readings = Clock(), threading.Event(), threading.Event(), []
    registry = WorkerRegistry(services.redis, clock)
    services.workers.announce(ANN)
    assert registry.all() == [ANN]
    fetch = registry._fetch

    def slow():
        readings.append(begun.set())
        assert go.wait(10)
        return fetch()

    monkeypatch.setattr(registry, "_fetch", slow)
    clock.now += 2 * FRESH
    reader = threading.Thread(target=registry.all)
    reader.start()
    assert begun.wait(10)
    assert [registry.all() for _ in range(3)] == [[ANN]] * 3
    go.set()
    reader.join(10)
    assert len(readings) == 1


def test_nobody_goes_by_a_reading_that_is_older_than_a_workers_silence(services, monkeypatch):
    clock = Clock()
    registry = WorkerRegistry(services.redis, clock)
    services.workers.announce(ANN)
    assert registry.all() == [ANN]
    # Somebody reads, and Redis does not answer them.
    assert registry._reading.acquire()
    services.workers.leave(ANN.name)
    clock.now += TTL
    assert registry.all() == [ANN]
    clock.now += 1
    assert registry.all() == []


def test_a_fleet_that_takes_long_to_read_is_read_less_often(services, monkeypatch):
    clock, readings = Clock(), []
    registry = WorkerRegistry(services.redis, clock)

    def slow():
        readings.append(clock.now)
        clock.now += 0.1
        return [ANN]

    monkeypatch.setattr(registry, "_fetch", slow)
    for _ in range(100):
        registry.all()
        clock.now += 0.05
    # A tenth of five seconds, and the first.
    assert len(readings) == 5


def test_however_long_a_fleet_takes_to_read_it_is_read_within_a_workers_silence(services, monkeypatch):
    clock, readings = Clock(), []
    registry = WorkerRegistry(services.redis, clock)

    def slower():
        readings.append(clock.now)
        clock.now += TTL / 3
        return [ANN]

    monkeypatch.setattr(registry, "_fetch", slower)
    registry.all()
    clock.now += TTL / 2
    registry.all()
    assert len(readings) == 2


def test_a_worker_that_leaves_is_gone(registry):
    registry.announce(ANN)
    registry.leave("ann")
    registry.leave("ann")
    assert (registry.get("ann"), registry.all()) == (None, [])


def test_a_store_that_does_not_answer_is_told_as_such(settings):
    away = WorkerRegistry(make_redis(settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"}), "web"))
    for ask in (away.all, lambda: away.get("ann"), lambda: away.announce(ANN), lambda: away.leave("ann")):
        with pytest.raises(StoreUnavailable):
            ask()
