"""Deliveries: written with the change that they tell of, and repeated until they are through."""

import dataclasses
import json
import threading
import time
from email.utils import formatdate

import pytest
import structlog
from pydantic import SecretStr
from standardwebhooks import Webhook, WebhookVerificationError

from app.egress import Answer
from app.errors import AddressRefused, EgressError, Internal, NotReady, StorageUnavailable, WebhookNotFound
from app.record import Phase
from app.settings import Settings
from app.webhooks import MAX_TRIES, MOST_ASKED_SECONDS, OUTBOX, Dispatcher, pause, sign
from tests.stack import until
from tests.things import job
from tests.unit.webhooks.deliveries import OTHER, SECRET, URL, Recorder, deliver, entries, time_passes


def finish(jobs, task_id, status):
    jobs.claim(task_id, "t1", "worker-1")
    if status == "SUCCEEDED":
        jobs.advance(task_id, "t1", Phase.RUNNING)
        jobs.advance(task_id, "t1", Phase.UPLOADING)
        jobs.succeed(task_id, "t1", {})
    else:
        jobs.fail(task_id, Internal("It broke."), "t1")


@pytest.mark.parametrize("status", ["SUCCEEDED", "FAILED"])
def test_the_end_of_a_job_is_in_the_outbox_at_once(services, new, status):
    task_id = new()
    assert entries(services) == {}
    finish(services.jobs, task_id, status)
    assert list(entries(services)) == [f"{task_id}.completed"]


def test_a_cancel_a_deadline_and_an_upload_that_never_came_are_ends_too(services, new, outbox):
    canceled, overdue, waiting = new(), new(), new(waits=True)
    services.jobs.cancel(canceled)
    services.jobs.fail(overdue, Internal("late"))
    services.jobs.fail(waiting, Internal("no upload"))
    assert set(outbox.due()) == {f"{task_id}.completed" for task_id in (canceled, overdue, waiting)}


def test_the_start_is_told_when_it_was_asked_for_and_only_once(services, new):
    asked, other = new(events=["started", "completed"]), new()
    for task_id in (asked, other):
        services.jobs.claim(task_id, "t1", "worker-1")
    assert list(entries(services)) == [f"{asked}.started"]
    deliver(services)
    services.jobs.release(asked, "t1")
    services.jobs.claim(asked, "t2", "worker-2")
    assert entries(services) == {}


def test_a_job_without_a_webhook_leaves_the_outbox_alone(services):
    plain = job()
    services.jobs.create(plain)
    finish(services.jobs, plain.task_id, "SUCCEEDED")
    assert entries(services) == {}


def test_a_job_that_was_refused_to_its_client_tells_nobody(services, new):
    services.jobs.discard(new())
    assert entries(services) == {}


def test_a_record_that_is_made_again_from_its_message_has_its_webhook(new, jobs):
    told = jobs.get(new(events=["started"]))
    again = type(told).from_message(told.message())
    assert (again.webhook_url, again.webhook_events) == (URL, ["started"])


def test_what_is_no_url_in_a_message_that_somebody_wrote_keeps_nobody_elses_webhook(services, ended):
    good, bad = ended(), ended()
    services.redis.hset(f"job:{bad}", "webhook_url", "https://[")
    dispatcher = Dispatcher(services, recorder := Recorder())
    dispatcher.dispatch()
    dispatcher.close()
    assert good in [payload["data"]["task_id"] for _, payload, _ in recorder.sent]


def test_a_delivery_is_the_task_document_under_its_name_and_time(services, ended):
    task_id = ended(client_ref="mine")
    ((url, payload, headers),) = deliver(services)
    assert url == URL
    assert (payload["type"], payload["data"]["task_id"]) == ("task.completed", task_id)
    assert payload["timestamp"] == payload["data"]["finished_at"]
    assert (payload["data"]["error"]["code"], payload["data"]["client_ref"]) == ("canceled", "mine")
    assert headers["webhook-id"] == f"{task_id}.completed"
    assert "sesame" not in json.dumps(payload)
    assert entries(services) == {}


def test_the_start_tells_when_it_was(services, new):
    task_id = new(events=["started"])
    services.jobs.claim(task_id, "t1", "worker-1")
    ((_, payload, _),) = deliver(services)
    assert (payload["type"], payload["timestamp"]) == ("task.started", payload["data"]["started_at"])
    assert payload["data"]["status"] == "PENDING"


@pytest.mark.parametrize("secret", [SECRET, OTHER])
def test_the_public_verifier_accepts_a_signature_of_each_secret_during_rotation(secret):
    headers = sign(f"{SECRET} {OTHER}", "1.completed", '{"a": "é"}')
    assert Webhook(secret).verify('{"a": "é"}', headers) == {"a": "é"}


