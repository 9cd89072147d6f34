"""What holds for every request: health, what is away, problem documents, headers, and who asks."""

import dataclasses
import re
import uuid

import flask
import pytest
import structlog

from app import __version__
from app.errors import StorageUnavailable
from app.intake import input_name
from app.services import build
from app.web import create_app
from tests.answers import assert_problem, finished, queued


def test_a_process_is_alive_whatever_it_reaches(away):
    assert away.get("/healthz").json == {"status": "ok"}
    assert away.get("/version").json == {"version": __version__}


def test_a_process_is_ready_when_it_reaches_store_and_broker(services, client):
    assert_problem(client.get("/readyz"), 503, "broker_unavailable")
    reached = dataclasses.replace(services, check_broker=lambda: None)
    assert create_app(reached).test_client().get("/readyz").json == {"status": "ok"}


@pytest.fixture
def away(settings):
    """A client of a web process whose Redis is away."""
    nowhere = settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})
    return create_app(build(nowhere, "web")).test_client()


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/generate"), ("GET", "/tasks/x"), ("GET", "/tasks/x?wait=5"), ("POST", "/tasks/x/start"),
     ("GET", "/tasks/x/image"), ("GET", "/models"), ("GET", "/models/tiny-scenes-1"), ("GET", "/readyz")],
)  # fmt: skip
def test_a_store_that_is_away_is_told_within_two_seconds(away, method, path):
    import time

    started = time.monotonic()
    answer = away.open(path, method=method, json={"prompt": "a"} if path == "/generate" else None)
    assert_problem(answer, 503, "store_unavailable")
    assert answer.headers["Retry-After"]
    assert time.monotonic() - started < 2


def awaiting(services):
    """The id of a task whose input picture is looked for at each read."""
    task_id = str(uuid.uuid4())
    return queued(services, task_id=task_id, waits=True, input_url=services.storage.url_of(input_name(task_id)))


def test_a_bucket_that_is_away_is_told_to_who_starts_and_keeps_nobody_from_reading(client, services, monkeypatch):
    def away(name):
        raise StorageUnavailable

    monkeypatch.setattr(services.storage, "size", away)
    task_id = awaiting(services)
    assert client.get(f"/tasks/{task_id}").json["phase"] == "AWAITING_UPLOAD"
    answer = client.post(f"/tasks/{task_id}/start")
    assert_problem(answer, 503, "storage_failed")
    assert answer.headers["Retry-After"]


def test_a_fault_of_ours_tells_no_detail(client, services, monkeypatch):
    def broken(name):
        raise ValueError("secret detail")

    monkeypatch.setattr(services.storage, "size", broken)
    answer = client.get(f"/tasks/{awaiting(services)}")
    assert_problem(answer, 500, "internal")
    assert "secret" not in answer.text


@pytest.mark.parametrize("path", ["/nope", "/task", "/tasks/x/", "/tasks/x/images/-1", "/docs/static/../../x"])
def test_an_unknown_path_is_a_problem_document_too(client, path):
    assert_problem(client.get(path), 404, "not_found")


def test_an_unknown_address_is_told_in_words_of_our_own(client):
    assert client.get("/nope").json["detail"] == "There is nothing here."


def test_a_wrong_method_is_refused_and_told_which_are_right(client):
    answer = client.delete("/generate")
    assert_problem(answer, 405, "method_not_allowed")
    assert set(answer.headers["Allow"].split(", ")) == {"OPTIONS", "POST"}


def test_head_has_the_headers_of_get_and_options_tells_the_methods(client, services):
    path = f"/tasks/{queued(services)}"
    assert (client.head(path).status_code, client.head(path).data) == (200, b"")
    assert client.head(path).content_length == client.get(path).content_length
    for url, methods in ((path, {"GET", "HEAD", "OPTIONS"}), ("/generate", {"OPTIONS", "POST"})):
        answer = client.options(url)
        assert answer.status_code == 200
        assert methods <= set(answer.headers["Allow"].split(", "))


def test_a_plain_request_id_is_echoed(client):
    assert client.get("/healthz", headers={"X-Request-ID": "abc-1.2_3"}).headers["X-Request-ID"] == "abc-1.2_3"


@pytest.mark.parametrize("given", ["", "a b", "a" * 65, "<script>", "ä", "a\tb"])
def test_any_other_request_id_is_replaced(client, given):
    told = client.get("/healthz", headers={"X-Request-ID": given}).headers["X-Request-ID"]
    assert re.fullmatch("[0-9a-f]{32}", told)


