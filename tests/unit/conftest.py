"""The parts of `services`, what works with them, and callers with keys."""

import dataclasses

import pytest

from app import keys
from app.callers import Callers
from app.courier import Courier
from app.errors import BrokerUnavailable
from app.intake import Intake
from app.web import create_app
from tests.things import job


@pytest.fixture
def jobs(services):
    return services.jobs


@pytest.fixture
def redis(services):
    return services.redis


@pytest.fixture
def full(redis):
    """Redis has no memory for anything new, until `full()` is called."""
    redis.config_resetstat()
    redis.config_set("maxmemory", 1)
    yield lambda: redis.config_set("maxmemory", 0)
    redis.config_set("maxmemory", 0)


@pytest.fixture
def queued(services):
    """Makes queued jobs."""

    def make(**changes):
        new = job(**changes)
        services.jobs.create(new)
        services.jobs.confirm(new.task_id)
        return new

    return make


@pytest.fixture
def intake(services):
    return Intake(services)


@pytest.fixture
def broken(services):
    """An intake whose broker takes nothing."""

    def refuse(job):
        raise BrokerUnavailable

    return Intake(dataclasses.replace(services, publish=refuse))


@pytest.fixture
def courier(services):
    return Courier(services)


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
