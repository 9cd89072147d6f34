"""Callers: the file of keys and its mistakes, who is let in, what each may do and see."""

import dataclasses
import json
import stat

import pytest
import yaml

from app import keys
from app.callers import ANYONE, Callers, check_door, load_callers, read_callers
from app.errors import RateLimited, SettingsError, StoreUnavailable, Unauthorized
from app.keys import KeysError
from app.services import make_redis
from app.web import create_app
from tests.stack import free_port, until
from tests.things import indexes, job
from tests.unit.test_web import assert_problem, finished, queued

HASH = "ab" * 32


@pytest.fixture
def file(tmp_path):
    return tmp_path / "keys.yaml"


@pytest.fixture
def hire(file):
    """Make a key and put its hash into the file; the key."""

    def put(name, **terms):
        key, caller = keys.new_key(name, **{"rate": "", **terms})
        keys.add(file, caller)
        return key

    return put


@pytest.fixture
def reader(services, file):
    """The callers of the file, once somebody is in it."""
    return lambda: Callers(services.redis, str(file))


@pytest.fixture
def door(services, reader):
    """A test client of a web tier with keys; call it with a key for that caller's."""

    def come(key=None):
        client = create_app(dataclasses.replace(services, callers=reader())).test_client()
        if key is not None:
            client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {key}"
        return client

    return come


def write(file, *entries):
    file.write_text(yaml.safe_dump({"callers": list(entries)}))


def mistakes(file):
    with pytest.raises(SettingsError) as refused:
        read_callers(file)
    return str(refused.value).splitlines()


# ---- The file


def test_a_key_is_kept_as_a_hash_in_a_file_for_its_owner_alone(file, hire):
    key = hire("alice")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert key not in file.read_text()
    [caller] = read_callers(file)
    assert (caller.name, caller.role, caller.open_tasks) == ("alice", "client", 100)


def test_two_keys_are_two_strangers(hire):
    first, second = hire("alice"), hire("bob")
    assert first != second
    assert min(len(first), len(second)) > 40


def test_a_name_is_given_once(file, hire):
    hire("alice")
    before = file.read_text()
    with pytest.raises(KeysError, match="holds alice already"):
        hire("alice")
    assert file.read_text() == before


def test_a_changed_file_keeps_its_rights(file, hire):
    hire("alice")
    file.chmod(0o640)
    hire("bob")
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_nothing_else_is_left_beside_the_file(file, hire, tmp_path):
    hire("alice")
    assert list(tmp_path.iterdir()) == [file]


def test_a_revoked_caller_is_gone_and_cannot_be_revoked_again(file, hire):
    hire("alice")
    hire("bob")
    keys.revoke(file, "alice")
    assert [caller.name for caller in read_callers(file)] == ["bob"]
    with pytest.raises(KeysError, match="holds no alice"):
        keys.revoke(file, "alice")


@pytest.mark.parametrize(
    ("terms", "word"),
    [({"name": "a b"}, "name"), ({"name": ""}, "name"), ({"name": "x", "rate": "often"}, "rate"),
     ({"name": "x", "rate": "0/second"}, "rate"), ({"name": "x", "open_tasks": -1}, "open_tasks")],
)  # fmt: skip
def test_terms_that_cannot_be_make_no_key(terms, word):
    with pytest.raises(KeysError, match=f"^{word}: "):
        keys.new_key(**terms)


def test_all_mistakes_of_the_file_are_told_together_and_no_value_is_repeated(file):
    good = {"name": "alice", "sha256": HASH}
    write(
        file, good, good, {"name": "hunter2 !", "sha256": HASH}, {"name": "bob"}, {**good, "key": "hunter2"},
        {"name": "eve", "sha256": "12" * 32, "role": "king", "rate": "hunter2", "open_tasks": -1}, "hunter2",
        {"name": "anonymous", "sha256": "34" * 32},
    )  # fmt: skip
    found = mistakes(file)
    places = (
        "2.name",
        "3.sha256",
        "4.key",
        "5.role",
        "5.rate",
        "5.open_tasks",
        "callers.6",
        "name alice",
        "anonymous is",
    )
    for place in places:
        assert any(place in line for line in found), place
    assert all(line.startswith(f"API_KEYS_FILE: {file}: ") for line in found)
    assert "hunter2" not in "".join(found)


def test_two_names_with_one_key_are_a_mistake(file):
    write(file, {"name": "alice", "sha256": HASH}, {"name": "bob", "sha256": HASH})
    assert mistakes(file) == [f"API_KEYS_FILE: {file}: alice and bob have the same key"]


