"""Record, then publish, then undo on failure; and the three ways in which a waiting job starts."""

import dataclasses
import math

import pytest

from app.callers import ANYONE
from app.errors import (
    BrokerUnavailable,
    IdempotencyConflict,
    IdempotencyKeyReuse,
    InputMissing,
    InvalidRequest,
    NotReady,
    NoWorker,
    StorageUnavailable,
    StoreUnavailable,
    TaskExpired,
    TaskNotFound,
    UnknownModelVersion,
)
from app.intake import IN_FLIGHT, Intake, input_name, mask_name
from app.jobs import WRITTEN_WITHIN, Terms
from app.models import Catalogue
from app.record import Phase, Status
from app.schemas import GenerateRequest
from app.workers import WorkerState
from tests.things import indexes, job, of_a_newer_version, picture


@pytest.fixture
def intake(services):
    return Intake(services)


@pytest.fixture
def broken(services):
    """An intake whose broker takes nothing."""

    def refuse(job):
        raise BrokerUnavailable

    return Intake(dataclasses.replace(services, publish=refuse))


def submit(intake, **fields):
    submission = intake.submit(GenerateRequest(prompt="a red star", **fields), ANYONE)
    return submission.job, submission.upload


def test_where_no_upload_can_be_signed_nothing_is_accepted(intake, services, published, monkeypatch):
    def away(*_):
        raise StorageUnavailable

    monkeypatch.setattr(services.storage, "upload_url", away)
    with pytest.raises(StorageUnavailable):
        submit(intake, input_image=True)
    assert (list(services.redis.scan_iter("job*")), published) == ([], [])


@pytest.mark.parametrize("waits", [False, True])
def test_a_record_whose_writing_nobody_heard_of_is_taken_back(intake, services, published, monkeypatch, waits):
    written, create = [], services.jobs.create

    def unheard(job, terms):
        written.append(create(job, terms).task_id)
        raise StoreUnavailable

    monkeypatch.setattr(services.jobs, "create", unheard)
    with pytest.raises(StoreUnavailable):
        submit(intake, input_image=waits)
    assert (indexes(services.redis, *written), published, services.jobs.of("anyone", math.inf, 9)) == (set(), [], [])
    with pytest.raises(TaskNotFound):
        services.jobs.get(*written)


def test_a_record_that_is_written_after_it_was_taken_back_is_none(services):
    late = job()
    assert services.jobs.discard(late.task_id)
    assert services.jobs.create(late, Terms()).verdict == "exists"
    assert indexes(services.redis, late.task_id) == set()


def test_a_store_that_was_slower_than_its_client_writes_nothing(services, monkeypatch):
    before = services.jobs.now() - WRITTEN_WITHIN - 1
    monkeypatch.setattr(services.jobs, "now", lambda: before)
    with pytest.raises(StoreUnavailable):
        services.jobs.create(job(), Terms())
    assert list(services.redis.scan_iter("job*")) == []


def test_a_job_of_a_newer_version_is_neither_made_again_nor_published(intake, services, published):
    job, _ = submit(intake)
    of_a_newer_version(services.redis, job.task_id, mood="calm")
    newer = services.jobs.get(job.task_id)
    with pytest.raises(NotReady):
        intake.rerun(newer.task_id, ANYONE)
    intake.publish_again(newer)
    assert len(published) == 1


def test_an_accepted_job_is_on_record_published_once_and_confirmed(intake, services, published):
    job, upload = submit(intake)
    assert upload is None
    assert services.jobs.get(job.task_id) == job
    assert [sent.task_id for sent in published] == [job.task_id]
    assert indexes(services.redis, job.task_id) == {"queued:gen.tiny", "deadlines"}


def test_a_record_whose_first_answer_was_lost_is_told_as_it_stands(intake, services, published, monkeypatch):
    create = services.jobs.create
    monkeypatch.setattr(services.jobs, "create", lambda *asked: create(*asked) and create(*asked))
    job, _ = submit(intake)
    assert job.created_at
    assert services.jobs.get(job.task_id) == job
    assert [sent.task_id for sent in published] == [job.task_id]


