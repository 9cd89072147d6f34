"""One job from the claim to the end, with a small model on a real Redis and a real folder."""

import contextlib
import dataclasses
import hashlib
import io
import math
import signal

import pytest
from PIL import Image

from app import metrics, patience
from app.errors import (
    AttemptsExhausted,
    Canceled,
    DeadlineExceeded,
    GpuOutOfMemory,
    InputInvalid,
    Internal,
    StorageFailed,
    StorageUnavailable,
)
from app.held import AT_LAST
from app.pictures import encode
from app.record import Phase, Status, output_name
from tests.stack import until
from tests.things import deadline_passes, indexes, job, lease_runs_out, params, picture, runner, take_over

# How the pool's signal handler in the child leaves.
SIGTERM = -(256 - signal.SIGTERM)


class Painter:
    """A model that paints one colour; `before` is called with the parameters before the first step."""

    def __init__(self, before=lambda params: None):
        self.provenance = {"scheduler": "none", "weights_sha256": "0"}
        self.before = before
        self.sources = []

    def generate(self, params, source, on_step):
        self.sources.append(source)
        self.before(params)
        for _ in range(params.num_images):
            for step in range(params.num_inference_steps):
                on_step(step + 1, params.num_inference_steps)
            yield Image.new("RGB", (params.width, params.height), "red")


@pytest.fixture
def queued(services):
    """Makes queued jobs."""

    def make(**changes):
        new = job(**changes)
        services.jobs.create(new)
        services.jobs.confirm(new.task_id)
        return new

    return make


def run(services, queued_job, model=None, name="worker-1"):
    return runner(services, {"tiny-scenes-1": model or Painter()}, name).run(queued_job)


def raising(error):
    def fail(_):
        raise error

    return Painter(fail)


def test_a_job_succeeds_and_its_record_tells_about_the_stored_picture(services, queued, settings):
    new = queued()
    assert run(services, new) == {"task_id": new.task_id, "verdict": "succeeded"}
    done = services.jobs.get(new.task_id)
    data = services.storage.get(f"output/{new.task_id}.png", 10**6)
    assert (done.status, done.phase, done.worker_version) == (Status.SUCCEEDED, Phase.DONE, settings.worker_version)
    assert done.images == [
        {"index": 0, "seed": 42, "name": f"output/{new.task_id}.png", "sha256": hashlib.sha256(data).hexdigest(),
         "bytes": len(data), "width": 64, "height": 64}
    ]  # fmt: skip
    assert set(done.metrics) == {"queue_ms", "load_ms", "inference_ms", "upload_ms", "batch_size"}
    assert indexes(services.redis, new.task_id) == set()


def test_each_picture_of_several_has_its_own_seed_and_name(services, queued):
    new = queued(num_images=3)
    run(services, new)
    images = services.jobs.get(new.task_id).images
    assert [image["seed"] for image in images] == [42, 43, 44]
    assert [image["name"] for image in images] == [output_name(new.task_id, index) for index in range(3)]
    assert all(services.storage.size(image["name"]) for image in images)


def test_a_picture_carries_what_is_needed_to_make_it_again(services, queued, settings):
    new = queued(prompt="日没の海", seed=7)
    run(services, new)
    with Image.open(io.BytesIO(services.storage.get(output_name(new.task_id, 0), 10**6))) as image:
        info = image.info
    assert (info["prompt"], info["seed"], info["num_inference_steps"]) == ("日没の海", "7", "4")
    assert (info["scheduler"], info["worker_version"]) == ("none", settings.worker_version)


def test_the_model_gets_the_input_picture(services, queued):
    model, new = Painter(), job(input_url=services.storage.url_of("input/x"))
    services.storage.put("input/x", picture((30, 20)), "image/png")
    services.jobs.create(new)
    run(services, new, model)
    assert [(source.size, source.mode) for source in model.sources] == [((30, 20), "RGB")]


@pytest.mark.parametrize("content", [None, b"no picture", b""], ids=["missing", "rubbish", "empty"])
def test_a_job_fails_when_its_input_is_no_picture(services, queued, content):
    model, new = Painter(), queued(input_url=services.storage.url_of("input/x"))
    if content is not None:
        services.storage.put("input/x", content, "image/png")
    with pytest.raises(InputInvalid):
        run(services, new, model)
    assert services.jobs.get(new.task_id).error["code"] == "input_invalid"
    assert model.sources == []


def test_the_steps_of_the_model_are_on_the_record_while_it_runs(services, queued):
    new, seen = queued(), []

    def as_told(progress):
        stored = services.jobs.get(new.task_id)
        return (stored.phase, stored.step, stored.steps) if (stored.step, stored.steps) == progress else None

    class Watched(Painter):
        def generate(self, params, source, on_step):
            def step(*progress):
                on_step(*progress)
                seen.append(until(lambda: as_told(progress), 10, "the step is told"))

            return super().generate(params, source, step)

    run(services, new, Watched())
    assert seen == [(Phase.RUNNING, step, 4) for step in (1, 2, 3, 4)]


