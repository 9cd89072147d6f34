"""The sweep and the store: pictures that come in time, too late or never, and those that nobody asks for any more."""

import dataclasses
import itertools
import os
import time
import uuid
from types import SimpleNamespace

from app.courier import Courier
from app.errors import StorageUnavailable
from app.intake import Intake, input_name
from app.record import Phase, Status
from tests.things import awaiting, ids, pass_time, picture


def test_a_job_whose_picture_has_arrived_is_started(courier, services, published):
    task_id = awaiting(services)
    services.storage.put(input_name(task_id), picture(), "image/png")
    courier.sweep()
    assert services.jobs.get(task_id).phase is Phase.QUEUED
    assert ids(published) == [task_id]


def test_a_job_whose_picture_may_still_come_waits(courier, services, published):
    task_id = awaiting(services)
    courier.sweep()
    assert (services.jobs.get(task_id).phase, published) == (Phase.AWAITING_UPLOAD, [])


def test_a_job_whose_picture_never_came_fails(courier, services):
    task_id = awaiting(services)
    pass_time(services.redis, task_id, "upload_expires_at", "uploads")
    courier.sweep()
    ended = services.jobs.get(task_id)
    assert (ended.status, ended.error["code"]) == (Status.FAILED, "upload_expired")


def test_a_bucket_that_is_away_is_asked_once_a_sweep_for_all_that_wait(services, tmp_path):
    asked = []

    def size(name):
        asked.append(name)
        raise StorageUnavailable("The bucket does not answer.")

    # The sign of life comes between two jobs too, however long a sweep takes.
    sign = tmp_path / "alive"
    settings = services.settings.model_copy(update={"alive_file": str(sign)})
    away = dataclasses.replace(
        services, storage=SimpleNamespace(size=size, url_of=services.storage.url_of), settings=settings
    )
    late, *_ = [awaiting(services) for _ in range(3)]
    pass_time(services.redis, late, "upload_expires_at", "uploads")
    Courier(away).sweep()
    assert len(asked) == 1
    assert sign.exists()
    Courier(services).sweep()
    assert services.jobs.get(late).error["code"] == "upload_expired"


def test_a_slow_bucket_has_a_sweeps_time_and_the_next_sweep_goes_on_where_that_was_over(services):
    asked, now = [], SimpleNamespace(seconds=0.0)

    def size(name):
        asked.append(name)
        now.seconds += services.settings.sweep_interval * 0.6

    slow = SimpleNamespace(size=size, url_of=services.storage.url_of)
    courier = Courier(dataclasses.replace(services, storage=slow, clock=lambda: now.seconds))
    waiting = [input_name(awaiting(services)) for _ in range(3)]
    courier.sweep()
    assert len(asked) == 2
    courier.sweep()
    assert sorted(asked) == sorted(waiting)
    courier.sweep()
    assert len(asked) == 5, "from the beginning again"


def test_a_picture_that_came_in_the_last_moment_counts(courier, services, published):
    task_id = awaiting(services)
    services.storage.put(input_name(task_id), picture(), "image/png")
    pass_time(services.redis, task_id, "upload_expires_at", "uploads")
    courier.sweep()
    assert (services.jobs.get(task_id).phase, len(published)) == (Phase.QUEUED, 1)


def test_an_upload_that_is_started_at_the_last_moment_is_not_given_up(services):
    task_id = awaiting(services)
    services.redis.hset(f"job:{task_id}", "upload_expires_at", 0)

    class Late:
        """A bucket whose answer is old when it comes: the client has uploaded, and said so, meanwhile."""

        def __getattr__(self, name):
            return getattr(services.storage, name)

        def size(self, name):
            found = services.storage.size(name)
            services.storage.put(name, picture(), "image/png")
            Intake(services).start(services.jobs.get(task_id))
            return found

    Courier(dataclasses.replace(services, storage=Late())).sweep()
    assert services.jobs.get(task_id).phase is Phase.QUEUED


def test_a_folder_loses_what_is_older_than_results_are_kept(courier, services):
    storage, kept, task_id = services.storage, services.settings.result_ttl, uuid.uuid4()
    old = [f"output/{task_id}.png", f"output/{task_id}-1.png", f"output/.{task_id}.png.1a2b3c4d"]
    old += [f"input/{task_id}", f"input/{task_id}-mask"]
    ages = dict.fromkeys(old, kept + 7200) | {f"output/{uuid.uuid4()}.png": kept + 3500, "output/thesis.png": 1e8}
    for name, age in ages.items():
        storage.put(name, picture(), "image/png")
        moment = time.time() - age
        os.utime(storage.path(name), (moment, moment))
    courier.sweep()
    left = [storage.size(name) is not None for name in ages]
    assert left == [False] * len(old) + [True, True], "a record is there for longer, and the last one is not ours"


def test_a_folder_that_is_slow_holds_up_no_sweep_and_is_gone_through_by_the_next_ones(services):
    old = time.time() - services.settings.result_ttl - 7200
    names = [f"output/{uuid.uuid4()}.png" for _ in range(3)]
    for name in names:
        services.storage.put(name, picture(), "image/png")
        os.utime(services.storage.path(name), (old, old))
    # Each look at the clock finds that the time of a sweep has passed.
    clock = itertools.count(step=services.settings.sweep_interval)
    courier = Courier(dataclasses.replace(services, clock=lambda: next(clock)))
    there = []
    for _ in range(4):
        courier.sweep()
        there.append(sum(services.storage.size(name) is not None for name in names))
    assert there == [2, 1, 0, 0]


def test_uploads_of_the_second_page_are_seen_by_the_next_sweep_and_then_the_first_again(
    courier, services, jobs, monkeypatch
):
    monkeypatch.setattr("app.courier.PAGE", 2)
    waiting = [awaiting(services) for _ in range(5)]
    for number, task_id in enumerate(waiting):
        services.redis.zadd("jobs:uploads", {task_id: services.jobs.now() + 100 + number})

    def begun():
        courier.sweep()
        return [number for number, task_id in enumerate(waiting) if jobs.get(task_id).phase is Phase.QUEUED]

    for number in (0, 4):
        services.storage.put(input_name(waiting[number]), picture(), "image/png")
    assert [begun(), begun(), begun()] == [[0], [0], [0, 4]]
    services.storage.put(input_name(waiting[1]), picture(), "image/png")
    assert begun() == [0, 1, 4]