def test_the_record_stands_before_the_message_goes_out(services):
    seen = []
    watching = dataclasses.replace(services, publish=lambda job: seen.append(services.jobs.get(job.task_id).phase))
    submit(Intake(watching))
    assert seen == [Phase.QUEUED]


def test_a_job_that_the_broker_does_not_take_leaves_nothing_behind(broken, services):
    with pytest.raises(BrokerUnavailable):
        submit(broken)
    [key] = services.redis.keys("job:*")
    with pytest.raises(TaskNotFound):
        services.jobs.get(key.removeprefix("job:"))
    assert services.redis.keys("jobs:*") == []


def test_a_job_whose_confirmation_came_too_late_is_accepted_when_a_worker_has_it(services):
    def late(job):
        services.jobs.claim(job.task_id, "t1", "worker-1")
        raise BrokerUnavailable

    job, _ = submit(Intake(dataclasses.replace(services, publish=late)))
    assert services.jobs.get(job.task_id).phase is Phase.STARTING
    assert services.jobs.due("unconfirmed") == []


def test_a_job_that_a_worker_has_is_not_ended_with_its_queue(intake, services, published):
    begun = dataclasses.replace(submit(intake)[0], queue="gen.gone", phase=Phase.RUNNING)
    services.jobs.claim(begun.task_id, "t1", "worker-1")
    intake.publish_again(begun)
    assert (services.jobs.get(begun.task_id).phase, len(published)) == (Phase.STARTING, 1)


def test_a_job_whose_model_has_moved_to_another_queue_ends_and_says_so(services, published):
    here = services.catalogue.default
    there = here.model_copy(update={"model_version": "other-1", "queue": "gen.other"})
    intake = Intake(dataclasses.replace(services, catalogue=Catalogue([here, there])))
    left = job(queue="gen.other", model_version=here.model_version)
    services.jobs.create(left)
    intake.publish_again(services.jobs.get(left.task_id))
    assert (services.jobs.get(left.task_id).error["code"], published) == ("internal", [])


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


def test_a_web_process_that_dies_before_it_publishes_leaves_the_job_to_the_sweep(services):
    def die(job):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        submit(Intake(dataclasses.replace(services, publish=die)))
    assert len(services.jobs.due("unconfirmed")) == 1


def test_settings_and_the_model_fill_in_what_the_request_left_out(intake, settings):
    job, _ = submit(intake)
    assert (job.queue, job.params.model_version, job.params.width) == ("gen.tiny", "tiny-scenes-1", 128)
    assert (job.deadline_seconds, job.max_attempts) == (settings.deadline, settings.max_attempts)


def test_the_request_decides_what_it_names(intake):
    job, _ = submit(intake, deadline_seconds=60, client_ref="mine", width=64)
    assert (job.deadline_seconds, job.client_ref, job.params.width) == (60, "mine", 64)


def test_an_unknown_model_is_refused_before_anything_is_written(intake, services):
    with pytest.raises(UnknownModelVersion):
        submit(intake, model_version="nobody-1")
    assert services.redis.keys("*") == []


@pytest.mark.parametrize("url", ["https://example.org/cat.png", "file:///etc/passwd", "file:///output/../../x.png"])
def test_an_input_from_any_other_place_is_refused_before_anything_is_written(intake, services, url):
    with pytest.raises(InvalidRequest, match="input_url"):
        submit(intake, input_url=url)
    assert services.redis.keys("*") == []


def test_an_input_of_our_own_bucket_is_queued_at_once(intake, published):
    job, upload = submit(intake, input_url="file:///output/earlier.png")
    assert (job.phase, upload, len(published)) == (Phase.QUEUED, None, 1)


