"""What was given up on: how it gets into quarantine, who may see it, and how it comes out."""

import dataclasses
import json
import math

import pytest

from app.broker import DeadLetter
from app.callers import Caller
from app.courier import Courier
from app.errors import AttemptsExhausted, BrokerUnavailable
from app.intake import Intake
from app.messages import Unreadable, read
from app.quarantine import MAX_BODY_BYTES, MAX_MESSAGES, MESSAGES
from app.record import Job, Phase, Status
from app.schemas import GenerateRequest
from app.tasks import GENERATE
from app.web import create_app
from tests.answers import assert_problem
from tests.things import Letters, job, of_a_newer_version, recording

GARBAGE = DeadLetter("gen.tiny", b"\x00 no JSON", {"id": "x", "task": GENERATE}, "application/json", "utf-8")


def letter_of(new, **changes):
    """The message of a job, as the broker gave it up."""
    body = json.dumps([[], {"message": new.message()}, {}]).encode()
    letter = DeadLetter(new.queue, body, {"id": new.task_id, "task": GENERATE}, "application/json", "utf-8")
    return dataclasses.replace(letter, **changes)


@pytest.fixture
def letters():
    return Letters()


@pytest.fixture
def services(settings, published, letters):
    services = recording(settings, published, letters)
    yield services
    services.redis.connection_pool.disconnect(inuse_connections=False)


@pytest.fixture
def exhausted(services):
    """The id of a task that was lost with three workers."""
    new = job(caller="alice")
    services.jobs.create(new)
    services.jobs.fail(new.task_id, AttemptsExhausted("Lost with 3 workers; not tried again."), quarantine=True)
    return new.task_id


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"headers": {}}, "its headers name no task of ours"),
        ({"headers": {"task": "celery.ping", "id": "x"}}, "its headers name no task of ours"),
        ({"content_type": "application/x-python-serialize"}, "it is not in JSON"),
        ({"body": b"\xff\xfe"}, "its body holds no job"),
        ({"body": b"[" * 100_000}, "its body holds no job"),
        ({"body": b"[[], {}, {}]"}, "its body holds no job"),
        ({"body": b'[[], {"message": {"task_id": "x", "prompt": 7}}, {}]'}, "its body holds no job"),
        ({"headers": {"task": GENERATE, "id": "another"}}, "its header and its body name different tasks"),
        ({"headers": {"task": GENERATE, "id": "x", "eta": "soon"}}, "its headers ask of Celery"),
        ({"headers": {"task": GENERATE, "id": "x", "timelimit": [1, 2, 3]}}, "its headers ask of Celery"),
        ({"headers": {"task": GENERATE, "id": "x", "deadline_at": "soon"}}, "its body holds no job"),
    ],
)
def test_what_asks_for_no_job_of_ours_is_unreadable(changes, reason):
    letter = letter_of(job(), **changes)
    with pytest.raises(Unreadable, match=reason):
        read(letter.headers, letter.content_type, letter.body)


def test_a_mistake_in_what_collects_them_does_not_keep_the_sweep_from_the_rest(services, monkeypatch):
    def fail():
        raise ZeroDivisionError

    monkeypatch.setattr(services.quarantine, "collect", fail)
    swept = []
    courier = Courier(services)
    monkeypatch.setattr(courier, "_look_for_uploads", lambda: swept.append("uploads"))
    courier.sweep()
    assert swept == ["uploads"]


def test_a_message_of_ours_is_read():
    new = job()
    letter = letter_of(new)
    assert read(letter.headers, letter.content_type, letter.body) == new


def test_a_message_leaves_out_what_a_worker_of_the_version_before_may_not_know():
    new = job()
    assert not {"priority", "client_ref", "rerun_of", "webhook_url", "webhook_events"} & new.message().keys()
    assert Job.from_message(new.message()) == new
    told = job(priority="low", webhook_url="https://hooks.example/", webhook_events=["completed"], rerun_of="1")
    assert Job.from_message(told.message()) == told


def test_a_message_read_anew_has_the_deadline_that_it_had(services):
    new = job()
    services.jobs.create(new)
    deadline = services.jobs.get(new.task_id).deadline_at
    letter = letter_of(new, headers={"task": GENERATE, "id": new.task_id, "deadline_at": deadline})
    assert read(letter.headers, letter.content_type, letter.body).deadline_at == deadline