@pytest.mark.parametrize("text", ["callers: {a: 1}", "- a", "callers: [\nhunter2", "keys: []", "hunter2", b"\xff\x00"])
def test_what_is_no_list_of_callers_is_one_sentence(file, text):
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    [line] = mistakes(file)
    assert line.startswith("API_KEYS_FILE: ")
    assert "hunter2" not in line


def test_a_file_that_is_not_there_or_holds_nobody_keeps_the_web_tier_from_starting(file, reader):
    with pytest.raises(SettingsError, match="No such file"):
        reader()
    file.write_text("callers: []")
    with pytest.raises(SettingsError, match="holds no caller"):
        reader()


# ---- The door


@pytest.mark.parametrize(
    "bind", ["127.0.0.1:8000", "127.1.2.3:1", "[::1]:8000", "localhost:8000", "unix:/run/web.sock"]
)
def test_without_keys_this_machine_is_served(settings, bind):
    check_door(settings.model_copy(update={"web_bind": bind}))


@pytest.mark.parametrize("bind", ["0.0.0.0:8000", "[::]:8000", "10.0.0.1:80", "darkroom.example:80", ":8000"])
def test_without_keys_other_machines_are_not_let_in(settings, services, bind):
    exposed = settings.model_copy(update={"web_bind": bind})
    with pytest.raises(SettingsError, match="API_KEYS_FILE"):
        load_callers(exposed, services.redis)
    check_door(exposed.model_copy(update={"allow_anonymous": True}))


def test_with_keys_everywhere_is_served(settings, services, file, hire):
    hire("alice")
    update = {"web_bind": "0.0.0.0:80", "api_keys_file": str(file)}
    assert load_callers(settings.model_copy(update=update), services.redis)


def test_without_keys_everyone_is_the_same_operator(services):
    assert services.callers.identify("") is ANYONE
    assert services.callers.identify("Bearer whatever") is ANYONE


# ---- Who it is


def test_the_holder_of_a_key_is_known_by_it(hire, reader):
    alice, bob = hire("alice"), hire("bob", role="operator")
    callers = reader()
    assert [callers.identify(f"Bearer {key}").name for key in (alice, bob)] == ["alice", "bob"]
    assert callers.identify(f"bearer  {bob}").is_operator


def test_whoever_has_no_key_is_refused(hire, reader, file):
    key = hire("alice")
    kept = read_callers(file)[0].sha256
    callers = reader()
    for header in (
        "",
        "Bearer",
        "Bearer ",
        "Bearer x",
        key,
        f"Basic {key}",
        f"Bearer {key}x",
        f"Bearer {kept}",
        "Bearer é",
    ):
        with pytest.raises(Unauthorized):
            callers.identify(header)


def test_a_new_key_opens_and_a_revoked_one_closes_without_a_restart(hire, reader, file):
    alice = hire("alice")
    callers = reader()
    bob = hire("bob")
    until(lambda: admitted(callers, bob), 5, "bob is let in")
    keys.revoke(file, "alice")
    until(lambda: not admitted(callers, alice), 5, "alice is not let in")
    assert admitted(callers, bob)


def test_a_file_that_becomes_wrong_changes_nothing(hire, reader, file):
    alice = hire("alice")
    callers = reader()
    file.write_text("callers: [")
    callers._file._looked_at = 0
    assert admitted(callers, alice)


def admitted(callers, key):
    try:
        return callers.identify(f"Bearer {key}")
    except Unauthorized:
        return None


# ---- What it may


def test_a_rate_is_kept_and_says_when_to_come_again(hire, reader):
    key = hire("alice", rate="3/hour")
    callers = reader()
    for _ in range(3):
        callers.identify(f"Bearer {key}")
    with pytest.raises(RateLimited, match="At most 3 requests per hour") as refused:
        callers.identify(f"Bearer {key}")
    assert 1 <= refused.value.retry_after <= 3600


def test_a_rate_is_each_callers_own(hire, reader):
    alice, bob = hire("alice", rate="1/hour"), hire("bob", rate="1/hour")
    callers = reader()
    assert [callers.identify(f"Bearer {key}").name for key in (alice, bob)] == ["alice", "bob"]


def test_two_replicas_keep_one_rate(hire, reader):
    key = hire("alice", rate="2/hour")
    for callers in (reader(), reader()):
        callers.identify(f"Bearer {key}")
    with pytest.raises(RateLimited):
        reader().identify(f"Bearer {key}")


def test_a_store_that_is_away_is_said_and_lets_nobody_in(hire, file, settings):
    key = hire("alice", rate="2/hour")
    away = make_redis(settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{free_port()}/0"}), "web")
    with pytest.raises(StoreUnavailable):
        Callers(away, str(file)).identify(f"Bearer {key}")
    away.close()


# ---- Over HTTP


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
