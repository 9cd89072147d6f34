"""Jobs whose pictures are still to come: the three ways in which they start, and what ends them."""

import dataclasses

import pytest

from app.callers import ANYONE
from app.errors import InputMissing, StorageUnavailable
from app.intake import Intake, input_name, mask_name
from app.record import Phase, Status
from app.schemas import GenerateRequest
from tests.things import picture, submit


def test_where_no_upload_can_be_signed_nothing_is_accepted(intake, services, published, monkeypatch):
    def away(*_):
        raise StorageUnavailable

    monkeypatch.setattr(services.storage, "upload_url", away)
    with pytest.raises(StorageUnavailable):
        submit(intake, input_image=True)
    assert (list(services.redis.scan_iter("job*")), published) == ([], [])


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


def test_no_upload_is_awaited_for_longer_than_the_job_has(intake, services):
    job = intake.submit(GenerateRequest(prompt="x", input_image=True, deadline_seconds=5), ANYONE).job
    assert job.upload_expires_at <= job.deadline_at