def test_a_message_that_nobody_can_read_is_kept_and_listed_once(services, letters, client):
    letters.letters += [GARBAGE, GARBAGE]
    Courier(services).sweep()
    (entry,) = client.get("/admin/quarantine").json["entries"]
    assert (entry["kind"], entry["reason"], entry["queue"]) == ("message", "unreadable_message", "gen.tiny")
    assert (entry["bytes"], entry["attempts"], letters.letters) == (len(GARBAGE.body), [], [])


def test_a_message_goes_back_into_its_queue_as_it_came(services, letters, client):
    letters.letters.append(GARBAGE)
    Courier(services).sweep()
    (entry,) = client.get("/admin/quarantine").json["entries"]
    answer = client.post(f"/admin/quarantine/{entry['id']}/requeue")
    assert (answer.status_code, answer.json["task_id"]) == (202, None)
    assert letters.sent == [GARBAGE]
    assert client.get("/admin/quarantine").json["entries"] == []
    assert services.redis.keys("quarantine:*") == []


def test_a_message_that_the_broker_does_not_take_back_stays_one(services, letters):
    letters.letters.append(GARBAGE)
    Courier(services).sweep()

    def refuse(_):
        raise BrokerUnavailable

    letters.send_again = refuse
    client = create_app(services).test_client()
    (entry,) = client.get("/admin/quarantine").json["entries"]
    assert_problem(client.post(f"/admin/quarantine/{entry['id']}/requeue"), 503, "broker_unavailable")
    assert services.redis.zrange(MESSAGES, 0, -1) == [entry["id"]]


def test_the_same_words_of_two_tasks_are_two_messages(services, letters, client):
    letters.letters += [dataclasses.replace(GARBAGE, headers={**GARBAGE.headers, "id": name}) for name in "xy"]
    Courier(services).sweep()
    assert len(client.get("/admin/quarantine").json["entries"]) == 2


def test_an_entry_that_is_gone_by_now_does_not_hide_the_older_ones(services, letters, client):
    letters.letters += [dataclasses.replace(GARBAGE, headers={**GARBAGE.headers, "id": name}) for name in "xyz"]
    Courier(services).sweep()
    newest, *older = [entry["id"] for entry in client.get("/admin/quarantine").json["entries"]]
    services.redis.delete(f"quarantine:{newest}")
    page = client.get("/admin/quarantine?limit=1").json
    seen = [entry["id"] for entry in page["entries"]]
    while page["next_cursor"]:
        page = client.get(f"/admin/quarantine?limit=1&cursor={page['next_cursor']}").json
        seen += [entry["id"] for entry in page["entries"]]
    assert seen == older


def test_what_lay_there_for_as_long_as_results_are_kept_is_gone(services, letters, client):
    letters.letters.append(GARBAGE)
    Courier(services).sweep()
    (entry,) = client.get("/admin/quarantine").json["entries"]
    most = services.settings.result_ttl
    assert most - 60 < services.redis.ttl(f"quarantine:{entry['id']}") <= most
    services.redis.zadd(MESSAGES, {entry["id"]: services.jobs.now() - most - 1})
    assert client.get("/admin/quarantine").json["entries"] == []
    assert services.redis.zcard(MESSAGES) == 0


def test_a_task_in_quarantine_is_run_again_as_a_new_one_of_its_caller(services, published, client, exhausted):
    (entry,) = client.get("/admin/quarantine").json["entries"]
    assert (entry["id"], entry["kind"], entry["reason"]) == (exhausted, "task", "attempts_exhausted")
    again = client.post(f"/admin/quarantine/{exhausted}/requeue").json["task_id"]
    assert [sent.task_id for sent in published] == [again]
    new = services.jobs.get(again)
    assert (new.caller, new.rerun_of, services.jobs.get(exhausted).status) == ("alice", exhausted, Status.FAILED)
    assert_problem(client.post(f"/admin/quarantine/{exhausted}/requeue"), 404, "entry_not_found")


def test_what_cannot_be_queued_now_stays_in_quarantine(services, exhausted):
    def refuse(_):
        raise BrokerUnavailable

    client = create_app(dataclasses.replace(services, publish=refuse)).test_client()
    assert_problem(client.post(f"/admin/quarantine/{exhausted}/requeue"), 503, "broker_unavailable")
    assert [entry["id"] for entry in client.get("/admin/quarantine").json["entries"]] == [exhausted]


def test_who_is_killed_over_a_requeue_leaves_it_to_the_next_who_makes_no_second_task(
    services, client, exhausted, monkeypatch
):
    def killed(_):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(services.quarantine, "remove", killed)
        with pytest.raises(SystemExit):
            client.post(f"/admin/quarantine/{exhausted}/requeue")
    assert client.post(f"/admin/quarantine/{exhausted}/requeue").status_code == 404
    services.redis.delete(f"lock:quarantine:{exhausted}")
    (first,) = (i for i, _ in services.jobs.of("alice", math.inf, 9) if i != exhausted)
    assert client.post(f"/admin/quarantine/{exhausted}/requeue").json["task_id"] == first
    assert client.get("/admin/quarantine").json["entries"] == []


