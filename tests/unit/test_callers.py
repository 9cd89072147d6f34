"""Callers: the file of keys and its mistakes, who is let in, what each may do and see."""

import stat
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from app import keys
from app.callers import ANYONE, Callers, check_door, load_callers, read_callers
from app.errors import RateLimited, SettingsError, StoreUnavailable, Unauthorized
from app.keys import KeysError
from app.services import make_redis
from tests.stack import free_port, until

HASH = "ab" * 32


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


def test_keys_that_are_made_at_once_are_all_kept(file, hire):
    names = {f"caller{number}" for number in range(16)}
    with ThreadPoolExecutor(16) as hands:
        list(hands.map(hire, names))
    assert {caller.name for caller in read_callers(file)} == names


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
     ({"name": "x", "rate": "0/second"}, "rate"), ({"name": "x", "rate": "1/99999999999999999 year"}, "rate"),
     ({"name": "x", "rate": "99999999999999999/second"}, "rate"),
     ({"name": "x", "rate": "10/second;100/hour"}, "rate"), ({"name": "x", "open_tasks": -1}, "open_tasks")],
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


@pytest.mark.parametrize("bind", ["127.0.0.1:8000", "127.1.2.3:1", "[::1]:8000", "localhost:8000"])
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