def earlier_attempt(services, new, **changes):
    """What a lost worker left behind: one attempt, and its picture."""
    left = encode(Image.new("RGB", (64, 64), "blue"), params(**changes), 0, {})
    services.storage.put(output_name(new.task_id, 0), left.data, "image/png")
    return left


def lose_one_attempt(services, new):
    services.jobs.claim(new.task_id, "t1", "lost")
    lease_runs_out(services.redis, new.task_id)


def test_the_picture_of_an_earlier_attempt_is_taken_without_the_model(services, queued):
    new, model = queued(), Painter()
    lose_one_attempt(services, new)
    left = earlier_attempt(services, new)
    run(services, new, model)
    done = services.jobs.get(new.task_id)
    assert (done.status, done.images[0]["sha256"], model.sources) == (Status.SUCCEEDED, left.sha256, [])


def test_an_object_that_is_another_picture_is_not_taken_for_the_result(services, queued):
    new, model = queued(), Painter()
    lose_one_attempt(services, new)
    earlier_attempt(services, new, prompt="something else")
    with pytest.raises(StorageFailed):
        run(services, new, model)
    assert len(model.sources) == 1
    assert services.jobs.get(new.task_id).error["code"] == "storage_failed"


def test_pictures_that_are_not_all_there_are_made_again(services, queued):
    new, model = queued(num_images=2), Painter()
    lose_one_attempt(services, new)
    earlier_attempt(services, new)
    run(services, new, model)
    assert (len(model.sources), len(services.jobs.get(new.task_id).images)) == (1, 2)


def test_a_picture_that_another_attempt_stored_meanwhile_is_the_result(services, queued):
    new = queued()
    left = []
    model = Painter(lambda params: left.append(earlier_attempt(services, new)))
    assert run(services, new, model)["verdict"] == "succeeded"
    assert services.jobs.get(new.task_id).images[0]["sha256"] == left[0].sha256


def test_a_worker_that_loses_its_claim_stops_at_the_next_step_and_writes_nothing(services, queued):
    new = queued()

    def lose(_):
        take_over(services, new.task_id)

    assert run(services, new, Painter(lose))["verdict"] == "claim_lost"
    stored = services.jobs.get(new.task_id)
    assert (stored.phase, stored.attempt, stored.step) == (Phase.STARTING, 2, 0)
    assert services.storage.size(output_name(new.task_id, 0)) is None


def test_a_job_that_ended_and_was_deleted_between_two_pictures_gets_no_more_of_them(away, services, queued):
    new = queued(num_images=3)

    def end():
        services.jobs.fail(new.task_id, DeadlineExceeded("too late"))
        services.jobs.delete(new.task_id)

    assert run(away(times=0, at_each=once(end)), new)["verdict"] == "claim_lost"
    assert [services.storage.size(output_name(new.task_id, index)) for index in (1, 2)] == [None, None]


def test_a_picture_that_is_stored_while_its_task_is_deleted_is_gone_too(services, queued, monkeypatch):
    new, put = queued(num_images=2), services.storage.put

    def slow(name, *rest):
        if name == output_name(new.task_id, 1):
            services.jobs.fail(new.task_id, DeadlineExceeded("too late"))
            services.jobs.delete(new.task_id)
        put(name, *rest)

    monkeypatch.setattr(services.storage, "put", slow)
    assert run(services, new)["verdict"] == "claim_lost"
    assert [services.storage.size(output_name(new.task_id, index)) for index in (0, 1)] == [None, None]


def test_a_picture_of_a_task_that_only_ended_meanwhile_stays_for_who_runs_it_again(services, queued, monkeypatch):
    new, put = queued(), services.storage.put

    def slow(*given):
        put(*given)
        take_over(services, new.task_id)

    monkeypatch.setattr(services.storage, "put", slow)
    assert run(services, new)["verdict"] == "claim_lost"
    assert services.storage.size(output_name(new.task_id, 0))


@pytest.mark.parametrize("error", [GpuOutOfMemory("too large"), ValueError("a fault"), StorageUnavailable("away")])
def test_a_failure_after_the_claim_was_lost_is_nobodys_business(services, queued, error):
    new = queued()

    def end_and_fail(_):
        services.jobs.fail(new.task_id, DeadlineExceeded("too late"))
        raise error

    assert run(services, new, Painter(end_and_fail))["verdict"] == "claim_lost"
    assert services.jobs.get(new.task_id).error["code"] == "deadline_exceeded"


def test_a_worker_that_must_stop_gives_the_job_back_and_no_attempt_is_counted(services, queued):
    new = queued()
    with pytest.raises(SystemExit):
        run(services, new, raising(SystemExit(SIGTERM)))
    stored = services.jobs.get(new.task_id)
    assert (stored.phase, stored.attempt, stored.status) == (Phase.QUEUED, 0, Status.PENDING)
    assert run(services, new)["verdict"] == "succeeded"