@pytest.mark.parametrize("reason", ["expired", "maxlen"])
def test_a_message_that_a_policy_took_out_of_its_queue_ends_no_job(services, letters, reason):
    new = job()
    services.jobs.create(new)
    letters.letters.append(letter_of(new, reason=reason))
    Courier(services).sweep()
    assert letters.letters == []
    assert services.jobs.get(new.task_id).phase is Phase.QUEUED


def test_a_message_of_what_is_no_text_keeps_none_behind_it_out(services, letters, client):
    odd = dataclasses.replace(GARBAGE, headers={"id": "\ud800abc", "task": GENERATE})
    letters.letters += [odd, GARBAGE]
    Courier(services).sweep()
    assert letters.letters == []
    assert len(client.get("/admin/quarantine").json["entries"]) == 2


def test_no_key_of_its_caller_stands_in_the_way_of_a_requeue(services, client, exhausted):
    alice = Caller.model_construct(name="alice", sha256="", open_tasks=0)
    for key in (f"requeue:{exhausted}", f"requeue {exhausted}"):
        Intake(services).submit(GenerateRequest(prompt="another"), alice, key)
    again = client.post(f"/admin/quarantine/{exhausted}/requeue").json["task_id"]
    assert services.jobs.get(again).rerun_of == exhausted


def test_a_message_that_comes_back_while_it_is_sent_again_stays(services, letters, client, monkeypatch):
    letters.letters.append(GARBAGE)
    Courier(services).sweep()
    (entry,) = client.get("/admin/quarantine").json["entries"]
    send = services.quarantine.send_again

    def rejected_at_once(entry):
        send(entry)
        letters.letters.append(GARBAGE)
        services.quarantine.collect()

    monkeypatch.setattr(services.quarantine, "send_again", rejected_at_once)
    assert client.post(f"/admin/quarantine/{entry['id']}/requeue").status_code == 202
    assert [again["id"] for again in client.get("/admin/quarantine").json["entries"]] == [entry["id"]]


def test_what_is_dropped_is_gone(services, letters, client, exhausted):
    letters.letters.append(GARBAGE)
    Courier(services).sweep()
    for entry in client.get("/admin/quarantine").json["entries"]:
        assert client.delete(f"/admin/quarantine/{entry['id']}").status_code == 204
        assert_problem(client.delete(f"/admin/quarantine/{entry['id']}"), 404, "entry_not_found")
    assert client.get("/admin/quarantine").json["entries"] == []
    assert services.redis.keys("quarantine:*") == []
    assert services.jobs.get(exhausted).status is Status.FAILED


def test_tasks_and_messages_are_one_list_by_their_time(services, letters, client):
    for each in ("first", "second"):
        letters.letters.append(dataclasses.replace(GARBAGE, body=each.encode()))
        Courier(services).sweep()
        new = job()
        services.jobs.create(new)
        services.jobs.fail(new.task_id, AttemptsExhausted("Lost."), quarantine=True)
    kinds = [entry["kind"] for entry in client.get("/admin/quarantine").json["entries"]]
    assert kinds == ["task", "message", "task", "message"]
    assert [entry["kind"] for entry in client.get("/admin/quarantine?limit=2").json["entries"]] == kinds[:2]


def test_the_list_comes_in_pages_newest_first(services, client):
    ids = []
    for _ in range(5):
        new = job()
        services.jobs.create(new)
        services.jobs.fail(new.task_id, AttemptsExhausted("Lost."), quarantine=True)
        ids.append(new.task_id)
    first = client.get("/admin/quarantine?limit=3").json
    second = client.get(f"/admin/quarantine?limit=3&cursor={first['next_cursor']}").json
    assert [entry["id"] for entry in first["entries"] + second["entries"]] == ids[::-1]
    assert second["next_cursor"] is None


def test_only_an_operator_sees_the_quarantine(door, hire, exhausted):
    clerk, boss = door(hire("clerk")), door(hire("boss", role="operator"))
    for method, path in (("GET", ""), ("POST", f"/{exhausted}/requeue"), ("DELETE", f"/{exhausted}")):
        assert_problem(clerk.open(f"/admin/quarantine{path}", method=method), 403, "forbidden")
    assert len(boss.get("/admin/quarantine").json["entries"]) == 1


