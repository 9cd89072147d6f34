"""Which webhooks are taken, over HTTP and from the settings, and how a delivery is asked for again."""

import dataclasses

import pytest

from app.errors import InvalidRequest, SettingsError
from app.settings import load
from app.web import create_app
from app.webhooks import check
from tests.things import job
from tests.unit.webhooks.deliveries import OTHER, SECRET, URL, deliver


@pytest.mark.parametrize("url", ["http://example.com/", "https://127.0.0.1/", "https://u:p@example.com/", "mailto:x"])
def test_a_webhook_that_is_never_called_is_refused_at_once(settings, url):
    with pytest.raises(InvalidRequest) as refusal:
        check(url, settings)
    assert [error["field"] for error in refusal.value.errors] == ["webhook_url"]


def test_development_may_open_http_and_loopback(settings):
    check("http://127.0.0.1:9000/hook", settings.model_copy(update={"webhook_allow_private": True}))


def submit(services, **body):
    return create_app(services).test_client().post("/generate", json={"prompt": "a star", **body})


def test_a_request_with_a_webhook_is_accepted_and_its_query_not_shown(services):
    answer = submit(services, webhook_url=URL, webhook_events=["started", "completed"])
    assert answer.status_code == 202
    shown = {"url": "https://hooks.example/in", "events": ["started", "completed"], "deliveries": []}
    assert answer.json["webhook"] == shown
    assert "sesame" not in answer.text


@pytest.mark.parametrize(
    "body",
    [
        {"webhook_url": "http://example.com/"},
        {"webhook_url": "https://10.0.0.1/"},
        {"webhook_url": "https://example.com/" + 2000 * "x"},
        {"webhook_url": 7},
        {"webhook_url": URL, "webhook_events": ["finished"]},
        {"webhook_url": URL, "webhook_events": []},
        {"webhook_url": URL, "webhook_events": "completed"},
    ],
)
def test_a_webhook_that_is_wrong_is_a_422(services, body):
    answer = submit(services, **body)
    assert (answer.status_code, answer.json["code"]) == (422, "invalid_request")
    assert answer.json["errors"][0]["field"].startswith("webhook_")


def test_without_a_secret_a_webhook_is_refused_with_the_reason(services, settings):
    bare = settings.model_copy(update={"webhook_secret": type(settings.webhook_secret)("")})
    answer = submit(dataclasses.replace(services, settings=bare), webhook_url=URL)
    assert (answer.status_code, answer.json["errors"][0]["field"]) == (422, "webhook_url")
    assert "WEBHOOK_SECRET" in answer.json["detail"]


def test_a_rerun_tells_the_same_webhook(services):
    web = create_app(services).test_client()
    first = web.post("/generate", json={"prompt": "a star", "webhook_url": URL}).json["task_id"]
    again = web.post(f"/tasks/{first}/rerun").json
    assert again["webhook"]["url"] == "https://hooks.example/in"
    assert services.jobs.get(again["task_id"]).webhook_url == URL


def test_a_redelivery_can_be_asked_for_over_http(services, ended):
    web, task_id = create_app(services).test_client(), ended()
    deliver(services)
    answer = web.post(f"/tasks/{task_id}/webhook/redeliver")
    assert (answer.status_code, len(answer.json["webhook"]["deliveries"])) == (202, 1)
    assert len(deliver(services)) == 1


def test_a_redelivery_of_nothing_is_refused(services, new):
    web, waiting, plain = create_app(services).test_client(), new(), job()
    services.jobs.create(plain)
    codes = [web.post(f"/tasks/{task_id}/webhook/redeliver") for task_id in (waiting, plain.task_id, "unknown")]
    assert [(answer.status_code, answer.json["code"]) for answer in codes] == [
        (409, "not_ready"),
        (404, "webhook_not_found"),
        (404, "task_not_found"),
    ]


@pytest.mark.parametrize("secret", ["sesame", "whsec_sesame", "whsec_c2hvcnQ=", f"{SECRET} short"])
def test_a_secret_that_is_none_keeps_the_process_from_starting(monkeypatch, secret):
    monkeypatch.setenv("SIGNING_KEY", 32 * "x")
    monkeypatch.setenv("WEBHOOK_SECRET", secret)
    with pytest.raises(SettingsError, match="WEBHOOK_SECRET") as refusal:
        load()
    assert "sesame" not in str(refusal.value)


def test_two_secrets_are_read(monkeypatch):
    monkeypatch.setenv("SIGNING_KEY", 32 * "x")
    monkeypatch.setenv("WEBHOOK_SECRET", f"{SECRET} {OTHER}")
    assert load().webhook_secret.get_secret_value().split() == [SECRET, OTHER]
