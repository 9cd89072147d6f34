"""docs/security.md: every row names tests that there are; and those rows whose tests have no better home."""

import contextlib
import hmac
import re
import subprocess
import uuid
from pathlib import Path

import pytest
import structlog

from app.errors import Unauthorized
from app.http import INERT
from tests.answers import assert_problem, finished, local, queued, upload
from tests.things import picture

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()
ELSEWHERE = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Origin": "http://evil.example"},
    {"Origin": "http://localhost:3000"},
    {"Origin": "null"},
]
HERE = [{}, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}, {"Origin": "http://localhost"}]


# What a secret looks like: keys of ours and of clouds, private keys, passwords in URLs but those that stand for one.
SECRET = re.compile(
    r"dk_[A-Za-z0-9_-]{30,}|whsec_[A-Za-z0-9+/]{40,}|-----BEGIN [A-Z ]*PRIVATE KEY-----|AKIA[0-9A-Z]{16}|AIza[\w-]{35}"
    r"|gh[pousr]_[A-Za-z0-9]{36}|hf_[A-Za-z0-9]{30,}|eyJ[\w-]{20,}\.eyJ[\w-]{20,}"
    r"|\w+s?://[^\s:/@{}$\"'`]*:(?!password\b|guest\b|pw\b)[A-Za-z0-9]{12,}@"
)


def test_no_tracked_file_holds_a_secret():
    told = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / line for line in told.splitlines()]
    texts = {path.relative_to(ROOT): path.read_text(errors="replace") for path in files if path.is_file()}
    found = [(str(name), match[0][:12]) for name, text in texts.items() for match in SECRET.finditer(text)]
    assert found == []


def test_the_search_for_secrets_finds_them():
    keys = ["dk_" + "a" * 43, "whsec_" + "b" * 44, "-----BEGIN RSA PRIVATE" + " KEY-----", "hf_" + "c" * 34]
    assert [key for key in [*keys, "amqp://user:" + "d" * 20 + "@host"] if not SECRET.search(key)] == []


def test_every_key_is_compared_in_constant_time(reader, hire, monkeypatch):
    keys, compared, compare = [hire(name) for name in ("alice", "bob", "carol")], [], hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append(a) or compare(a, b))
    for key in (*keys, "dk_wrong"):
        compared.clear()
        with contextlib.suppress(Unauthorized):
            reader().identify(f"Bearer {key}")
        assert len(compared) == 3


def test_each_row_of_the_threat_model_names_tests_that_there_are():
    tests = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        names = re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
        tests |= {f"{path.relative_to(ROOT / 'tests')}::{name}" for name in names}
    rows = re.findall(r"^\| .+? \| .+? \| (.+) \|$", PAGE, re.MULTILINE)[2:]
    named = [re.findall(r"`([^`]+)`", row) for row in rows]
    assert len(rows) > 15
    assert [row for row, names in zip(rows, named, strict=True) if not names] == []
    assert [name for names in named for name in names if name not in tests] == []


@pytest.mark.parametrize("headers", ELSEWHERE)
def test_a_page_from_elsewhere_changes_nothing_behind_an_open_door(client, services, headers):
    task_id = queued(services)
    for method, path in (("POST", f"/tasks/{task_id}/cancel"), ("DELETE", f"/tasks/{task_id}"), ("POST", "/generate")):
        answer = client.open(path, method=method, headers=headers)
        assert (answer.status_code, answer.mimetype) == (403, "application/problem+json")
    assert services.jobs.get(task_id).phase == "QUEUED"


@pytest.mark.parametrize("headers", HERE)
def test_our_own_page_and_programs_are_let_in(client, services, headers):
    assert client.post(f"/tasks/{queued(services)}/cancel", headers=headers).status_code == 200


def test_who_has_a_key_may_ask_from_anywhere(door, hire):
    key = hire("alice")
    answer = door(key).post("/generate", json={"prompt": "x"}, headers={"Origin": "http://evil.example"})
    assert answer.status_code == 202


def test_no_answer_can_be_framed_and_none_but_the_page_runs_anything(client, services):
    for path in ("/tasks", "/nope", local(services.storage.download_url(stored(services), 60))):
        with client.get(path) as answer:
            assert answer.headers["Content-Security-Policy"] == INERT
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
    for path in ("/", "/docs"):
        policy = client.get(path).headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in policy
        assert "script-src 'self';" in policy


