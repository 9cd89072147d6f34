"""What a client sees of a job's life, through HTTP alone: nothing is replaced."""

import base64
import http.client
import io
import json
import socket

import pytest
import requests
from PIL import Image

from app.client import ApiError

pytestmark = [pytest.mark.functional, pytest.mark.services]


def picture(data):
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def red_square():
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "PNG")
    return buffer.getvalue()


def test_a_prompt_becomes_a_picture(client):
    ticket = client.generate("anything", model_version="steady", seed=255)
    task = client.wait(ticket["task_id"], 30)
    assert task["status"] == "SUCCEEDED"
    assert picture(client.image(ticket["task_id"])).getpixel((0, 0)) == (255, 0, 0)


def test_the_ticket_comes_before_the_picture(client):
    ticket = client.generate("anything", model_version="steady", num_inference_steps=50)
    assert (ticket["status"], ticket["phase"]) == ("PENDING", "QUEUED")
    assert ticket["upload_url"] is None
    assert client.wait(ticket["task_id"], 30)["status"] == "SUCCEEDED"


def test_a_task_tells_how_far_it_is(client):
    ticket = client.generate("anything", model_version="steady", num_inference_steps=50)
    seen = [task["progress"]["step"] for task in client.follow(ticket["task_id"]) if task["progress"]]
    assert seen == sorted(seen)
    assert any(0 < step < 50 for step in seen)


def test_a_result_says_how_it_was_made(client, stack):
    task = client.wait(client.generate("ein Bär", model_version="steady", seed=7)["task_id"], 30)
    made = picture(client.image(task["task_id"])).info
    assert task["worker_version"] == made["worker_version"]
    assert (task["model_version"], task["seed"]) == ("steady", 7) == (made["model_version"], int(made["seed"]))
    assert made["prompt"] == "ein Bär"
    assert set(task["metrics"]) == {"queue_ms", "load_ms", "inference_ms", "upload_ms", "batch_size"}


def test_an_input_picture_is_painted_over(client):
    task = client.generate("anything", input_image=red_square(), model_version="steady", seed=0)
    assert client.wait(task["task_id"], 30)["status"] == "SUCCEEDED"
    result = picture(client.image(task["task_id"]))
    assert (result.getpixel((60, 60)), result.getpixel((20, 20))) == ((255, 0, 0), (0, 0, 0))


def test_a_client_that_knows_two_calls_and_the_put_gets_its_picture(stack):
    body = {"prompt": "anything", "input_image": True, "model_version": "steady"}
    ticket = requests.post(f"{stack.url}/generate", json=body, timeout=10).json()
    requests.put(ticket["upload_url"], data=red_square(), timeout=10).raise_for_status()
    task = stack.client.wait(ticket["task_id"], 30)
    assert task["status"] == "SUCCEEDED"
    assert picture(requests.get(task["image_url"], timeout=10).content).size == (64, 64)


def test_the_sweep_starts_a_job_that_nobody_asks_about(stack):
    body = {"prompt": "anything", "input_image": True, "model_version": "steady"}
    ticket = requests.post(f"{stack.url}/generate", json=body, timeout=10).json()
    requests.put(ticket["upload_url"], data=red_square(), timeout=10).raise_for_status()
    picture_url = f"{stack.url}/tasks/{ticket['task_id']}/image"

    from tests.stack import until

    # /image looks at the record only: it neither uploads, starts nor publishes anything.
    until(lambda: requests.get(picture_url, timeout=10).status_code == 200, 30, "the picture is there")


def test_a_job_without_its_input_does_not_start(client, stack):
    body = {"prompt": "anything", "input_image": True, "model_version": "steady"}
    ticket = requests.post(f"{stack.url}/generate", json=body, timeout=10).json()
    answer = requests.post(f"{stack.url}/tasks/{ticket['task_id']}/start", timeout=10)
    assert (answer.status_code, answer.json()["code"]) == (409, "input_missing")
    assert client.task(ticket["task_id"])["phase"] == "AWAITING_UPLOAD"


def test_what_is_no_picture_fails_the_job_and_says_so(client):
    task = client.generate("anything", input_image=b"GIF89a, or so I say", model_version="steady")
    assert client.wait(task["task_id"], 30)["error"]["code"] == "input_invalid"


def test_an_earlier_output_can_be_the_next_input(client):
    first = client.wait(client.generate("anything", model_version="steady", seed=255)["task_id"], 30)
    second = client.generate("anything", input_url=first["images"][0]["input_url"], model_version="steady", seed=0)
    assert client.wait(second["task_id"], 30)["status"] == "SUCCEEDED"
    assert picture(client.image(second["task_id"])).getpixel((60, 60)) == (255, 0, 0)


def test_several_pictures_have_a_seed_each(client):
    task = client.wait(client.generate("x", model_version="steady", num_images=3, seed=10)["task_id"], 30)
    assert [image["seed"] for image in task["images"]] == [10, 11, 12]
    assert [picture(client.image(task["task_id"], i)).getpixel((0, 0))[0] for i in range(3)] == [10, 11, 12]


def test_the_picture_can_come_within_the_answer(client, stack):
    task_id = client.generate("anything", model_version="steady")["task_id"]
    client.wait(task_id, 30)
    inline = requests.get(f"{stack.url}/tasks/{task_id}?include=image", timeout=10).json()["image_base64"]
    assert base64.b64decode(inline) == client.image(task_id)


def test_a_failing_model_fails_the_job_without_a_traceback(client):
    task = client.wait(client.generate("anything", model_version="raises")["task_id"], 30)
    assert (task["status"], task["error"]["code"]) == ("FAILED", "internal")
    assert "divided" not in task["error"]["message"]


def test_celery_agrees_on_what_failed_and_what_succeeded(client, stack, backend):
    from celery import Celery

    app = Celery(backend=backend["REDIS_URL"])
    good = client.wait(client.generate("x", model_version="steady")["task_id"], 30)["task_id"]
    bad = client.wait(client.generate("x", model_version="raises")["task_id"], 30)["task_id"]
    try:
        from tests.stack import until

        until(lambda: app.AsyncResult(good).state == "SUCCESS", 30, "Celery knows the success")
        until(lambda: app.AsyncResult(bad).state == "FAILURE", 30, "Celery knows the failure")
    finally:
        app.close()
        app.backend.client.close()


def test_no_log_line_holds_a_prompt(client, stack):
    task = client.generate("sesame-opens-here", model_version="raises")
    client.wait(task["task_id"], 30)
    assert not [role.name for role in stack.roles if role.wrote("sesame-opens-here")]


def test_an_unknown_task_is_not_found(client):
    with pytest.raises(ApiError) as refusal:
        client.task("00000000-0000-4000-8000-000000000000")
    assert refusal.value.problem["code"] == "task_not_found"


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"\x16\x03\x01\r\n\r\n", 400),
        (b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nX-Secret: " + b"x" * 10_000 + b"\r\n\r\n", 431),
    ],
)
def test_what_is_no_request_is_refused_with_a_problem_document_too(stack, said, status):
    with socket.create_connection(("127.0.0.1", stack.port), timeout=10) as connection:
        connection.sendall(said)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        problem = json.loads(answer.read())
    assert (answer.status, answer.headers["Content-Type"]) == (status, "application/problem+json")
    assert (problem["status"], problem["code"]) == (status, "invalid_request")
    assert "x" * 20 not in json.dumps(problem)
