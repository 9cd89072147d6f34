"""One message's turn at a worker goes on with the line, and jobs end while the next ones are made."""

import dataclasses
import signal
import threading

import pytest
from PIL import Image

from app import endings
from app.errors import GpuOutOfMemory, InputInvalid
from app.record import Phase
from tests.things import job, lease_runs_out, runner, take_over

SIGTERM = -(256 - signal.SIGTERM)
LONG = 60


class Painter:
    """A model that calls `at(number)` before its picture with that number, from 1."""

    provenance = {}  # noqa: RUF012

    def __init__(self, at=lambda number: None):
        self.at, self.made = at, 0

    def generate(self, params, source, on_step):
        self.made += 1
        self.at(self.made)
        on_step(1, 1)
        yield Image.new("RGB", (params.width, params.height))


class Store:
    """The services' store, which calls `at(number)` before it writes the picture with that number."""

    def __init__(self, storage, at):
        self._storage, self._at, self._puts = storage, at, 0

    def put(self, *picture):
        self._puts += 1
        self._at(self._puts)
        return self._storage.put(*picture)


@pytest.fixture
def queue(services):
    def make(count, **changes):
        jobs = [job(**changes) for _ in range(count)]
        for new in jobs:
            services.jobs.create(new)
        return jobs

    return make


def worker(services, model=None, turn=LONG):
    return runner(services, {"tiny-scenes-1": model or Painter()}, turn=turn)


def phases(services, jobs):
    return [services.jobs.get(each.task_id).phase for each in jobs]


def test_a_turn_goes_on_until_the_line_is_empty_and_the_other_messages_find_nothing_to_do(services, queue):
    jobs, painter = queue(4), Painter()
    one = worker(services, painter)
    assert one.run(jobs[0]) == {"task_id": jobs[0].task_id, "verdict": "succeeded"}
    assert phases(services, jobs) == [Phase.DONE] * 4
    assert [one.run(each)["verdict"] for each in jobs[1:]] == ["done"] * 3
    assert painter.made == 4


def test_a_turn_that_is_over_begins_no_other_job(services, queue):
    jobs = queue(2)
    worker(services, turn=0).run(jobs[0])
    assert phases(services, jobs) == [Phase.DONE, Phase.QUEUED]


def test_a_worker_that_is_about_to_leave_ends_its_turn_with_the_job_it_is_at(services, queue):
    jobs = queue(2)
    one = worker(services, Painter(lambda _: one.stop()))
    one.run(jobs[0])
    assert phases(services, jobs) == [Phase.DONE, Phase.QUEUED]


def test_a_worker_that_holds_too_much_memory_ends_its_turn_with_the_job_it_is_at(services, queue):
    jobs, held = queue(3), []
    painter = Painter(held.append)
    runner(services, {"tiny-scenes-1": painter}, turn=LONG, spent=lambda: len(held) > 1).run(jobs[0])
    assert phases(services, jobs) == [Phase.DONE, Phase.DONE, Phase.QUEUED]


def test_jobs_of_models_that_this_worker_does_not_have_are_left_to_others(services, queue):
    other, mine = queue(1, model_version="other-1"), queue(2)
    worker(services).run(mine[0])
    assert phases(services, [*other, *mine]) == [Phase.QUEUED, Phase.DONE, Phase.DONE]


def test_two_workers_share_a_line_and_no_job_is_made_twice(services, queue):
    jobs, painters = queue(12), [Painter(), Painter()]
    workers = [runner(services, {"tiny-scenes-1": each}, str(each), LONG) for each in painters]
    turns = [threading.Thread(target=one.run, args=[each]) for one, each in zip(workers, jobs, strict=False)]
    for turn in turns:
        turn.start()
    for turn in turns:
        turn.join(LONG)
    left = [one.run(each) for one, each in zip(workers, jobs, strict=False)]
    assert {each["verdict"] for each in left} <= {"done", "succeeded"}
    assert phases(services, jobs) == [Phase.DONE] * 12
    assert sum(each.made for each in painters) == 12


@pytest.mark.parametrize("another_waits", [True, False])
def test_a_job_that_failed_in_anothers_turn_fails_its_own_message_too(services, queue, another_waits):
    [first], [bad], [last] = queue(1), queue(1, input_url=services.storage.url_of("input/none")), queue(1)
    one = worker(services)
    assert one.run(first)["verdict"] == "succeeded"
    assert phases(services, [first, bad, last]) == [Phase.DONE] * 3
    waiting = queue(int(another_waits))
    with pytest.raises(InputInvalid.__base__, match="not there") as told:
        one.run(bad)
    assert told.value.document() == services.jobs.get(bad.task_id).error
    assert phases(services, waiting) == [Phase.DONE] * len(waiting)