def test_the_public_verifier_refuses_a_secret_that_is_gone_and_another_body():
    headers = sign(SECRET, "1.completed", "{}")
    for secret, body in ((OTHER, "{}"), (SECRET, "[]")):
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(body, headers)


@pytest.mark.parametrize(
    "answer", [500, 404, 301, 103, EgressError("no answer within 10 s"), AddressRefused("not public")]
)
def test_what_did_not_get_through_is_tried_again_later(services, ended, answer):
    task_id = ended()
    before = services.jobs.now()
    deliver(services, answer)
    assert 75 <= entries(services)[f"{task_id}.completed"] - before < 130
    assert deliver(services) == []
    time_passes(services)
    assert len(deliver(services)) == 1
    assert entries(services) == {}


@pytest.mark.parametrize("answer", [200, 204, 299, 410])
def test_what_got_through_or_is_gone_for_good_is_over(services, ended, answer):
    ended()
    deliver(services, answer)
    assert entries(services) == {}


def test_a_receiver_that_wants_no_more_is_no_failure_of_ours(services, ended):
    ended()
    with structlog.testing.capture_logs() as lines:
        deliver(services, 410)
    assert [(line["event"], line["log_level"]) for line in lines] == [("webhook.declined", "info")]


def test_a_store_that_signs_nothing_costs_a_try_and_its_pause_like_a_receiver_that_is_away(
    services, new, jobs, monkeypatch
):
    task_id = new()
    finish(jobs, task_id, "SUCCEEDED")
    jobs._redis.hset(f"job:{task_id}", "images", '[{"sha256": "0", "bytes": 1, "width": 1, "height": 1}]')

    def away(*_):
        raise StorageUnavailable

    monkeypatch.setattr(services.storage, "download_url", away)
    began = jobs.now()
    assert deliver(services) == []
    assert [delivery["error"] for delivery in jobs.get(task_id).deliveries] == ["the task's URLs could not be signed"]
    assert entries(services)[f"{task_id}.completed"] > began + services.settings.webhook_pause / 2


def test_after_the_last_try_it_is_over(services, ended):
    task_id = ended()
    for _ in range(MAX_TRIES):
        time_passes(services)
        assert len(deliver(services, 500)) == 1
    assert entries(services) == {}
    assert [delivery["attempt"] for delivery in services.jobs.get(task_id).deliveries] == list(range(1, MAX_TRIES + 1))


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(("asked", "seconds"), [("1800", 1800), ("date", 1800), ("9" * 400, MOST_ASKED_SECONDS)])
def test_a_receiver_that_asks_for_time_gets_it_within_bounds(services, ended, status, asked, seconds):
    task_id, before = ended(), services.jobs.now()
    asked = formatdate(time.time() + seconds, usegmt=True) if asked == "date" else asked
    deliver(services, Answer(status, asked))
    assert entries(services)[f"{task_id}.completed"] - before == pytest.approx(seconds, abs=5)


@pytest.mark.parametrize(
    "answer",
    [(503, "1"), (429, "-5"), (503, "soon"), (503, ""), (500, "1800"), (503, "Mon, 01 Jan 1990 00:00:00 GMT")],
)
def test_no_receiver_makes_the_pause_shorter_or_asks_with_another_status(services, ended, answer):
    task_id, before = ended(), services.jobs.now()
    deliver(services, Answer(*answer))
    assert 75 <= entries(services)[f"{task_id}.completed"] - before < 130


def test_with_the_pauses_of_the_settings_an_outage_of_ten_minutes_is_outlasted(services, ended):
    """The clock jumps from each try to the next one."""
    patient = services.settings.model_copy(update={"webhook_pause": Settings.model_fields["webhook_pause"].default})
    services = dataclasses.replace(services, settings=patient)
    entry, waited, sent = f"{ended()}.completed", 0.0, []
    while entries(services):
        time_passes(services)
        is_down = waited < 600
        sent += [(is_down, headers["webhook-id"]) for _, _, headers in deliver(services, 503 if is_down else 204)]
        waited += max(entries(services).get(entry, 0) - services.jobs.now(), 0)
    assert [name for is_down, name in sent if not is_down] == [entry]
    assert len(sent) < MAX_TRIES


def test_pauses_grow_from_seconds_to_hours_and_are_uneven():
    pauses = [pause(tries, 5) for tries in range(1, MAX_TRIES)]
    assert pauses == sorted(pauses)
    assert 3 < pauses[0] < 7
    assert 10 * 60 < sum(pauses) < 24 * 3600
    assert pause(1, 5) != pause(1, 5)