def test_no_other_site_may_read_an_answer(client, services):
    for path in ("/tasks", f"/tasks/{queued(services)}", "/openapi.json"):
        headers = client.options(path, headers={"Origin": "http://evil.example"}).headers
        assert [name for name in headers if name[0].startswith("Access-Control")] == []


def test_a_picture_that_is_a_page_as_well_is_never_served_as_one(client, services):
    path = upload(client)
    polyglot = picture() + b"<html><script>alert(1)</script>"
    assert client.put(path, data=polyglot, headers={"Content-Type": "text/html"}).status_code == 200
    name = f"input/{path.rpartition('/')[2]}"
    with client.get(local(services.storage.download_url(name, 60))) as answer:
        assert answer.data == polyglot
        assert answer.mimetype == "application/octet-stream"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("name", ["evil.html", "x.png.exe", "x.png%22%3b%20filename%3d%22y", "%0d%0aX-Evil:1"])
def test_a_signed_url_chooses_no_name_to_be_saved_under(client, services, name):
    url = local(services.storage.download_url(stored(services), 60))
    assert client.get(f"{url.rpartition('/')[0]}/{name}").status_code == 403
    with client.get(url) as answer:
        assert answer.headers["Content-Disposition"] == "inline; filename=x.png"


@pytest.mark.parametrize("at", range(0, 60, 7))
def test_a_signed_url_with_any_character_changed_is_refused(client, services, at):
    name = stored(services)
    for url in (services.storage.download_url(name, 60), services.storage.upload_url(name, 60, 9).url):
        token = local(url).split("/")[2]
        place = at * len(token) // 60
        other = "A" if token[place] != "A" else "B"
        forged = local(url).replace(token, token[:place] + other + token[place + 1 :])
        assert client.get(forged).status_code == client.put(forged, data=b"x").status_code == 403


def test_a_refusal_does_not_repeat_a_signed_url(client, services):
    url = local(services.storage.upload_url("input/x", 60, 1).url)
    answer = client.put(url, data=b"too long")
    assert (answer.status_code, answer.json["instance"]) == (413, "/files/")
    assert url.split("/")[2] not in answer.text


def test_an_upload_that_breaks_off_is_not_kept(client, services):
    path = upload(client)
    task_id = path.rpartition("/")[2]
    told = {"CONTENT_LENGTH": "100", "wsgi.input_terminated": True}
    assert client.put(path, data=b"abc", environ_overrides=told).status_code == 400
    assert services.storage.size(f"input/{task_id}") is None


def test_looking_for_anothers_task_costs_what_looking_for_none_costs(door, hire, services):
    alices, bob = finished(services, caller="alice"), door(hire("bob"))
    answers = {}
    for task_id in (alices, "0" * 36):
        services.redis.config_resetstat()
        answer = bob.get(f"/tasks/{task_id}")
        asked = {name: told["calls"] for name, told in services.redis.info("commandstats").items()}
        answers[task_id] = (answer.status_code, answer.json["detail"].replace(task_id, ""), tuple(asked.items()))
    assert len(set(answers.values())) == 1
    assert answers[alices][0] == 404
    assert asked["cmdstat_hgetall"] == 1


@pytest.mark.parametrize("key", ["x" * 201, "é", "a\tb"])
def test_a_long_or_strange_idempotency_key_is_refused_and_not_cut(client, published, key):
    assert client.post("/generate", json={"prompt": "x"}, headers={"Idempotency-Key": key}).status_code == 400
    assert published == []


def stored(services):
    if services.storage.size("output/x.png") is None:
        services.storage.put("output/x.png", picture(), "image/png")
    return "output/x.png"


def test_a_refusal_is_not_longer_than_what_it_refuses(client):
    answer = client.post("/generate", json={"prompt": "a", **{f"{number:0200}": 1 for number in range(200)}})
    errors = assert_problem(answer, 422, "invalid_request")["errors"]
    assert len(errors) == 20
    assert len(answer.data) < 10_000


def test_an_address_that_is_no_ones_puts_nothing_into_the_log(client):
    task_id = str(uuid.uuid4())
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        client.get("/tasks/%1b[2J%1b[31mred")
        client.get(f"/tasks/{task_id}")
    assert [line.get("task_id") for line in lines if line["event"] == "request"] == [None, task_id]