def test_the_message_of_a_job_that_succeeded_does_not_fail_with_the_one_that_it_serves(services, queue):
    [first], [good] = queue(1), queue(1)
    one = worker(services)
    one.run(first)
    assert phases(services, [good]) == [Phase.DONE]
    [bad] = queue(1, input_url=services.storage.url_of("input/none"))
    assert one.run(good) == {"task_id": bad.task_id, "verdict": "failed"}
    assert services.jobs.get(bad.task_id).error["code"] == "input_invalid"
    with pytest.raises(InputInvalid.__base__, match="not there"):
        one.run(bad)


def test_a_canceled_or_overdue_job_in_the_line_does_not_end_the_turn(services, queue):
    jobs = queue(3)
    services.redis.hset(f"job:{jobs[1].task_id}", "deadline_at", 1)
    worker(services).run(jobs[0])
    assert phases(services, jobs) == [Phase.DONE] * 3
    assert services.jobs.get(jobs[1].task_id).error["code"] == "deadline_exceeded"


def test_memory_that_ran_out_ends_the_turn(services, queue):
    def run_out(number):
        if number == 2:
            raise GpuOutOfMemory("too large")

    jobs = queue(3)
    one = worker(services, Painter(run_out))
    one.run(jobs[0])
    assert (phases(services, jobs), one.worn) == ([Phase.DONE, Phase.DONE, Phase.QUEUED], True)


def test_a_picture_is_stored_while_the_next_one_is_made(services, queue):
    begun = threading.Event()

    def wait_for_the_next(number):
        assert number == 2 or begun.wait(LONG)

    jobs = queue(2)
    painter = Painter(lambda number: number == 2 and begun.set())
    slow = dataclasses.replace(services, storage=Store(services.storage, wait_for_the_next))
    worker(slow, painter).run(jobs[0])
    assert [services.jobs.get(each.task_id).status for each in jobs] == ["SUCCEEDED"] * 2


def test_no_more_than_one_jobs_pictures_wait_to_be_stored(services, queue):
    third, seen = threading.Event(), []

    def hang_at_the_first(number):
        if number == 1:
            seen.append(third.wait(0.5))

    jobs = queue(3)
    painter = Painter(lambda number: number == 3 and third.set())
    slow = dataclasses.replace(services, storage=Store(services.storage, hang_at_the_first))
    worker(slow, painter).run(jobs[0])
    assert seen == [False]
    assert phases(services, jobs) == [Phase.DONE] * 3


def test_a_job_is_not_done_before_its_picture_is_stored_whatever_the_next_one_does(services, queue):
    jobs, seen = queue(2), []
    slow = dataclasses.replace(services, storage=Store(services.storage, lambda _: seen.append(phases(services, jobs))))
    worker(slow).run(jobs[0])
    assert [stored[number] for number, stored in enumerate(seen)] == [Phase.UPLOADING] * 2


def test_who_loses_the_claim_while_its_picture_is_stored_writes_no_result(services, queue):
    jobs = queue(2)

    def lose(number):
        if number == 1:
            take_over(services, jobs[0].task_id)

    shaky = dataclasses.replace(services, storage=Store(services.storage, lose))
    assert worker(shaky).run(jobs[0])["verdict"] == "claim_lost"
    assert phases(services, jobs) == [Phase.STARTING, Phase.DONE]


def test_a_worker_that_must_stop_hands_back_the_job_it_makes_and_the_one_whose_store_hangs(
    services, queue, monkeypatch
):
    monkeypatch.setattr(endings, "LAST_SECONDS", 0.1)
    goes_on = threading.Event()

    def stop(number):
        if number == 2:
            raise SystemExit(SIGTERM)

    jobs = queue(2)
    hanging = dataclasses.replace(services, storage=Store(services.storage, lambda _: goes_on.wait(LONG)))
    with pytest.raises(SystemExit):
        worker(hanging, Painter(stop)).run(jobs[0])
    assert [(services.jobs.get(each.task_id).phase, services.jobs.get(each.task_id).attempt) for each in jobs] == [
        (Phase.QUEUED, 0)
    ] * 2
    goes_on.set()


def test_a_worker_that_must_stop_lets_a_picture_that_is_nearly_stored_be_stored(services, queue):
    def stop(number):
        if number == 2:
            raise SystemExit(SIGTERM)

    jobs = queue(2)
    with pytest.raises(SystemExit):
        worker(services, Painter(stop)).run(jobs[0])
    assert phases(services, jobs) == [Phase.DONE, Phase.QUEUED]


def test_who_has_cost_a_worker_begins_when_everyone_before_it_in_the_turn_has_ended(services, queue):
    first, tried = queue(2)
    services.jobs.claim(tried.task_id, "lost", "worker-0")
    lease_runs_out(services.redis, tried.task_id)
    services.jobs.requeue(tried.task_id)
    seen = []

    def look(_):
        before, after = phases(services, [first, tried])
        seen.append({"first is done": before is Phase.DONE, "tried waits": after is Phase.QUEUED})

    worker(services, Painter(look)).run(first)
    assert seen == [{"first is done": False, "tried waits": True}, {"first is done": True, "tried waits": False}]