def test_a_readable_message_that_the_broker_gave_up_ends_its_queued_job(services, letters, client):
    new = job()
    services.jobs.create(new)
    letters.letters.append(letter_of(new))
    Courier(services).sweep()
    assert services.jobs.get(new.task_id).error["code"] == "attempts_exhausted"
    assert [entry["id"] for entry in client.get("/admin/quarantine").json["entries"]] == [new.task_id]


def test_a_job_whose_record_is_lost_too_ends_all_the_same(services, letters):
    lost = job()
    letters.letters.append(letter_of(lost))
    Courier(services).sweep()
    assert services.jobs.get(lost.task_id).error["code"] == "attempts_exhausted"


def test_a_readable_message_too_many_does_nothing_to_a_job_that_runs(services, letters, client):
    new = job()
    services.jobs.create(new)
    services.jobs.claim(new.task_id, "t1", "worker-1")
    letters.letters.append(letter_of(new))
    Courier(services).sweep()
    assert services.jobs.get(new.task_id).phase is Phase.STARTING
    assert client.get("/admin/quarantine").json["entries"] == []


def test_a_broken_message_of_a_queued_job_ends_that_job(services, letters):
    new = job()
    services.jobs.create(new)
    letters.letters.append(letter_of(new, body=b"{"))
    Courier(services).sweep()
    assert services.jobs.get(new.task_id).error["code"] == "internal"


def test_a_message_that_only_a_newer_version_can_read_leaves_its_job_in_line(services, letters, client):
    new = job()
    services.jobs.create(new)
    of_a_newer_version(services.redis, new.task_id, mood="calm")
    letters.letters.append(letter_of(new, body=b"{"))
    Courier(services).sweep()
    assert (services.jobs.get(new.task_id).phase, letters.letters) == (Phase.QUEUED, [])
    assert client.get("/admin/quarantine").json["entries"] == []


def test_of_a_strangers_long_message_only_the_beginning_is_kept(services, letters, client):
    letters.letters.append(dataclasses.replace(GARBAGE, body=b"x" * 2 * MAX_BODY_BYTES))
    Courier(services).sweep()
    (entry,) = client.get("/admin/quarantine").json["entries"]
    assert entry["bytes"] == MAX_BODY_BYTES
    assert_problem(client.post(f"/admin/quarantine/{entry['id']}/requeue"), 409, "not_requeuable")
    assert len(client.get("/admin/quarantine").json["entries"]) == 1


def test_more_messages_than_fit_stay_with_the_broker(services, letters):
    services.redis.zadd(MESSAGES, {f"m{index}": services.jobs.now() for index in range(MAX_MESSAGES)})
    letters.letters.append(GARBAGE)
    Courier(services).sweep()
    assert (letters.letters, letters.fetched) == ([GARBAGE], [])


def test_no_more_messages_are_fetched_than_there_is_room_for(services, letters):
    services.redis.zadd(MESSAGES, {f"m{index}": services.jobs.now() for index in range(MAX_MESSAGES - 1)})
    letters.letters += [dataclasses.replace(GARBAGE, body=body) for body in (b"one", b"two")]
    Courier(services).sweep()
    assert [letter.body for letter in letters.fetched] == [b"one"]


def test_jobs_whose_messages_the_broker_lost_are_published_again_once(services, published):
    lost = [job() for _ in range(3)]
    for new in lost:
        services.jobs.create(new)
        services.jobs.confirm(new.task_id)
    courier = Courier(services)
    courier.sweep()
    services.redis.zadd("jobs:queued:gen.tiny", {new.task_id: 1 + index for index, new in enumerate(lost)})
    courier.sweep()
    assert published == [], "one look may have met messages on their way"
    for _ in range(3):
        courier.sweep()
    assert [sent.task_id for sent in published] == [new.task_id for new in lost]


def test_a_long_healthy_queue_is_not_doubled(services, published):
    for _ in range(3):
        new = job()
        services.jobs.create(new)
        services.publish(new)
        services.jobs.confirm(new.task_id)
        services.redis.zadd("jobs:queued:gen.tiny", {new.task_id: 1})
    for _ in range(3):
        Courier(services).sweep()
    assert len(published) == 3


def test_a_queued_id_without_a_record_is_forgotten(services, published):
    services.redis.zadd("jobs:queued:gen.tiny", {"ghost": 1})
    courier = Courier(services)
    for _ in range(3):
        courier.sweep()
    assert (services.redis.zscore("jobs:queued:gen.tiny", "ghost"), published) == (None, [])
