"""Pictures on their way into the store: it may be away for a while, and their task may end or be deleted meanwhile."""

import contextlib
import dataclasses
import math

import pytest

from app import metrics, patience
from app.errors import Canceled, DeadlineExceeded, StorageFailed, StorageUnavailable
from app.held import AT_LAST
from app.record import Phase, output_name
from tests.things import indexes, take_over
from tests.unit.painter import run


def test_a_job_that_ended_and_was_deleted_between_two_pictures_gets_no_more_of_them(away, services, queued):
    new = queued(num_images=3)

    def end():
        services.jobs.fail(new.task_id, DeadlineExceeded("too late"))
        services.jobs.delete(new.task_id)

    assert run(away(times=0, at_each=once(end)), new)["verdict"] == "claim_lost"
    assert [services.storage.size(output_name(new.task_id, index)) for index in (1, 2)] == [None, None]


def test_a_picture_that_is_stored_while_its_task_is_deleted_is_gone_with_the_next_sweep(
    services, courier, queued, monkeypatch
):
    new, put = queued(num_images=2), services.storage.put

    def slow(name, *rest):
        if name == output_name(new.task_id, 1):
            services.jobs.fail(new.task_id, DeadlineExceeded("too late"))
            services.jobs.delete(new.task_id)
        put(name, *rest)

    monkeypatch.setattr(services.storage, "put", slow)
    # As a worker, who may not: test_doctor.py.
    with monkeypatch.context() as worker:
        worker.setattr(services.storage, "delete", refuse)
        assert run(services, new)["verdict"] == "claim_lost"
        courier.sweep()
    assert services.storage.size(output_name(new.task_id, 1)), "a store that deletes nothing now is asked again"
    courier.sweep()
    assert [services.storage.size(output_name(new.task_id, index)) for index in (0, 1)] == [None, None]
    assert services.redis.exists("storage:leftovers") == 0


def refuse(*_):
    raise StorageUnavailable("Forbidden")


def test_a_picture_of_a_task_that_only_ended_meanwhile_stays_for_who_runs_it_again(services, queued, monkeypatch):
    new, put = queued(), services.storage.put

    def slow(*given):
        put(*given)
        take_over(services, new.task_id)

    monkeypatch.setattr(services.storage, "put", slow)
    assert run(services, new)["verdict"] == "claim_lost"
    assert services.storage.size(output_name(new.task_id, 0))


class Away:
    """A store that refuses so many writes, and does something at each."""

    def __init__(self, storage, times=math.inf, at_each=lambda: None):
        self._storage, self._times, self._at_each = storage, times, at_each

    def get(self, name, max_bytes):
        return self._storage.get(name, max_bytes)

    def put(self, *args):
        self._at_each()
        self._times -= 1
        if self._times >= 0:
            raise StorageUnavailable("away")
        return self._storage.put(*args)


def once(act):
    """Does it the first time only."""
    still = [act]

    def call():
        if still:
            still.pop()()

    return call


@pytest.fixture
def away(services, monkeypatch):
    """Makes services whose store is away for a while."""
    monkeypatch.setattr(patience, "PAUSE", 0.01)

    def make(**how):
        settings = services.settings.model_copy(update={"time_limit": how.pop("time_limit", 1500)})
        return dataclasses.replace(services, settings=settings, storage=Away(services.storage, **how))

    return make


def test_a_store_that_comes_back_costs_the_job_nothing_but_time(away, queued):
    new, before = queued(), metrics.STORAGE_RETRIES._value.get()
    assert run(away(times=3), new)["verdict"] == "succeeded"
    # What StorageDown looks at.
    assert metrics.STORAGE_RETRIES._value.get() == before + 3


def test_a_store_that_stays_away_until_the_deadline_fails_the_job(away, services, queued):
    new = queued(deadline_seconds=2)
    with pytest.raises(StorageFailed):
        run(away(), new)
    assert services.jobs.get(new.task_id).error["code"] == "storage_failed"


def test_a_store_that_stays_away_for_one_workers_time_hands_the_job_back(away, services, queued):
    new = queued()
    assert run(away(time_limit=2), new)["verdict"] == "claim_lost"
    left = services.jobs.get(new.task_id)
    assert (left.phase, left.attempt, indexes(services.redis, new.task_id)) == (
        Phase.QUEUED, 0, {"queued:gen.tiny", "deadlines", "unconfirmed"},
    )  # fmt: skip


@pytest.mark.parametrize(("deadline", "time_limit"), [(AT_LAST, 1500), (900, AT_LAST)])
def test_a_store_that_is_away_is_not_waited_for_in_the_time_of_the_last_word(away, queued, deadline, time_limit):
    tries, new = [], queued(deadline_seconds=deadline)
    with contextlib.suppress(StorageFailed):
        run(away(time_limit=time_limit, at_each=lambda: tries.append("once")), new)
    assert tries == ["once"]


def test_a_job_that_waits_for_its_store_can_be_canceled(away, services, queued):
    new = queued()
    with pytest.raises(Canceled):
        run(away(at_each=lambda: services.jobs.cancel(new.task_id)), new)
