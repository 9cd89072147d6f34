"""For every test: an environment without settings, a Redis database of its own, and services on that."""

import copy
import functools
import signal

import pytest
import redis
from flask import Flask
from flask.testing import FlaskClient
from flask_openapi3 import utils as openapi

from app.settings import Settings
from app.web import create_app
from tests.backends import valkey
from tests.things import recording

# Where the whole run was started in a shell's background, it ignores Ctrl-C, and so would what the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

KEY = "a key that nobody uses but the tests"


class ReadToTheEnd(FlaskClient):
    """Every answer is read and closed, as gunicorn does it.

    One that is dropped half-way detaches its trace while Python is just setting another one's, which crashes the
    interpreter: the value that a ContextVar keeps at hand is gone then.
    """

    def open(self, *args, buffered=True, **options):
        return super().open(*args, buffered=buffered, **options)


Flask.test_client_class = ReadToTheEnd

# Hundreds of tests make the whole application, which would describe the same models each time: a quarter of their time.
_described = functools.cache(openapi.get_model_schema)
openapi.get_model_schema = lambda *model, **options: copy.deepcopy(_described(*model, **options))


@pytest.fixture(autouse=True)
def clean_environ(monkeypatch):
    """What script/test exports is in `tests.backends.GIVEN`; a test that wants a setting sets it."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="session")
def redis_database(tmp_path_factory):
    """A server of this process's own: the one that script/services runs is killed by some tests beside these."""
    with valkey(tmp_path_factory.mktemp("valkey")) as url:
        yield f"{url}/0"


@pytest.fixture
def redis_url(redis_database):
    """The same database, empty."""
    with redis.Redis.from_url(redis_database) as client:
        client.flushdb()
    return redis_database


@pytest.fixture
def settings(redis_url, tmp_path):
    """Nobody answers at the broker's address: the tests of the broker have their own."""
    return Settings(
        broker_url="amqp://127.0.0.1:1//",
        redis_url=redis_url,
        storage_url=f"file://{tmp_path}/storage",
        signing_key=KEY,
        models_file="config/models.yaml",
    )


@pytest.fixture
def published():
    """The jobs that `services` has published, in their order."""
    return []


@pytest.fixture
def services(settings, published):
    services = recording(settings, published)
    yield services
    services.redis.connection_pool.disconnect(inuse_connections=False)


@pytest.fixture
def client(services):
    return create_app(services).test_client()


# Some of them kill RabbitMQ and Redis, which the others of them need.
SHARING = (
    "tests/services/",
    "tests/deploy/observability/",
    "tests/functional/test_client_calls.py",
    "tests/functional/test_hostile.py",
    "tests/functional/test_push_and_forget.py",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Side by side run whole files; but those that share RabbitMQ, Redis and the bucket run one after the other."""
    from xdist.scheduler import LoadScopeScheduling

    class ByWhatTheyShare(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            path = nodeid.partition("::")[0]
            return "services" if path.startswith(SHARING) else path

    # It would put files of few tests last, and those take longest.
    config.option.loadscopereorder = False
    return ByWhatTheyShare(config, log)


# Files that take minutes each, the longest first: begun last, they would leave one of the cores without work.
LONG = (
    "tests/deploy/test_terraform.py",
    "tests/deploy/test_over_ssh.py",
    "tests/functional/",
    "tests/browser/",
    "tests/unit/models/",
    "tests/deploy/",
)


def turn(item):
    """When a test has its turn: who breaks the shared services, before stacks that live for the whole session lean on
    them; all others that share them; then the long ones.
    """
    path = item.nodeid.partition("::")[0]
    if path.startswith(SHARING):
        return not any(name in path for name in ("test_faults", "test_chaos"))
    return next((2 + place for place, name in enumerate(LONG) if path.startswith(name)), 2 + len(LONG))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    items.sort(key=turn)
    users = (item for item in items if "backend" in getattr(item, "fixturenames", ()))
    alone = {item.nodeid for item in users if not item.nodeid.startswith(SHARING)}
    assert not alone, f"these share RabbitMQ and Redis and belong to SHARING: {alone}"
