"""One job more than once: what earlier attempts left, records that are lost, messages that come twice."""

import pytest
from PIL import Image

from app.errors import AttemptsExhausted, StorageFailed
from app.pictures import encode
from app.record import Phase, Status, output_name
from tests.things import indexes, job, lease_runs_out, params
from tests.unit.painter import Painter, run


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


def test_a_job_that_killed_its_workers_fails_unrun_and_goes_to_quarantine(services, queued):
    new, model = queued(), Painter()
    for attempt in range(3):
        services.jobs.claim(new.task_id, f"t{attempt}", "dead")
        lease_runs_out(services.redis, new.task_id)
    with pytest.raises(AttemptsExhausted):
        run(services, new, model)
    assert services.jobs.get(new.task_id).error["code"] == "attempts_exhausted"
    assert (indexes(services.redis, new.task_id), model.sources) == ({"quarantine"}, [])
