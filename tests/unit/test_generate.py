"""One job from the claim to the end, with a small model on a real Redis and a real folder."""

import dataclasses
import hashlib
import io
import signal

import pytest
from PIL import Image

from app.errors import DeadlineExceeded, GpuOutOfMemory, InputInvalid, Internal, StorageUnavailable
from app.record import Phase, Status, output_name
from tests.stack import until
from tests.things import deadline_passes, indexes, job, picture, take_over
from tests.unit.painter import Painter, raising, run

# How the pool's signal handler in the child leaves.
SIGTERM = -(256 - signal.SIGTERM)


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


def test_a_worker_that_loses_its_claim_stops_at_the_next_step_and_writes_nothing(services, queued):
    new = queued()

    def lose(_):
        take_over(services, new.task_id)

    assert run(services, new, Painter(lose))["verdict"] == "claim_lost"
    stored = services.jobs.get(new.task_id)
    assert (stored.phase, stored.attempt, stored.step) == (Phase.STARTING, 2, 0)
    assert services.storage.size(output_name(new.task_id, 0)) is None


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


def test_a_job_past_its_deadline_fails_unrun(services, queued):
    new, model = queued(), Painter()
    deadline_passes(services.redis, new.task_id)
    with pytest.raises(DeadlineExceeded):
        run(services, new, model)
    assert services.jobs.get(new.task_id).error["code"] == "deadline_exceeded"
    assert model.sources == []


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
