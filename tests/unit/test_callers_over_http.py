"""What a caller is answered: who is let in, whose tasks it sees, and how much it may ask for."""

import json
import threading

import pytest

from app import keys
from app.errors import StoreUnavailable
from app.jobs import EVENTS
from tests.answers import assert_problem, finished, queued
from tests.things import indexes, job


def test_a_stranger_is_told_how_to_come_in(door, hire):
    hire("alice")
    for headers in ({}, {"Authorization": "Bearer hunter2"}):
        answer = door().get("/tasks", headers=headers)
        assert "hunter2" not in json.dumps(assert_problem(answer, 401, "unauthorized"))
        assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/version", "/openapi.json", "/docs"])
def test_what_says_nothing_about_anyones_tasks_is_open(door, hire, path):
    hire("alice")
    assert door().get(path).status_code != 401


def test_every_other_route_wants_a_key(services, door, hire):
    hire("alice")
    from app.http import OPEN_ENDPOINTS, SIGNED_ENDPOINTS

    client = door()
    for rule in client.application.url_map.iter_rules():
        if rule.endpoint not in OPEN_ENDPOINTS | SIGNED_ENDPOINTS:
            path = rule.rule.replace("<string:task_id>", "x").replace("<string:model_version>", "x")
            for method in rule.methods - {"OPTIONS", "HEAD"}:
                answer = client.open(path.replace("<int:index>", "0"), method=method)
                assert answer.status_code == 401, f"{method} {rule.rule}"


@pytest.fixture
def watched(door, hire, monkeypatch):
    """Alice, who is no caller any more as soon as her key is revoked, and the id of a task of hers."""
    monkeypatch.setattr("app.callers.FRESH", 0)
    monkeypatch.setattr("app.watch.PATIENCE", 0.05)
    hire("bob")
    client = door(hire("alice"))
    return client, client.post("/generate", json={"prompt": "a red star"}).json["task_id"]


def test_who_follows_a_task_when_the_key_is_revoked_hears_no_more(services, watched, file):
    client, task_id = watched
    with client.get(f"/tasks/{task_id}/events", buffered=False) as answer:
        stream = answer.iter_encoded()
        assert b"event: status" in next(stream)
        keys.revoke(file, "alice")
        progress = {"task_id": task_id, "version": 9, "step": 1, "steps": 2}
        services.redis.publish(EVENTS, json.dumps(progress))
        services.jobs.cancel(task_id)
        assert list(stream) == []


def test_who_waits_for_a_task_when_the_key_is_revoked_is_a_stranger(watched, file):
    client, task_id = watched
    threading.Timer(0.3, keys.revoke, (file, "alice")).start()
    assert_problem(client.get(f"/tasks/{task_id}?wait=30"), 401, "unauthorized")


def test_reading_goes_on_while_the_status_store_is_full(door, hire, full):
    client = door(hire("alice", rate="9/hour"))
    assert [client.get(path).status_code for path in ("/tasks", "/models")] == [200, 200]
    assert_problem(client.post("/generate", json={"prompt": "x"}), 503, "store_unavailable")


def test_who_follows_a_task_while_the_status_store_is_full_hears_on(watched, full):
    client, task_id = watched
    with client.get(f"/tasks/{task_id}/events", buffered=False) as answer:
        stream = answer.iter_encoded()
        assert [next(stream)[:3] for _ in range(3)] == [b"id:", b": a", b": a"]


def test_a_stream_ends_by_itself_when_the_status_store_goes_away(services, watched, monkeypatch):
    client, task_id = watched
    with client.get(f"/tasks/{task_id}/events", buffered=False) as answer:
        stream = answer.iter_encoded()
        next(stream)

        def away(*_):
            raise StoreUnavailable

        monkeypatch.setattr(services.jobs, "get", away)
        assert list(stream) == []


def test_too_many_requests_are_429_with_a_time(door, hire):
    client = door(hire("alice", rate="2/hour"))
    assert [client.get("/tasks").status_code for _ in range(3)] == [200, 200, 429]
    answer = client.get("/tasks")
    assert_problem(answer, 429, "rate_limited")
    assert 60 < int(answer.headers["Retry-After"]) <= 3600


def test_too_many_unfinished_tasks_are_429_until_one_ends(door, hire):
    client = door(hire("alice", open_tasks=2))
    body = {"prompt": "a red star"}
    tasks = [client.post("/generate", json=body).json["task_id"] for _ in range(2)]
    answer = client.post("/generate", json=body)
    assert assert_problem(answer, 429, "quota_exceeded")["detail"] == "At most 2 unfinished tasks."
    assert int(answer.headers["Retry-After"]) >= 1
    assert client.post(f"/tasks/{tasks[0]}/rerun").json["code"] == "quota_exceeded"
    client.post(f"/tasks/{tasks[0]}/cancel")
    assert client.post("/generate", json=body).status_code == 202


