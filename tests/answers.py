"""Tasks in the states that answers tell of, and what every refusal has in common."""

import json
from urllib.parse import urlsplit

from app.record import output_name
from tests.things import job, picture

IMAGE = {"index": 0, "seed": 42, "sha256": "0" * 64, "bytes": 1, "width": 64, "height": 64}


def finished(services, **changes):
    """The id of a job that succeeded, its pictures in the store."""
    new = job(**changes)
    services.jobs.create(new)
    services.jobs.claim(new.task_id, "t1", "worker-1")
    names = [output_name(new.task_id, index) for index in range(new.params.num_images)]
    for name in names:
        services.storage.put(name, picture(), "image/png")
    images = [{**IMAGE, "index": index, "name": name} for index, name in enumerate(names)]
    for phase in ("RUNNING", "UPLOADING"):
        services.jobs.advance(new.task_id, "t1", phase)
    services.jobs.succeed(new.task_id, "t1", {"images": json.dumps(images), "metrics": '{"inference_ms": 9}'})
    return new.task_id


def queued(services, **changes):
    new = job(**changes)
    services.jobs.create(new)
    return new.task_id


def assert_problem(answer, status, code):
    """A problem document, valid by the API's own description, with this code."""
    assert answer.status_code == status, answer.text
    assert answer.content_type == "application/problem+json"
    assert (answer.json["status"], answer.json["code"], answer.json["type"]) == (status, code, "about:blank")
    assert answer.json["trace_id"] == answer.headers["X-Request-ID"]
    assert set(answer.json) == {"type", "title", "status", "detail", "instance", "code", "trace_id", "errors"}
    return answer.json


def local(url):
    """A signed URL as a path for the test client."""
    return urlsplit(url).path


def upload(client, **fields):
    task = client.post("/generate", json={"prompt": "a red star", "input_image": True, **fields}).json
    return local(task["upload_url"])
