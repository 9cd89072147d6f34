"""A task is asked for again: as the same one for its key, else as a new one with what the first one was given."""

import dataclasses

import pytest

from app.callers import ANYONE
from app.errors import IdempotencyConflict, IdempotencyKeyReuse, InputMissing, InvalidRequest, NoWorker, TaskExpired
from app.intake import IN_FLIGHT, Intake, input_name, mask_name
from app.models import Catalogue
from app.schemas import GenerateRequest
from app.workers import WorkerState
from tests.things import picture, submit


@pytest.fixture
def brief(services):
    """An intake where results are kept for a bit more than a day."""
    return Intake(dataclasses.replace(services, settings=services.settings.model_copy(update={"result_ttl": 90_000})))


def test_a_deadline_that_pictures_are_not_kept_for_is_refused_by_its_name(brief, published):
    assert submit(brief, deadline_seconds=90_000)[0].deadline_seconds == 90_000
    with pytest.raises(InvalidRequest) as refused:
        submit(brief, deadline_seconds=90_001)
    assert [error["field"] for error in refused.value.errors] == ["deadline_seconds"]
    assert (refused.value.status, len(published)) == (422, 1)


def test_a_task_is_run_again_with_a_deadline_that_pictures_are_kept_for(intake, brief):
    first, _ = submit(intake, deadline_seconds=600_000)
    assert brief.rerun(first.task_id, ANYONE).job.deadline_seconds == 90_000


def test_only_a_request_that_may_still_be_under_way_is_a_conflict(intake, services):
    request = GenerateRequest(prompt="a red star")
    first = intake.submit(request, ANYONE, "a key").job
    services.redis.zadd("jobs:unconfirmed", {first.task_id: services.jobs.now()})
    with pytest.raises(IdempotencyConflict):
        intake.submit(request, ANYONE, "a key")
    services.redis.hset(f"job:{first.task_id}", "created_at", services.jobs.now() - IN_FLIGHT - 1)
    assert intake.submit(request, ANYONE, "a key").job.task_id == first.task_id


def test_a_job_that_is_taken_back_while_its_request_comes_again_is_never_called_accepted(services, monkeypatch):
    """Whatever the second request looks at first, the broker's refusal may come just after it."""
    request, looks = GenerateRequest(prompt="a red star"), []
    first = Intake(services).submit(request, ANYONE, "a key").job
    services.redis.zadd("jobs:unconfirmed", {first.task_id: services.jobs.now()})

    def watched(look):
        def looking(*arguments):
            found = look(*arguments)
            if not looks:
                assert services.jobs.discard(first.task_id)
            looks.append(found)
            return found

        return looking

    for name in ("get", "unconfirmed"):
        monkeypatch.setattr(services.jobs, name, watched(getattr(services.jobs, name)))
    with pytest.raises(IdempotencyConflict):
        Intake(services).submit(request, ANYONE, "a key")
    # The next try is a first one.
    assert not Intake(services).submit(request, ANYONE, "a key").replayed


def test_the_key_of_a_task_that_is_gone_says_so(intake, services):
    request = GenerateRequest(prompt="a red star")
    services.redis.delete(f"job:{intake.submit(request, ANYONE, 'a key').job.task_id}")
    with pytest.raises(TaskExpired):
        intake.submit(request, ANYONE, "a key")


def test_a_task_is_run_again_in_the_queue_where_its_model_is_served_now(intake, services, published):
    moved = dataclasses.replace(submit(intake)[0], queue="gen.gone")
    assert intake.rerun(moved.task_id, ANYONE).job.queue == "gen.tiny"
    assert published[-1].queue == "gen.tiny"


def test_who_asks_for_the_same_again_names_its_seed(intake):
    job, _ = submit(intake)
    again = intake.rerun(job.task_id, ANYONE).job
    assert (job.params.seed_drawn, again.params.seed_drawn, again.params.seed) == (True, False, job.params.seed)


@pytest.mark.parametrize("pictures", [{"input_image": True}, {"input_image": True, "mask_image": True}])
def test_a_task_whose_pictures_never_came_is_not_run_again(intake, services, published, pictures):
    job, _ = submit(intake, **pictures)
    with pytest.raises(InputMissing):
        intake.rerun(job.task_id, ANYONE)
    assert published == []
    for name in (input_name(job.task_id), mask_name(job.task_id)):
        services.storage.put(name, picture(), "image/png")
    assert intake.rerun(job.task_id, ANYONE).job.params.input_url == job.params.input_url


def test_a_rerun_is_the_same_task_for_its_key_when_the_first_one_is_gone(intake, services):
    job, _ = submit(intake)
    again = intake.rerun(job.task_id, ANYONE, "a key").job
    services.jobs.cancel(job.task_id)
    services.jobs.delete(job.task_id)
    assert intake.rerun(job.task_id, ANYONE, "a key").job.task_id == again.task_id
    with pytest.raises(TaskExpired):
        intake.rerun(job.task_id, ANYONE, "another key")


def test_a_rerun_keeps_what_its_client_calls_it(intake):
    first = intake.submit(GenerateRequest(prompt="a red star", client_ref="order 7"), ANYONE).job
    again = intake.rerun(first.task_id, ANYONE).job
    assert (again.client_ref, again.rerun_of) == ("order 7", first.task_id)


def test_a_rerun_that_is_asked_for_twice_with_one_key_is_one_task(intake, published):
    (job, _), (other, _) = submit(intake), submit(intake)
    published.clear()
    first, second = intake.rerun(job.task_id, ANYONE, "a key"), intake.rerun(job.task_id, ANYONE, "a key")
    assert (first.job.task_id, first.replayed, second.replayed) == (second.job.task_id, False, True)
    assert [sent.task_id for sent in published] == [first.job.task_id]
    with pytest.raises(IdempotencyKeyReuse):
        intake.rerun(other, ANYONE, "a key")


def test_a_repeated_request_is_the_same_job_though_it_would_be_refused_today(services):
    ready = WorkerState(name="gen.tiny-1@x", queue="gen.tiny", state="ready", models=("tiny-scenes-1",))
    spec = services.catalogue.default.model_copy(update={"without_worker": "refuse"})
    intake = Intake(dataclasses.replace(services, catalogue=Catalogue([spec])))
    request = GenerateRequest(prompt="a red star")
    services.workers.announce(ready)
    first = intake.submit(request, ANYONE, "one")
    services.workers.leave(ready.name)
    again = intake.submit(request, ANYONE, "one")
    assert (again.job.task_id, again.replayed) == (first.job.task_id, True)
    with pytest.raises(IdempotencyKeyReuse):
        intake.submit(GenerateRequest(prompt="another"), ANYONE, "one")
    with pytest.raises(NoWorker):
        intake.submit(request, ANYONE, "two")