def test_a_job_with_an_input_to_come_waits_and_is_not_published(intake, services, settings, published):
    job, upload = submit(intake, input_image=True)
    assert (job.phase, upload.method, published) == (Phase.AWAITING_UPLOAD, "PUT", [])
    assert job.params.input_url == services.storage.url_of(input_name(job.task_id))
    assert job.upload_expires_at == pytest.approx(services.jobs.now() + settings.upload_ttl, abs=2)


def test_start_is_refused_while_no_picture_is_there(intake, published):
    job, _ = submit(intake, input_image=True)
    with pytest.raises(InputMissing):
        intake.start(job)
    assert published == []


def test_start_queues_the_job_once_the_picture_is_there(intake, services, published):
    job, _ = submit(intake, input_image=True)
    services.storage.put(input_name(job.task_id), picture(), "image/png")
    assert intake.start(job).phase is Phase.QUEUED
    assert [sent.task_id for sent in published] == [job.task_id]
    assert services.jobs.due("unconfirmed") == []


def test_a_job_that_several_start_at_once_is_published_once(intake, services, published):
    job, _ = submit(intake, input_image=True)
    services.storage.put(input_name(job.task_id), picture(), "image/png")
    assert [intake.start_if_uploaded(job), intake.start_if_uploaded(job)] == [True, True]
    assert intake.start(job).phase is Phase.QUEUED
    assert len(published) == 1


def test_a_started_job_that_the_broker_does_not_take_stays_for_the_sweep(intake, broken, services):
    job, _ = submit(intake, input_image=True)
    services.storage.put(input_name(job.task_id), picture(), "image/png")
    assert broken.start(job).phase is Phase.QUEUED
    assert services.jobs.due("unconfirmed") == [job.task_id]


def test_a_picture_larger_than_promised_ends_the_job_whoever_sees_it(services, published):
    small = dataclasses.replace(services, settings=services.settings.model_copy(update={"upload_max_bytes": 10}))
    intake = Intake(small)
    job, _ = submit(intake, input_image=True)
    services.storage.put(input_name(job.task_id), picture(), "image/png")
    assert [intake.start_if_uploaded(job), intake.start_if_uploaded(job)] == [True, True]
    ended = services.jobs.get(job.task_id)
    assert (ended.status, ended.error["code"], published) == (Status.FAILED, "input_invalid", [])


def test_an_empty_upload_ends_the_job_without_a_worker(intake, services, published):
    job, _ = submit(intake, input_image=True)
    services.storage.put(input_name(job.task_id), b"", "image/png")
    ended = intake.start(job)
    assert (ended.status, ended.error["code"], published) == (Status.FAILED, "input_invalid", [])
    assert ended.error["message"] == "The input picture is empty."


def test_it_is_the_mask_that_is_named_where_the_mask_is_at_fault(intake, services):
    job, _ = submit(intake, input_image=True, mask_image=True)
    services.storage.put(input_name(job.task_id), picture(), "image/png")
    services.storage.put(mask_name(job.task_id), b"", "image/png")
    assert intake.start(job).error["message"] == "The mask is empty."


def test_a_picture_as_large_as_promised_is_taken(services, published):
    exact = services.settings.model_copy(update={"upload_max_bytes": len(picture())})
    intake = Intake(dataclasses.replace(services, settings=exact))
    job, _ = submit(intake, input_image=True)
    services.storage.put(input_name(job.task_id), picture(), "image/png")
    assert intake.start(job).phase is Phase.QUEUED


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


def test_no_upload_is_awaited_for_longer_than_the_job_has(intake, services):
    job = intake.submit(GenerateRequest(prompt="x", input_image=True, deadline_seconds=5), ANYONE).job
    assert job.upload_expires_at <= job.deadline_at


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


def test_what_is_no_longer_queued_is_not_published_again_but_confirmed(intake, services, published):
    job, _ = submit(intake)
    published.clear()
    services.redis.zadd("jobs:unconfirmed", {job.task_id: 1})
    services.jobs.claim(job.task_id, "t1", "worker-1")
    intake.publish_again(services.jobs.get(job.task_id))
    assert (published, services.jobs.due("unconfirmed")) == ([], [])


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
