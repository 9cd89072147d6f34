"""Submitting over WSGI, and the models: what is answered, and every refusal as a problem document with its code."""

import dataclasses
import gzip
import io
import json

import pytest

from app.errors import BrokerUnavailable
from app.web import create_app
from app.workers import WorkerState
from tests.answers import assert_problem, local, queued
from tests.things import PARAMS, picture

# ---- POST /generate


def test_a_task_of_low_priority_says_so_and_stands_behind_normal_ones(client):
    low, normal = (client.post("/generate", json={"prompt": "x", "priority": p}).json for p in ("low", "normal"))
    assert (low["params"]["priority"], normal["params"]["priority"]) == ("low", "normal")
    assert client.get(f"/tasks/{low['task_id']}").json["queue_position"] == 1
    assert client.post(f"/tasks/{low['task_id']}/rerun").json["params"]["priority"] == "low"
    assert client.post("/generate", json={"prompt": "x", "priority": "high"}).status_code == 422


def test_generate_gives_a_ticket_and_queues_the_job(client, published):
    answer = client.post("/generate", json={"prompt": "a red star"})
    task = answer.json
    assert (answer.status_code, task["status"], task["phase"]) == (202, "PENDING", "QUEUED")
    assert (task["upload_url"], task["image_url"], task["queue_position"]) == (None, None, 0)
    assert answer.headers["Location"] == task["urls"]["self"] == f"/tasks/{task['task_id']}"
    assert answer.headers["Retry-After"] == "1"
    assert [job.task_id for job in published] == [task["task_id"]]


def test_a_ticket_lies_below_the_address_that_clients_use(services, published):
    below = services.settings.model_copy(update={"public_url": "https://darkroom.example/pictures"})
    client = create_app(dataclasses.replace(services, settings=below)).test_client()
    answer = client.post("/generate", base_url="https://darkroom.example", json={"prompt": "a red star"})
    assert answer.headers["Location"] == f"https://darkroom.example/pictures/tasks/{answer.json['task_id']}"


def test_generate_tells_the_seed_that_it_drew(client):
    seeds = {client.post("/generate", json={"prompt": "a red star"}).json["seed"] for _ in range(5)}
    assert len(seeds) > 1


def test_generate_gives_back_what_was_asked(client):
    asked = {name: value for name, value in PARAMS.items() if name != "output_format"}
    task = client.post("/generate", json={**asked, "client_ref": "mine"}).json
    told = {**task["params"], "seed": task["seed"], "model_version": task["model_version"]}
    assert {name: told[name] for name in asked} == asked
    assert task["client_ref"] == "mine"


def test_a_task_with_an_input_to_come_says_how_to_bring_it(client, settings, published):
    task = client.post("/generate", json={"prompt": "a red star", "input_image": True}).json
    assert (task["phase"], task["upload_method"], task["upload_headers"]) == ("AWAITING_UPLOAD", "PUT", {})
    assert (task["upload_max_bytes"], task["upload_expires_at"] > task["created_at"]) == (
        settings.upload_max_bytes,
        True,
    )
    assert task["urls"]["start"] == f"/tasks/{task['task_id']}/start"
    assert published == []


def test_the_simplest_client_is_served_after_one_put(client, published):
    """It knows upload_url and GET /tasks/{id}, and never calls start."""
    task = client.post("/generate", json={"prompt": "a red star", "input_image": True}).json
    assert client.get(f"/tasks/{task['task_id']}").json["phase"] == "AWAITING_UPLOAD"
    assert client.put(local(task["upload_url"]), data=picture()).status_code == 200
    assert client.get(f"/tasks/{task['task_id']}").json["phase"] == "QUEUED"
    assert len(published) == 1


def test_start_is_refused_before_the_put_and_does_nothing_the_second_time(client, published):
    task = client.post("/generate", json={"prompt": "a red star", "input_image": True}).json
    path = f"/tasks/{task['task_id']}/start"
    early = client.post(path)
    assert_problem(early, 409, "input_missing")
    assert early.headers["Retry-After"]
    client.put(local(task["upload_url"]), data=picture())
    assert [client.post(path).status_code for _ in range(2)] == [202, 202]
    assert len(published) == 1


@pytest.mark.parametrize("body", ["", "{", '{"prompt": "a"', "\xff", "[" * 50_000, '{"seed": ' + "9" * 5000 + "}"])
def test_what_is_no_json_is_a_bad_request(client, body):
    answer = client.post("/generate", data=body.encode("latin-1"), content_type="application/json")
    assert_problem(answer, 400, "invalid_request")
    assert answer.json["detail"].startswith("The body is ")


@pytest.mark.parametrize("body", ["[]", "null", "7", '"text"', json.dumps('{"prompt": "a"}'), '"\\ud800"'])
def test_json_that_is_no_object_is_a_bad_request(client, published, body):
    answer = client.post("/generate", data=body, content_type="application/json")
    assert_problem(answer, 400, "invalid_request")
    assert published == []