def test_a_worker_that_must_stop_stops_even_when_its_claim_is_gone(services, queued):
    new = queued()

    def end_and_exit(_):
        services.jobs.fail(new.task_id, DeadlineExceeded("too late"))
        raise SystemExit(SIGTERM)

    with pytest.raises(SystemExit):
        run(services, new, Painter(end_and_exit))


@pytest.mark.parametrize(
    "fault", [MemoryError("none left"), RuntimeError("secret detail"), KeyError("x"), SystemExit(1), SystemExit("told")]
)
def test_an_unexpected_fault_of_the_model_fails_the_job_and_tells_no_detail(services, queued, fault):
    new = queued()
    with pytest.raises(Internal):
        run(services, new, raising(fault))
    ended = services.jobs.get(new.task_id)
    assert (ended.status, ended.error["code"]) == (Status.FAILED, "internal")
    assert str(fault) not in ended.error["message"]


def test_a_declared_failure_of_the_model_is_told_with_its_code(services, queued):
    new = queued()
    with pytest.raises(GpuOutOfMemory):
        run(services, new, raising(GpuOutOfMemory("64x64 does not fit")))
    error = services.jobs.get(new.task_id).error
    assert error == {"code": "gpu_out_of_memory", "message": "64x64 does not fit", "retryable": False}


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


def test_a_worker_leaves_a_job_of_a_model_that_it_does_not_serve_to_others(services, queued):
    new = queued(model_version="other-1")
    run(services, new)
    left = services.jobs.get(new.task_id)
    assert (left.phase, left.attempt) == (Phase.QUEUED, 0)


def test_a_model_that_makes_too_few_pictures_fails_the_job(services, queued):
    class Lazy(Painter):
        def generate(self, params, source, on_step):
            return iter(())

    new = queued()
    with pytest.raises(Internal):
        run(services, new, Lazy())
    assert services.jobs.get(new.task_id).status is Status.FAILED


def test_a_job_whose_record_is_lost_while_it_runs_is_made_again_from_its_message(services, queued):
    losses = iter([services.redis.flushdb])
    new = queued()
    verdict = run(services, new, Painter(lambda _: next(losses, lambda: None)()))["verdict"]
    assert (verdict, services.jobs.get(new.task_id).status) == ("succeeded", Status.SUCCEEDED)


def test_a_record_that_is_lost_is_made_again_from_the_message(services):
    new = job(prompt="kept in the message", client_ref="mine")
    assert run(services, new)["verdict"] == "succeeded"
    done = services.jobs.get(new.task_id)
    assert (done.params, done.client_ref, done.status) == (new.params, "mine", Status.SUCCEEDED)


def test_a_message_that_comes_twice_makes_one_picture(services, queued):
    new, model = queued(), Painter()
    verdicts = [run(services, new, model)["verdict"] for _ in range(2)]
    assert (verdicts, len(model.sources)) == (["succeeded", "done"], 1)


def test_a_message_for_a_job_in_good_hands_is_acknowledged_without_work(services, queued):
    new, model = queued(), Painter()
    services.jobs.claim(new.task_id, "t1", "worker-2")
    assert run(services, new, model)["verdict"] == "held"
    assert model.sources == []


def test_a_message_for_a_job_that_waits_for_its_input_is_acknowledged_without_work(services):
    new, model = job(waits=True), Painter()
    services.jobs.create(new)
    assert run(services, new, model)["verdict"] == "waiting"
    assert (model.sources, services.jobs.get(new.task_id).phase) == ([], Phase.AWAITING_UPLOAD)


def test_a_job_past_its_deadline_fails_unrun(services, queued):
    new, model = queued(), Painter()
    deadline_passes(services.redis, new.task_id)
    with pytest.raises(DeadlineExceeded):
        run(services, new, model)
    assert services.jobs.get(new.task_id).error["code"] == "deadline_exceeded"
    assert model.sources == []


def test_a_job_that_killed_its_workers_fails_unrun_and_goes_to_quarantine(services, queued):
    new, model = queued(), Painter()
    for attempt in range(3):
        services.jobs.claim(new.task_id, f"t{attempt}", "dead")
        lease_runs_out(services.redis, new.task_id)
    with pytest.raises(AttemptsExhausted):
        run(services, new, model)
    assert services.jobs.get(new.task_id).error["code"] == "attempts_exhausted"
    assert (indexes(services.redis, new.task_id), model.sources) == ({"quarantine"}, [])


def test_a_slow_step_does_not_cost_the_claim(services, queued):
    """The thread renews the lease while the model is at one long step."""
    from app.jobs import JobStore

    short = services.settings.model_copy(update={"lease": 0.3})
    jobs = JobStore(services.redis, result_ttl=60, lease=0.3)
    new = queued()

    def be_slow(_):
        first = services.redis.zscore("jobs:leases", new.task_id)
        until(lambda: services.redis.zscore("jobs:leases", new.task_id) > first + 0.35, 10, "the lease is renewed")

    slow = dataclasses.replace(services, settings=short, jobs=jobs)
    assert run(slow, new, Painter(be_slow))["verdict"] == "succeeded"
