"""Several queued jobs made by one call of their model, on a real Redis and a real folder."""

import io
import signal

import pytest
from PIL import Image

from app.errors import Canceled, DeviceLost, GpuOutOfMemory, SafetyBlocked
from app.record import output_name
from tests.stack import until
from tests.things import job, lease_runs_out, params, runner, take_over

SIGTERM = -(256 - signal.SIGTERM)


class Press:
    """A model that makes up to four at once; `during` is called after the first step of a batch."""

    provenance = {"weights_sha256": "0"}  # noqa: RUF012

    def __init__(self, during=lambda: None, most=4):
        self.most_together, self.during, self.calls = most, during, []

    def generate(self, params, source, on_step):
        self.calls.append(1)
        on_step(1, 1)
        for index in range(params.num_images):
            yield paint(params, index)

    def together(self, jobs, on_steps):
        self.calls.append(len(jobs))
        for step in (1, 2):
            for told in on_steps:
                told(step, 2)
            if step == 1:
                self.during()
        return [paint(job) for job in jobs]


def paint(params, index=0):
    return Image.new("RGB", (params.width, params.height), (params.seed + index, 0, 0))


@pytest.fixture
def queue(services):
    """Queues so many jobs that go together, with seeds from 1."""

    def make(count, **changes):
        jobs = [
            job(**{"seed": seed + 1, "seed_drawn": True, "prompt": f"job {seed}", **changes}) for seed in range(count)
        ]
        for new in jobs:
            services.jobs.create(new)
        return jobs

    return make


def turn(services, model, own):
    return runner(services, {"tiny-scenes-1": model}).run(own)


def states(services, jobs):
    return [services.jobs.get(done.task_id).status for done in jobs]


def cost_a_worker(services, lost):
    services.jobs.claim(lost.task_id, "lost", "worker-0")
    lease_runs_out(services.redis, lost.task_id)
    services.jobs.requeue(lost.task_id)


def red(services, task_id):
    with Image.open(io.BytesIO(services.storage.get(output_name(task_id, 0), 10**6))) as image:
        return image.getpixel((0, 0))[0]


def test_jobs_that_go_together_are_one_call_and_each_gets_its_own_picture(services, queue):
    jobs, press = queue(3), Press()
    assert turn(services, press, jobs[0]) == {"task_id": jobs[0].task_id, "verdict": "succeeded"}
    assert press.calls == [3]
    assert states(services, jobs) == ["SUCCEEDED"] * 3
    assert [red(services, done.task_id) for done in jobs] == [1, 2, 3]
    assert {services.jobs.get(done.task_id).metrics["batch_size"] for done in jobs} == {3}


def test_the_messages_of_mates_find_nothing_to_do(services, queue):
    jobs, press = queue(2), Press()
    assert [turn(services, press, each)["verdict"] for each in jobs] == ["succeeded", "done"]
    assert press.calls == [2]


def test_a_batch_is_never_larger_than_the_model_allows(services, queue):
    jobs, press = queue(6), Press(most=4)
    turn(services, press, jobs[0])
    assert states(services, jobs) == ["SUCCEEDED"] * 4 + ["PENDING"] * 2


def test_a_model_that_makes_one_at_a_time_leaves_the_others_in_line(services, queue):
    jobs, press = queue(2), Press(most=1)
    turn(services, press, jobs[0])
    assert (press.calls, states(services, jobs)) == ([1], ["SUCCEEDED", "PENDING"])


def test_a_job_that_names_its_seed_is_made_alone_and_so_to_the_bit(services, queue):
    jobs, press = queue(2, seed_drawn=False), Press()
    turn(services, press, jobs[0])
    assert (press.calls, states(services, jobs)) == ([1], ["SUCCEEDED", "PENDING"])


def test_a_job_of_several_pictures_is_made_alone(services, queue):
    jobs, press = queue(2, num_images=2), Press()
    turn(services, press, jobs[0])
    assert (press.calls, states(services, jobs)) == ([1], ["SUCCEEDED", "PENDING"])


@pytest.mark.parametrize("gone", [0, 1])
def test_who_cancels_within_a_batch_ends_alone(services, queue, gone):
    jobs = queue(3)
    press = Press(during=lambda: services.jobs.cancel(jobs[gone].task_id))
    if gone == 0:
        with pytest.raises(Canceled):
            turn(services, press, jobs[0])
    else:
        turn(services, press, jobs[0])
    assert states(services, jobs) == ["FAILED" if number == gone else "SUCCEEDED" for number in range(3)]
    assert services.jobs.get(jobs[gone].task_id).error["code"] == "canceled"


def test_a_batch_that_everybody_has_left_stops_at_a_step_soon_after(services, queue):
    jobs, heard = queue(2), []

    class Endless(Press):
        def together(self, jobs, on_steps):
            self.during()
            try:
                until(lambda: any(told(1, 1000) for told in on_steps), 10, "the batch is stopped")
            except Canceled:
                heard.append(len(jobs))
                raise

    press = Endless(during=lambda: [services.jobs.cancel(each.task_id) for each in jobs])
    with pytest.raises(Canceled):
        turn(services, press, jobs[0])
    assert (heard, states(services, jobs)) == ([2], ["FAILED", "FAILED"])


def test_a_job_whose_claim_was_lost_is_left_to_its_new_worker(services, queue):
    jobs = queue(2)

    turn(services, Press(during=lambda: take_over(services, jobs[1].task_id)), jobs[0])
    assert states(services, jobs) == ["SUCCEEDED", "PENDING"]
    services.jobs.renew(jobs[1].task_id, "t2")


