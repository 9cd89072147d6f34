"""Flower, started as compose.yaml starts it, on this machine; run as a module it takes the documents' picture of it."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import requests

from tests.backends import GIVEN, real_services
from tests.stack import ROOT, Stack, free_port, until

USER = ("darkroom", "a password for one test")
VIEW = {"width": 1600, "height": 540}


class Flower:
    """One running Flower; `get` asks it as the operator."""

    def __init__(self, broker_url, folder):
        self.url = f"http://127.0.0.1:{free_port()}"
        management = f"{GIVEN['RABBITMQ_MANAGEMENT_URL']}/api/"
        environment = {
            "CELERY_BROKER_URL": broker_url, "FLOWER_BROKER_API": management, "FLOWER_BASIC_AUTH": ":".join(USER),
            "FLOWER_ADDRESS": "127.0.0.1", "FLOWER_PORT": str(urlsplit(self.url).port),
        }  # fmt: skip
        # Celery's command would take this one before its own.
        others = {name: value for name, value in os.environ.items() if name != "BROKER_URL"}
        with (folder / "flower.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "celery", "flower"],
                cwd=folder, env=others | environment, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def get(self, path, auth=USER):
        return requests.get(f"{self.url}{path}", auth=auth, timeout=10)

    def knows_a_worker(self):
        """Whether it answers and has seen what queue a worker listens to."""
        try:
            workers = self.get("/api/workers?refresh=true").json()
        except requests.RequestException:
            return False
        return any(worker.get("active_queues") for worker in workers.values())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(10)


def main(path):
    """A few jobs of the bundled model, and what Flower shows of them."""
    from tests.browser.chromium import chromium

    with tempfile.TemporaryDirectory() as name, real_services(Path(name)) as settings:
        models = {"MODELS_FILE": str(ROOT / "config/models.yaml"), "WORKER_QUEUE": "gen.tiny"}
        with (
            Stack(Path(name), **settings, **models) as stack,
            Flower(settings["BROKER_URL"], Path(name)) as flower,
            chromium() as browser,
        ):
            stack.start_all("tiny-scenes-1")
            until(flower.knows_a_worker, 60, "Flower knows the worker")
            take(browser, flower, stack, path)


def take(browser, flower, stack, path):
    made = [stack.client.generate("a red circle", num_inference_steps=15)["task_id"] for _ in range(3)]
    gone = stack.client.generate("a blue star", num_inference_steps=100)["task_id"]
    stack.client.cancel(gone)
    for task_id in (*made, gone):
        stack.client.wait(task_id, 60)
    credentials = {"username": USER[0], "password": USER[1]}
    page = browser.new_context(viewport=VIEW, http_credentials=credentials).new_page()
    page.goto(f"{flower.url}/tasks")
    page.locator(f"text={made[0]}").wait_for()
    page.screenshot(path=path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
