"""Requests made from the OpenAPI document, right and wrong ones: every answer is one that the document names.

SCHEMATHESIS_EXAMPLES says how many for each operation and kind at most; with it they are others each time.
"""

import collections
import dataclasses
import json
import os
from contextlib import suppress

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, given
from hypothesis.errors import Unsatisfiable
from jsonschema_rs import validator_for
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from app.errors import Internal
from app.record import Phase, output_name
from app.schemas import Problem
from app.web import create_app
from tests.things import job, picture, recording

EXAMPLES = int(os.environ.get("SCHEMATHESIS_EXAMPLES", "0"))
MANY = hypothesis.settings(
    max_examples=EXAMPLES or 30, deadline=None, suppress_health_check=list(HealthCheck), database=None,
    derandomize=not EXAMPLES,
)  # fmt: skip
LONGEST_WAIT = 0.02
PROBLEM = validator_for(Problem.model_json_schema())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("schemathesis")


@pytest.fixture
def services(settings, folder):
    moved = settings.model_copy(update={"storage_url": f"file://{folder}"})
    return dataclasses.replace(recording(moved, []), check_broker=lambda: None)


def queued(services, **fields):
    new = job(**fields)
    services.jobs.create(new)
    return new.task_id


def failed(services):
    task_id = queued(services)
    services.jobs.fail(task_id, Internal("over"))
    return task_id


def succeeded(services):
    task_id = queued(services)
    services.jobs.claim(task_id, "t1", "worker-1")
    services.jobs.advance(task_id, "t1", Phase.RUNNING)
    services.jobs.advance(task_id, "t1", Phase.UPLOADING)
    name = output_name(task_id, 0)
    services.storage.put(name, picture(), "image/png")
    image = {"index": 0, "seed": 42, "name": name, "sha256": "0", "bytes": 1, "width": 64, "height": 64}
    services.jobs.succeed(task_id, "t1", {"images": json.dumps([image])})
    return task_id


STATES = [queued, lambda services: queued(services, waits=True), failed, succeeded]


@pytest.fixture
def api(services):
    schema = schemathesis.openapi.from_wsgi("/openapi.json", create_app(services))

    @schema.hook
    def map_path_parameters(context, path_parameters):
        """Half of all tasks are there, in every state."""
        given = path_parameters or {}
        length = len(str(given.get("task_id", "")))
        # The events of a task that is not done have no end.
        states = STATES[2:] if context.operation.path.endswith("/events") else STATES
        chosen = states[length // 2 % len(states)]
        return {**given, "task_id": chosen(services)} if length % 2 and length < 100 else given

    @schema.hook
    def map_query(context, query):
        """Nobody has the time to wait."""
        wait = (query or {}).get("wait")
        is_number = isinstance(wait, (int, float)) and not isinstance(wait, bool)
        return {**query, "wait": min(wait, LONGEST_WAIT)} if is_number and 0 <= wait <= 60 else query

    return schema


def check(case):
    """The answer to one request is no fault of ours, and the document names it."""
    answer = case.call()
    assert answer.status_code < 500
    assert str(answer.status_code) in case.operation.definition.raw["responses"]
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == ["application/problem+json"]
        PROBLEM.validate(answer.json())
    # Each model has limits of its own, which the document cannot tell.
    case.validate_response(answer, excluded_checks=[positive_data_acceptance])
    return answer.status_code


def test_every_answer_is_one_that_the_document_names(api):
    told = collections.Counter()
    for operation in (result.ok() for result in api.get_all_operations()):
        for mode in GenerationMode:

            @given(operation.as_strategy(generation_mode=mode))
            @MANY
            def run(case):
                told[check(case)] += 1

            # Nothing can be wrong in a request that takes nothing.
            with suppress(Unsatisfiable):
                run()
    print(f"{told.total()} answers: {dict(sorted(told.items()))}")
    assert told.total() >= 500
    assert set(told) >= {200, 202, 302, 404, 409, 422}