def test_a_method_that_a_client_makes_up_is_noted_as_one_of_all_others(client):
    with structlog.testing.capture_logs() as lines:
        client.open("/healthz", method="BREW")
    numbers = client.get("/metrics").text
    assert [line["method"] for line in lines if line["event"] == "request"] == ["_OTHER"]
    assert 'method="_OTHER"' in numbers
    assert "BREW" not in numbers


def test_what_a_request_is_known_by_is_on_no_line_after_it(client, services):
    client.get(f"/tasks/{queued(services)}")
    assert structlog.contextvars.get_contextvars() == {}


def test_no_answer_is_kept_by_a_cache_or_guessed_at_by_a_browser(client, services):
    for path in ("/healthz", f"/tasks/{queued(services)}", "/nope"):
        headers = client.get(path).headers
        assert (headers["Cache-Control"], headers["X-Content-Type-Options"]) == ("no-store", "nosniff")


def test_no_answer_holds_a_secret_of_the_deployment(client, services, settings):
    paths = ("/models", f"/tasks/{finished(services)}", "/openapi.json", "/version", "/healthz", "/nope")
    answers = "".join(client.get(path).text for path in paths)
    for secret in (settings.signing_key.get_secret_value(), settings.redis_url, settings.broker_url):
        assert secret not in answers


@pytest.mark.parametrize(("tag", "status"), [("*", 200), ('"x"', 412), ("own", 412)])
def test_if_match_holds_for_whatever_is_there_and_for_no_tag_that_a_document_has(client, services, tag, status):
    path = f"/tasks/{finished(services)}"
    given = {"If-Match": client.get(path).headers["ETag"] if tag == "own" else tag}
    assert client.get(path, headers=given).status_code == status


def test_if_match_that_holds_leaves_if_none_match_its_say(client, services):
    path = f"/tasks/{finished(services)}"
    given = {"If-Match": "*", "If-None-Match": client.get(path).headers["ETag"]}
    assert client.get(path, headers=given).status_code == 304


def test_a_file_of_the_page_is_found_by_its_own_tag_and_what_is_not_there_by_none(client):
    path = "/page/style.css"
    assert client.get(path, headers={"If-Match": client.get(path).headers["ETag"]}).status_code == 200
    assert client.get(path, headers={"If-Match": '"another"'}).status_code == 412
    assert client.get("/nothing", headers={"If-Match": '"x"'}).status_code == 404


def test_nothing_is_deleted_where_if_match_does_not_hold(client, services):
    path = f"/tasks/{finished(services)}"
    assert_problem(client.delete(path, headers={"If-Match": '"x"'}), 412, "precondition_failed")
    assert client.get(path).status_code == 200
    assert client.delete(path, headers={"If-Match": "*"}).status_code == 204


# ---- Who asks


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "localhost.evil.example", "10.0.0.1", "[::2]"])
def test_an_open_door_answers_only_to_the_names_of_this_machine(client, host):
    answer = client.get("/tasks", headers={"Host": host})
    assert (answer.status_code, answer.mimetype) == (400, "application/problem+json")


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "127.0.0.2:8000", "[::1]:8000", "[::1]", "localhost"])
def test_an_open_door_answers_to_every_name_of_this_machine(client, host):
    assert client.get("/tasks", headers={"Host": host}).status_code == 200


def test_an_open_door_answers_to_the_name_that_clients_are_told(services):
    known = services.settings.model_copy(update={"public_url": "https://darkroom.example:8443/pictures"})
    client = create_app(dataclasses.replace(services, settings=known)).test_client()
    for host, status in (("darkroom.example", 200), ("darkroom.example:8443", 200), ("evil.example", 400)):
        assert client.get("/tasks", headers={"Host": host}).status_code == status


@pytest.mark.parametrize(("hops", "seen"), [(0, "127.0.0.1"), (1, "10.0.0.2"), (2, "10.0.0.1")])
def test_only_the_trusted_proxies_say_who_the_client_is(services, hops, seen):
    settings = services.settings.model_copy(update={"trusted_proxies": hops})
    app = create_app(dataclasses.replace(services, settings=settings))
    app.add_url_rule("/who", "who", lambda: flask.request.remote_addr)
    answer = app.test_client().get("/who", headers={"X-Forwarded-For": "6.6.6.6, 10.0.0.1, 10.0.0.2"})
    assert answer.text == seen


def test_numbers_are_told_beside_a_proxy_and_not_through_it(client):
    """Every ingress says for whom it asks; so none of them has to know which paths are not for the world."""
    assert "python_info" in client.get("/metrics").text
    assert_problem(client.get("/metrics", headers={"X-Forwarded-For": "203.0.113.9"}), 404, "not_found")
