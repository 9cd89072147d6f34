"""Record, then publish, then undo on failure."""

import dataclasses
import math

import pytest

from app.callers import ANYONE
from app.errors import BrokerUnavailable, InvalidRequest, NotReady, StoreUnavailable, TaskNotFound, UnknownModelVersion
from app.intake import Intake
from app.jobs import WRITTEN_WITHIN, Terms
from app.models import Catalogue
from app.record import Phase
from tests.things import indexes, job, of_a_newer_version, submit


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


def test_what_is_no_longer_queued_is_not_published_again_but_confirmed(intake, services, published):
    job, _ = submit(intake)
    published.clear()
    services.redis.zadd("jobs:unconfirmed", {job.task_id: 1})
    services.jobs.claim(job.task_id, "t1", "worker-1")
    intake.publish_again(services.jobs.get(job.task_id))
    assert (published, services.jobs.due("unconfirmed")) == ([], [])