@pytest.mark.parametrize(
    ("field", "value"),
    [("prompt", ""), ("prompt", " \n\t"), ("prompt", "\ud800"), ("seed", "7"), ("widht", 64), ("width", 63),
     ("num_images", 9),     ("guidance_scale", float("nan")), ("prompt", None), ("\ud800", 1), ("input_url", "https://example.org/x.png"),
     ("mask_url", "https://example.org/x.png")],
)  # fmt: skip
def test_a_field_that_is_wrong_is_named(client, published, field, value):
    given = {"input_image": True} if field == "mask_url" else {}
    answer = client.post("/generate", json={"prompt": "a", **given, field: value})
    errors = assert_problem(answer, 422, "invalid_request")["errors"]
    assert [error["field"] for error in errors] == [field if field.isascii() else "body"]
    assert published == []


def test_a_prompt_is_never_repeated_in_a_refusal(client):
    answer = client.post("/generate", json={"prompt": "secret" * 500, "negative_prompt": 7, "input_url": ["secret"]})
    assert_problem(answer, 422, "invalid_request")
    assert "secret" not in answer.text


def test_an_unknown_model_is_refused_with_its_own_code(client):
    answer = client.post("/generate", json={"prompt": "a", "model_version": "nobody-1"})
    assert_problem(answer, 422, "unknown_model_version")
    assert "tiny-scenes-1" in answer.json["detail"]


def test_a_body_of_another_type_is_refused(client):
    answer = client.post("/generate", data={"prompt": "a"})
    assert_problem(answer, 415, "unsupported_media_type")
    assert answer.json["detail"] == "The body must be JSON: `Content-Type: application/json`."


def test_an_address_with_two_slashes_is_none(client):
    assert_problem(client.get("/tasks//0"), 404, "not_found")


def test_a_compressed_body_is_refused_as_such(client):
    body = gzip.compress(b'{"prompt": "a red star"}')
    answer = client.post("/generate", data=body, content_type="application/json", headers={"Content-Encoding": "gzip"})
    assert_problem(answer, 415, "unsupported_media_type")
    assert answer.json["detail"] == "The body must be sent as it is, without Content-Encoding."


@pytest.mark.parametrize("rest", [b" " * 80_000, b" " * 65_513 + b"GARBAGE"])
def test_a_body_that_does_not_tell_that_it_is_too_large_is_not_cut_and_taken(client, published, rest):
    body = io.BytesIO(b'{"prompt": "a red star"}' + rest)
    answer = client.post("/generate", input_stream=body, **IN_CHUNKS)
    assert_problem(answer, 413, "content_too_large")
    assert published == []


def test_a_body_that_does_not_tell_its_length_is_read(client):
    body = io.BytesIO(b'{"prompt": "a red star"}')
    assert client.post("/generate", input_stream=body, **IN_CHUNKS).status_code == 202


# As gunicorn hands on a body that comes in chunks.
IN_CHUNKS = {
    "content_type": "application/json",
    "headers": {"Transfer-Encoding": "chunked"},
    "environ_overrides": {"wsgi.input_terminated": True},
}


def test_a_body_that_is_too_large_is_refused(client):
    answer = client.post("/generate", data=b" " * 70_000, content_type="application/json")
    assert_problem(answer, 413, "content_too_large")
    assert answer.json["detail"] == "The body is larger than 65536 bytes."


def test_a_broker_that_is_away_is_told_and_nothing_is_left_behind(services):
    def refuse(job):
        raise BrokerUnavailable

    client = create_app(dataclasses.replace(services, publish=refuse)).test_client()
    answer = client.post("/generate", json={"prompt": "a red star"})
    assert_problem(answer, 503, "broker_unavailable")
    assert answer.headers["Retry-After"]
    [key] = services.redis.keys("job:*")
    assert_problem(client.get(key.replace("job:", "/tasks/")), 404, "task_not_found")


# ---- models


def test_the_models_tell_limits_and_how_they_stand(client, services):
    queued(services)
    services.workers.announce(WorkerState("worker-1", "gen.tiny", "ready", ("tiny-scenes-1",)))
    model = client.get("/models").json["models"][0]
    assert (model["model_version"], model["default"], model["available"], model["queue_depth"]) == (
        "tiny-scenes-1", True, True, 1,
    )  # fmt: skip
    assert model["limits"]["width"] >= model["defaults"]["width"]
    assert client.get("/models/tiny-scenes-1").json == model


def test_a_model_tells_how_long_a_picture_takes_once_it_has_made_one(client, services, redis):
    assert client.get("/models/tiny-scenes-1").json["typical_seconds"] is None
    redis.hset("models:step_seconds", "tiny-scenes-1", "0.2")
    model = client.get("/models/tiny-scenes-1").json
    assert model["typical_seconds"] == 0.2 * model["defaults"]["num_inference_steps"]


def test_a_model_that_no_worker_serves_is_not_available(client):
    assert {model["available"] for model in client.get("/models").json["models"]} == {False}


def test_an_unknown_model_is_not_found(client):
    assert_problem(client.get("/models/nobody-1"), 404, "unknown_model_version")