def test_unfinished_tasks_are_counted_for_each_caller_alone(door, hire):
    alice, bob = door(hire("alice", open_tasks=1)), door(hire("bob", open_tasks=1))
    assert [c.post("/generate", json={"prompt": "x"}).status_code for c in (alice, bob)] == [202, 202]


ELSEWHERE = [
    ("GET", "/tasks/{}"), ("GET", "/tasks/{}?wait=1"), ("GET", "/tasks/{}?include=image"), ("POST", "/tasks/{}/start"),
    ("POST", "/tasks/{}/cancel"), ("POST", "/tasks/{}/rerun"), ("DELETE", "/tasks/{}"), ("GET", "/tasks/{}/events"),
    ("GET", "/tasks/{}/image"), ("GET", "/tasks/{}/images/0"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), ELSEWHERE)
@pytest.mark.parametrize("role", ["client", "operator"])
def test_anothers_task_is_not_there(door, hire, services, method, path, role):
    hire("alice")
    bob = door(hire("bob", role=role))
    theirs = [finished(services, caller="alice"), queued(services, caller="alice")]
    before = [services.redis.hgetall(f"job:{task_id}") for task_id in theirs]
    for task_id in (*theirs, "00000000-0000-4000-8000-000000000000"):
        problem = assert_problem(bob.open(path.format(task_id), method=method), 404, "task_not_found")
        assert problem["detail"] == f"There is no task {task_id}."
    assert [services.redis.hgetall(f"job:{task_id}") for task_id in theirs] == before


def test_what_another_deleted_is_not_there_either(door, hire, services):
    alice, bob = door(hire("alice")), door(hire("bob"))
    task_id = finished(services, caller="alice")
    assert alice.delete(f"/tasks/{task_id}").status_code == 204
    assert (alice.get(f"/tasks/{task_id}").status_code, bob.get(f"/tasks/{task_id}").status_code) == (410, 404)


def test_a_list_holds_the_callers_own_only(door, hire, services):
    alice, bob = door(hire("alice")), door(hire("bob"))
    mine = queued(services, caller="bob")
    queued(services, caller="alice")
    assert [task["task_id"] for task in bob.get("/tasks").json["tasks"]] == [mine]
    assert len(alice.get("/tasks").json["tasks"]) == 1


def test_an_idempotency_key_is_each_callers_own(door, hire):
    alice, bob = door(hire("alice")), door(hire("bob"))
    asked = {"json": {"prompt": "x"}, "headers": {"Idempotency-Key": "one"}}
    first, second = (client.post("/generate", **asked).json["task_id"] for client in (alice, bob))
    assert first != second
    assert alice.post("/generate", **asked).json["task_id"] == first


# ---- Inputs that are there already


@pytest.fixture
def ask(door, services):
    """Ask with an `input_url`; the answer."""
    return lambda client, name: client.post(
        "/generate", json={"prompt": "x", "input_url": services.storage.url_of(name), "model_version": "tiny-scenes-1"}
    )


@pytest.mark.parametrize("name", ["output/{}.png", "output/{}-1.png", "input/{}"])
def test_an_input_is_ones_own_and_anothers_is_refused_like_any_other_place(door, hire, services, ask, name):
    alice, bob, boss = door(hire("alice")), door(hire("bob")), door(hire("boss", role="operator"))
    theirs = name.format(finished(services, caller="alice"))
    assert ask(alice, theirs).status_code == 202
    refused = assert_problem(ask(bob, theirs), 422, "invalid_request")
    elsewhere = bob.post("/generate", json={"prompt": "x", "input_url": "gs://other/output/x.png"}).json
    assert (refused["detail"], refused["errors"]) == (elsewhere["detail"], elsewhere["errors"])
    assert ask(boss, theirs).status_code == 202


def test_an_input_that_belongs_to_no_task_is_the_operators_alone(door, hire, ask):
    bob, boss = door(hire("bob")), door(hire("boss", role="operator"))
    for name in ("output/x.png", "input/shared/house.png", "output/doctor-00.png"):
        assert ask(bob, name).status_code == 422
        assert ask(boss, name).status_code == 202


def test_a_refused_input_leaves_nothing_behind(door, hire, services, ask):
    hire("alice")
    ask(door(hire("bob")), f"output/{finished(services, caller='alice')}.png")
    assert services.redis.zcard("jobs:of:bob") == 0
    assert indexes(services.redis, "x") == set()


def test_a_caller_is_on_the_record(door, hire, services):
    task_id = door(hire("alice")).post("/generate", json={"prompt": "x"}).json["task_id"]
    assert services.jobs.get(task_id).caller == "alice"
    assert job().caller == "anonymous"
