"""What a message may say, and what no message of ours could."""

import json

import pytest

from app.messages import Unreadable, read
from app.tasks import GENERATE
from tests.things import job


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("caller", {"a": 1}), ("caller", True), ("queue", 7), ("max_attempts", 1e300), ("max_attempts", 0),
        ("deadline_seconds", "x"), ("traceparent", "none"), ("webhook_events", "completed"), ("task_id", ""),
    ],
)  # fmt: skip
def test_what_is_no_jobs_own_is_unreadable(field, value):
    message = {**job().message(), field: value}
    body = json.dumps([[], {"message": message}, {}]).encode()
    with pytest.raises(Unreadable, match="its body holds no job"):
        read({"task": GENERATE, "id": message["task_id"]}, "application/json", body)


@pytest.mark.parametrize("wrong", [{"num_images": 0}, {"width": -5}, {"prompt": "\ud800"}, {"model_version": "\ud800"}])
def test_a_message_of_a_job_that_cannot_be_is_unreadable(wrong):
    message = {**job().message(), **wrong}
    body = json.dumps([[], {"message": message}, {}]).encode()
    with pytest.raises(Unreadable, match="holds no job"):
        read({"id": message["task_id"], "task": GENERATE}, "application/json", body)
