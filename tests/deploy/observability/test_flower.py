"""Flower beside real workers: for whom it is, what it shows, and what it does not know."""

import pytest

from tests.backends import GIVEN
from tests.deploy.observability.conftest import PROMPT
from tests.deploy.observability.flower import Flower
from tests.stack import until

pytestmark = [pytest.mark.deploy, pytest.mark.services, pytest.mark.timeout(200)]


@pytest.fixture(scope="session")
def flower(stack, done, tmp_path_factory):
    with Flower(stack.settings["BROKER_URL"], tmp_path_factory.mktemp("flower")) as flower:
        until(flower.knows_a_worker, 40, "Flower knows the worker")
        yield flower


def test_it_is_for_nobody_without_the_password(flower):
    for path in ("/", "/workers", "/broker", "/api/workers", "/api/tasks"):
        assert flower.get(path, auth=None).status_code == 401, path
        assert flower.get(path, auth=("darkroom", "wrong")).status_code == 401, path


def test_it_names_the_queues_as_the_catalogue_does(flower):
    [worker] = flower.get("/api/workers").json().values()
    assert [queue["name"] for queue in worker["active_queues"]] == ["gen.test"]
    assert "gen.test" in flower.get("/broker").text
    [queue] = flower.get("/api/queues/length").json()["active_queues"]
    assert (queue["name"], queue["arguments"]["x-dead-letter-exchange"]) == ("gen.test", "quarantine")


def test_it_shows_a_task_by_our_own_id_and_never_its_prompt(flower, stack):
    task_id = stack.client.generate(PROMPT, model_version="steady")["task_id"]
    assert stack.client.wait(task_id, 30)["status"] == "SUCCEEDED"
    task = until(lambda: flower.get("/api/tasks").json().get(task_id), 20, "Flower has the task")
    assert (task["name"], task["args"]) == ("darkroom.generate", "()")
    assert task["kwargs"] == f"{{'task_id': '{task_id}', 'model_version': 'steady'}}"
    assert PROMPT not in flower.get(f"/task/{task_id}").text


def test_it_lists_no_queue_that_no_worker_listens_to_and_no_password(flower):
    assert "gen.tiny" not in flower.get("/broker").text
    assert "quarantine" not in flower.get("/broker").text
    assert GIVEN["RABBITMQ_MANAGEMENT_URL"] not in flower.get("/broker").text