class Picky(Press):
    """A model that fails at the seed 2, and with it every batch that holds it."""

    def generate(self, params, source, on_step):
        if params.seed == 2:
            raise GpuOutOfMemory("too large")
        yield from super().generate(params, source, on_step)

    def together(self, jobs, on_steps):
        for made in super().together(jobs, on_steps):
            if made.getpixel((0, 0)) == (2, 0, 0):
                raise RuntimeError("one of them is bad")
        return []


def test_who_has_cost_a_worker_comes_after_the_others_and_by_itself(services, queue):
    lead, tried, fresh = jobs = queue(3)
    services.jobs.claim(tried.task_id, "lost", "worker-0")
    lease_runs_out(services.redis, tried.task_id)
    services.jobs.requeue(tried.task_id)
    press = Press()
    made_alone = press.generate

    def alone(params, source, on_step):
        assert states(services, [lead, fresh]) == ["SUCCEEDED"] * 2
        return made_alone(params, source, on_step)

    press.generate = alone
    turn(services, press, lead)
    assert (press.calls, states(services, jobs)) == ([2, 1], ["SUCCEEDED"] * 3)


def test_a_call_that_fails_is_tried_again_job_by_job(services, queue):
    jobs, picky = queue(3), Picky()
    turn(services, picky, jobs[0])
    assert picky.calls == [3, 1, 1]
    assert states(services, jobs) == ["SUCCEEDED", "FAILED", "SUCCEEDED"]
    assert services.jobs.get(jobs[1].task_id).error["code"] == "gpu_out_of_memory"
    assert services.jobs.get(jobs[0].task_id).metrics["batch_size"] == 1


def test_a_model_that_ends_its_process_fails_the_jobs_it_does_so_for_and_no_other(services, queue):
    """Were they handed back instead, they would come round for ever: a handed back job counts no attempt."""

    class Exiting(Press):
        def generate(self, params, source, on_step):
            if params.seed == 2:
                raise SystemExit(1)
            yield from super().generate(params, source, on_step)

        def together(self, jobs, on_steps):
            raise SystemExit(1)

    jobs = queue(3)
    turn(services, Exiting(), jobs[0])
    assert states(services, jobs) == ["SUCCEEDED", "FAILED", "SUCCEEDED"]
    assert services.jobs.get(jobs[1].task_id).error["code"] == "internal"


def test_jobs_that_do_not_fit_into_memory_together_are_made_alone(services, queue):
    class Full(Press):
        def together(self, jobs, on_steps):
            return None

    jobs, full = queue(2), Full()
    turn(services, full, jobs[0])
    assert (full.calls, states(services, jobs)) == ([1, 1], ["SUCCEEDED"] * 2)


def test_a_flagged_picture_fails_its_own_job_only(services, queue):
    class Strict(Press):
        def together(self, jobs, on_steps):
            return [SafetyBlocked([True]) if job.seed == 2 else paint(job) for job in jobs]

    jobs = queue(3)
    turn(services, Strict(), jobs[0])
    assert states(services, jobs) == ["SUCCEEDED", "FAILED", "SUCCEEDED"]


def test_a_worker_that_must_stop_hands_the_whole_batch_back(services, queue):
    def stop():
        raise SystemExit(SIGTERM)

    jobs = queue(3)
    with pytest.raises(SystemExit):
        turn(services, Press(during=stop), jobs[0])
    after = [services.jobs.get(each.task_id) for each in jobs]
    assert [(each.phase, each.attempt) for each in after] == [("QUEUED", 0)] * 3
    turn(services, Press(), jobs[0])
    assert states(services, jobs) == ["SUCCEEDED"] * 3


def test_a_device_that_fails_leaves_every_job_to_its_lease(services, queue):
    def fail():
        raise DeviceLost("CUDA error")

    jobs = queue(2)
    with pytest.raises(DeviceLost):
        turn(services, Press(during=fail), jobs[0])
    assert {services.jobs.get(each.task_id).phase for each in jobs} <= {"STARTING", "RUNNING"}
    assert set(services.jobs.due("leases", older_than=-3600)) == {each.task_id for each in jobs}


def test_a_job_that_has_cost_a_worker_takes_no_other_with_it(services, queue):
    jobs, press = queue(3), Press()
    cost_a_worker(services, jobs[1])
    turn(services, press, jobs[0])
    assert press.calls == [2, 1]
    assert states(services, jobs) == ["SUCCEEDED"] * 3
    turn(services, press, jobs[1])
    assert press.calls == [2, 1]


def test_a_job_that_has_cost_a_worker_is_made_alone(services, queue):
    jobs, press = queue(3), Press()
    cost_a_worker(services, jobs[0])
    turn(services, press, jobs[0])
    assert press.calls == [1]
    assert states(services, jobs) == ["SUCCEEDED", "PENDING", "PENDING"]


def test_the_time_that_a_job_takes_is_its_share_of_the_batch(services, queue):
    jobs = queue(4)
    turn(services, Press(during=lambda: _wait(services, 0.4)), jobs[0])
    # Four steps were asked for, and the batch took a little more than 0.4 s.
    assert 0.1 <= services.jobs.standing(jobs[0]).typical_seconds(params()) * 2 / 4 < 0.35


def _wait(services, seconds):
    """Until Redis' own clock is so much further."""
    end = services.jobs.now() + seconds
    while services.jobs.now() < end:
        pass
