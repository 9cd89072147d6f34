"""Jobs with a webhook, and their outbox."""

import pytest

from app.webhooks import Outbox
from tests.things import job
from tests.unit.webhooks.deliveries import SECRET, URL


@pytest.fixture
def settings(settings):
    return settings.model_copy(update={"webhook_secret": type(settings.signing_key)(SECRET), "webhook_pause": 100})


@pytest.fixture
def outbox(services):
    return Outbox(services.redis, timeout=10)


@pytest.fixture
def new(jobs):
    """A queued job with a webhook."""

    def make(url=URL, events=("completed",), **fields):
        made = job(webhook_url=url, webhook_events=list(events), **fields)
        jobs.create(made)
        return made.task_id

    return make


@pytest.fixture
def ended(jobs, new):
    """A canceled job whose webhook is due."""

    def make(url=URL, events=("completed",), **fields):
        task_id = new(url, events, **fields)
        jobs.cancel(task_id)
        return task_id

    return make
