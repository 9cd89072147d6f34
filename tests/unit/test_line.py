"""Whose turn it is at a worker: the order of jobs where models share one that cannot hold them all."""

from itertools import groupby

import pytest
from PIL import Image

from app.line import Line
from tests.things import job, of_a_newer_version, runner

A, B, C = "sd-turbo", "sdxl-turbo", "sdxl-base-1.0"


class Shelf(dict):
    """Models of which one is in memory at a time; `order` is how they were used, `loads` how often one came in."""

    def __init__(self, *names):
        super().__init__({name: Blank() for name in names})
        self.loaded, self.order, self.loads = {names[0]}, [], 0

    def __getitem__(self, name):
        self.loads += name not in self.loaded
        self.loaded = {name}
        self.order.append(name)
        return super().__getitem__(name)


class Blank:
    provenance = {}  # noqa: RUF012

    def generate(self, params, source, on_step):
        on_step(1, 1)
        yield Image.new("RGB", (params.width, params.height))


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def queue(services):
    """Queues a job of each of these models; the jobs."""

    def make(*names):
        jobs = [job(model_version=name, prompt=f"job {number}") for number, name in enumerate(names)]
        for new in jobs:
            services.jobs.create(new)
        return jobs

    return make


@pytest.fixture
def line(services):
    def make(models, patience=30):
        clock = Clock()
        return Line(services.jobs, models, patience, clock), clock

    return make


def first_turn(line, own):
    return next(line.turns(own))


def test_a_message_is_the_turn_of_who_is_first_in_line_when_every_model_is_in_memory(queue, line):
    """A job whose worker was lost keeps its place, and not every broker puts its message back to the front."""
    shelf = Shelf(A, B)
    shelf.loaded = {A, B}
    lost, second = queue(A, B)
    assert first_turn(line(shelf)[0], second) == lost.task_id


def test_who_is_first_and_has_no_model_here_keeps_nobody_from_their_own_messages_turn(queue, line):
    shelf = Shelf(A)
    shelf.loaded = {A}
    _, mine = queue(C, A)
    assert first_turn(line(shelf)[0], mine) == mine.task_id


def test_a_job_of_the_loaded_model_goes_before_one_whose_model_must_be_loaded(queue, line):
    other, _, mine = queue(B, B, A)
    assert first_turn(line(Shelf(A, B))[0], other) == mine.task_id


def test_who_was_passed_over_for_long_enough_goes_first(queue, line):
    other, mine = queue(B, A)
    turns, clock = line(Shelf(A, B), patience=30)
    assert first_turn(turns, other) == mine.task_id
    clock.now = 29
    assert first_turn(turns, other) == mine.task_id
    clock.now = 30
    assert first_turn(turns, other) == other.task_id


def test_patience_begins_anew_once_the_first_in_line_was_served(queue, line):
    other, mine = queue(B, A)
    turns, clock = line(Shelf(A, B), patience=30)
    for clock.now in (0, 30):
        chosen = first_turn(turns, other)
    assert chosen == other.task_id
    assert first_turn(turns, other) == mine.task_id


def test_a_job_of_a_newer_version_keeps_nobody_else_from_their_turn(queue, services):
    newer, first, second = queue(A, A, A)
    of_a_newer_version(services.redis, newer.task_id, mood="calm")
    assert [waiting.task_id for waiting in services.jobs.line(first.queue, 9)] == [first.task_id, second.task_id]


def test_no_patience_means_the_order_of_the_queue(queue, line):
    other, _ = queue(B, A)
    assert first_turn(line(Shelf(A, B), patience=0)[0], other) == other.task_id


def test_models_that_this_worker_does_not_have_are_left_to_others(queue, line):
    _, mine = queue(C, B)
    assert first_turn(line(Shelf(A, B))[0], mine) == mine.task_id


def test_a_job_whose_record_is_lost_has_its_turn_at_its_own_message(services, queue, line):
    queue(A)
    lost = job(model_version=B)
    assert first_turn(line(Shelf(A, B))[0], lost) == lost.task_id