def test_every_try_is_on_the_record_and_changes_nothing_else_of_the_task(services, ended):
    task_id = ended()
    before = services.jobs.get(task_id)
    for answer in (EgressError("the connection was refused"), 500, 204):
        time_passes(services)
        deliver(services, answer)
    after = services.jobs.get(task_id)
    told = [(d["event"], d["attempt"], d["status"], d["error"]) for d in after.deliveries]
    assert told == [
        ("completed", 1, None, "the connection was refused"),
        ("completed", 2, 500, "status 500"),
        ("completed", 3, 204, None),
    ]
    assert after.version > before.version, "a cached document is out of date"
    assert dataclasses.replace(after, deliveries=[], version=before.version) == before


def test_the_record_holds_the_last_deliveries_only(services, ended, outbox):
    task_id = ended()
    for _ in range(4):
        outbox.redeliver(services.jobs.get(task_id))
        for _ in range(MAX_TRIES):
            time_passes(services)
            deliver(services, 500)
    kept = services.jobs.get(task_id).deliveries
    assert (len(kept), kept[-1]["attempt"]) == (20, MAX_TRIES)


def test_a_deleted_task_is_delivered_no_more_and_leaves_nothing(services, ended):
    task_id = ended()
    services.jobs.delete(task_id)
    assert deliver(services) == []
    assert entries(services) == {}
    assert set(services.redis.hgetall(f"job:{task_id}")) <= {"phase", "deleted", "caller"}


def test_a_task_that_is_deleted_during_its_delivery_is_not_written_again(services, ended, outbox):
    task_id = ended()
    claim = outbox.claim(f"{task_id}.completed")
    services.jobs.delete(task_id)
    outbox.settle(claim, 204, None, None)
    assert "deliveries" not in services.redis.hgetall(f"job:{task_id}")


def test_a_courier_without_a_secret_sends_nothing_and_has_tried(services, ended):
    task_id, before = ended(), services.jobs.now()
    bare = services.settings.model_copy(update={"webhook_secret": SecretStr("")})
    assert deliver(dataclasses.replace(services, settings=bare)) == []
    [delivery] = services.jobs.get(task_id).deliveries
    assert (delivery["attempt"], delivery["status"]) == (1, None)
    assert delivery["error"] == "there is no WEBHOOK_SECRET to sign with"
    assert entries(services)[f"{task_id}.completed"] > before + services.settings.webhook_pause / 2


def test_a_body_that_cannot_be_made_is_tried_again(services, ended):
    broken, good = ended(), ended()
    services.redis.hset(f"job:{broken}", "params", "no JSON")
    assert [payload["data"]["task_id"] for _, payload, _ in deliver(services)] == [good]
    assert list(entries(services)) == [f"{broken}.completed"]


def test_an_outage_of_the_store_does_not_end_the_deliveries(settings):
    from app.services import build

    away = build(settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"}), "courier")
    stop = threading.Event()
    thread = threading.Thread(target=Dispatcher(away, Recorder()).run, args=(stop,))
    with structlog.testing.capture_logs() as lines:
        thread.start()
        until(lambda: [line["event"] for line in lines].count("webhook.interrupted") > 1, 20, "it has tried again")
        stop.set()
        thread.join(20)
    assert not thread.is_alive()


def test_a_redelivery_starts_all_over(services, ended, outbox):
    task_id = ended()
    for _ in range(MAX_TRIES):
        time_passes(services)
        deliver(services, 500)
    outbox.redeliver(services.jobs.get(task_id))
    ((_, payload, headers),) = deliver(services)
    assert (payload["type"], headers["webhook-id"]) == ("task.completed", f"{task_id}.completed")
    assert entries(services) == {}


def test_an_outage_after_the_receiver_has_answered_delivers_once_more(services, ended):
    class Outage(Recorder):
        def post(self, *request):
            services.redis.rename(OUTBOX, "elsewhere")
            services.redis.set(OUTBOX, "of another kind")
            return super().post(*request)

    task_id, recorder = ended(), Outage()
    dispatcher = Dispatcher(services, recorder)
    dispatcher.dispatch()
    dispatcher.close()
    services.redis.rename("elsewhere", OUTBOX)
    time_passes(services)
    assert [payload["data"]["task_id"] for _, payload, _ in deliver(services)] == [task_id]


def test_what_has_not_happened_is_not_redelivered(services, new, outbox):
    waiting, plain = services.jobs.get(new()), job()
    services.jobs.create(plain)
    with pytest.raises(NotReady):
        outbox.redeliver(waiting)
    with pytest.raises(WebhookNotFound):
        outbox.redeliver(services.jobs.get(plain.task_id))


def test_no_log_line_holds_the_url_of_a_webhook(services, ended):
    ended()
    with structlog.testing.capture_logs() as lines:
        for answer in (EgressError("the connection was refused"), 500, ValueError("unforeseen"), 204):
            time_passes(services)
            deliver(services, answer)
    events = [line["event"] for line in lines]
    assert events == ["webhook.postponed", "webhook.postponed", "webhook.failed", "webhook.delivered"]
    assert "sesame" not in str(lines)
    assert "hooks.example" not in str(lines)
