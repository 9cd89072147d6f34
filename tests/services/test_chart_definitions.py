"""What charts/darkroom gives RabbitMQ, on a real one: the application finds what it would make itself."""

import json
from urllib.parse import urlsplit

import pytest
import requests

from app.models import load_catalogue
from app.settings import Settings
from app.tasks import declare_queues, make_celery
from tests.backends import GIVEN, skip_or_fail, virtual_host
from tests.deploy.programs import rendered, run, tool

PASSWORDS = {"password": "correct", "monitor-password": "looks", "erlang-cookie": "cookie"}


@pytest.fixture
def broker():
    if not GIVEN["RABBITMQ_MANAGEMENT_URL"]:
        skip_or_fail("needs RabbitMQ: script/test starts it")
    with virtual_host() as url:
        yield urlsplit(url)


@pytest.fixture
def imported(broker, tmp_path):
    """The chart's definitions in a virtual host of the test's own, with users of its own; yields their beginning."""
    files = rendered("darkroom", values="values-production.yaml")["ConfigMap", "darkroom-rabbitmq"]["data"]
    for name, text in {**files, **PASSWORDS}.items():
        (tmp_path / name).write_text(text)
    run(tool("escript"), tmp_path / "definitions.escript", tmp_path / "definitions.json", tmp_path, tmp_path)
    vhost = broker.path[1:]
    definitions = json.loads((tmp_path / "definitions.json").read_text())
    for user in definitions.pop("users"):
        put(f"users/{vhost}-{user['name']}", user)
    for granted in definitions.pop("permissions"):
        put(f"permissions/{vhost}/{vhost}-{granted['user']}", granted)
    definitions = {part: definitions[part] for part in ("exchanges", "queues", "bindings")}
    for thing in (thing for part in definitions.values() for thing in part):
        del thing["vhost"]
    ask("POST", f"definitions/{vhost}", json=definitions).raise_for_status()
    yield vhost
    for user in ("darkroom", "monitor"):
        ask("DELETE", f"users/{vhost}-{user}").raise_for_status()


def ask(method, path, **options):
    return requests.request(method, f"{GIVEN['RABBITMQ_MANAGEMENT_URL']}/api/{path}", timeout=30, **options)


def put(path, thing):
    ask(
        "PUT", path, json={key: value for key, value in thing.items() if key not in ("name", "user", "vhost")}
    ).raise_for_status()


def test_the_application_declares_what_is_there_as_it_is(broker, imported):
    url = broker._replace(netloc=f"{imported}-darkroom:correct@{broker.hostname}:{broker.port}").geturl()
    settings = Settings(broker_url=url, signing_key="x" * 32)
    celery = make_celery(settings, load_catalogue("config/models.yaml", ""), "worker")
    declare_queues(celery, settings)
    there = {queue["name"] for queue in ask("GET", f"queues/{imported}").json()}
    assert there == set(celery.amqp.queues)


def test_the_monitor_sees_queues_and_changes_none(imported):
    management = urlsplit(GIVEN["RABBITMQ_MANAGEMENT_URL"])
    base, auth = f"http://{management.hostname}:{management.port}/api", (f"{imported}-monitor", "looks")
    seen = requests.get(f"{base}/queues/{imported}", auth=auth, timeout=30)
    assert "gen.tiny" in {queue["name"] for queue in seen.json()}
    refused = requests.delete(f"{base}/queues/{imported}/gen.tiny", auth=auth, timeout=30)
    assert refused.status_code in (401, 403)