def test_mates_are_those_in_line_that_differ_in_prompt_and_seed_only(services, line):
    wishes = [
        {"seed": 1, "negative_prompt": "bright"},
        {"seed": 2, "negative_prompt": "dark"},
        {"width": 128},
        {"num_images": 2},
        {"num_inference_steps": 5},
        {"input_url": "gs://bucket/prefix/output/x.png"},
        {"model_version": B},
        {"seed_drawn": False},
        {"prompt": "three"},
        {"prompt": "four"},
        {"prompt": "five", "negative_prompt": ""},
    ]
    lead, *others = [job(**{"seed_drawn": True, "negative_prompt": "pale", **wish}) for wish in wishes]
    for waiting in others:
        services.jobs.create(waiting)
    turns = line(Shelf(A, B))[0]
    assert turns.mates(lead, 9) == [others[0].task_id, others[7].task_id, others[8].task_id]
    assert turns.mates(lead, 2) == [others[0].task_id, others[7].task_id]
    assert turns.mates(lead, 0) == []
    assert turns.mates(others[2], 9) == []


def test_every_job_is_done_and_models_take_turns_instead_of_being_loaded_for_each(services, queue):
    jobs, shelf = queue(*[A, B] * 4), Shelf(A, B)
    worker = runner(services, shelf)
    for waiting in jobs:
        worker.run(waiting)
    assert [services.jobs.get(done.task_id).status for done in jobs] == ["SUCCEEDED"] * 8
    assert ([name for name, _ in groupby(shelf.order)], shelf.loads) == ([A, B], 1)


def test_the_turn_of_a_job_that_is_done_serves_the_one_that_was_passed_over(services, queue):
    passed_over, mine = queue(B, A)
    worker = runner(services, Shelf(A, B))
    assert worker.run(passed_over) == {"task_id": mine.task_id, "verdict": "succeeded"}
    assert worker.run(mine) == {"task_id": passed_over.task_id, "verdict": "succeeded"}


def test_two_workers_serve_a_mixed_queue_once_each(services, queue):
    jobs = queue(A, B, B, A, A, B)
    workers = [runner(services, Shelf(A, B), "one"), runner(services, Shelf(B, A), "two")]
    done = [workers[number % 2].run(waiting) for number, waiting in enumerate(jobs)]
    assert sorted(turn["task_id"] for turn in done) == sorted(waiting.task_id for waiting in jobs)
    assert {turn["verdict"] for turn in done} == {"succeeded"}


@pytest.fixture
def mixed(services):
    """Two jobs of low priority and, after them, one of normal."""
    jobs = [job(model_version=A, priority=priority) for priority in ("low", "low", "normal")]
    for new in jobs:
        services.jobs.create(new)
    return jobs


def test_a_job_of_low_priority_stands_behind_normal_ones_that_came_later(services, mixed):
    assert [services.jobs.standing(new).position for new in mixed] == [1, 2, 0]


def test_normal_jobs_go_first_whichever_message_comes_and_the_low_ones_have_their_turn_then(services, mixed):
    first, second, normal = mixed
    worker = runner(services, Shelf(A))
    served = [worker.run(new)["task_id"] for new in mixed]
    assert served == [normal.task_id, first.task_id, second.task_id]


def test_a_turn_that_goes_on_takes_normal_jobs_before_low_ones(services, mixed):
    *_, normal = mixed
    runner(services, Shelf(A), turn=30).run(mixed[1])
    began = {new.task_id: services.jobs.get(new.task_id).started_at for new in mixed}
    assert min(began, key=began.get) == normal.task_id


def test_a_job_of_low_priority_has_waited_for_a_day_when_normal_ones_pass_it_no_more(services, mixed):
    low, _, normal = mixed
    services.redis.zadd("jobs:queued:gen.tiny", {normal.task_id: services.jobs.now() + 86_400})
    assert services.jobs.standing(low).position == 0


def test_no_normal_job_waits_for_a_low_one_whose_model_is_loaded(services, line):
    low, normal = job(model_version=A, priority="low"), job(model_version=B)
    for new in (low, normal):
        services.jobs.create(new)
    assert first_turn(line(Shelf(A, B))[0], low) == normal.task_id


def test_the_lost_record_of_a_job_of_low_priority_is_made_again_by_its_message(services, queue):
    queue(A)
    lost = job(model_version=A, priority="low")
    worker = runner(services, Shelf(A))
    assert worker.run(lost) == {"task_id": lost.task_id, "verdict": "succeeded"}
    assert services.jobs.get(lost.task_id).params.priority == "low"
