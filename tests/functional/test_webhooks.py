"""Webhooks as their receiver sees them: real processes, a real server on loopback, the public verifier."""

import base64
import contextlib
import http.server
import os
import re
import signal
import subprocess
import sys
import threading
import uuid

import pytest
import requests
from standardwebhooks import Webhook

from app import settings
from tests.backends import embedded, valkey
from tests.stack import ROOT, Stack, free_port, until

pytestmark = [pytest.mark.functional, pytest.mark.slow, pytest.mark.timeout(300)]

SECRET = "whsec_" + base64.b64encode(os.urandom(32)).decode()
SETTINGS = {
    "WEBHOOK_SECRET": SECRET,
    "WEBHOOK_ALLOW_PRIVATE": "true",
    "WEBHOOK_TIMEOUT": "3",
    "WEBHOOK_PAUSE": "0.2",
}


def accept(receiver):
    return 204


class Receiver:
    """A server that verifies everything it gets; `behave` says how it answers. It can go away and come back."""

    def __init__(self):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/in?token=sesame"
        self.behave = accept
        self.events, self.acknowledged = [], []
        self._server = None

    def start(self):
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                event = Webhook(SECRET).verify(body, dict(self.headers))
                outer.events.append((self.headers["webhook-id"], event))
                status = outer.behave(outer)
                if status == 204:
                    outer.acknowledged.append(self.headers["webhook-id"])
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None
        threading.Thread(target=self._server.serve_forever, args=(0.02,)).start()

    def stop(self):
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def told(self, task_id, event="completed"):
        """What arrived of this, oldest first."""
        return [payload for name, payload in self.events if name == f"{task_id}.{event}"]


@pytest.fixture
def receiver():
    receiver = Receiver()
    receiver.start()
    yield receiver
    receiver.stop()


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stack")
    with embedded(folder) as backends, Stack(folder, **backends, **SETTINGS) as stack:
        yield stack.start_all("steady", "raises")


def generate(stack, receiver, **body):
    body = {"prompt": "anything", "model_version": "steady", "webhook_url": receiver.url, **body}
    answer = requests.post(f"{stack.url}/generate", json=body, timeout=10)
    assert answer.status_code == 202, answer.text
    return answer.json()["task_id"]


def task(stack, task_id):
    return requests.get(f"{stack.url}/tasks/{task_id}", timeout=10).json()


def deliveries(stack, task_id):
    return task(stack, task_id)["webhook"]["deliveries"]


def test_the_public_verifier_accepts_the_start_and_the_end(stack, receiver):
    task_id = generate(stack, receiver, webhook_events=["started", "completed"], client_ref="mine")
    until(lambda: receiver.told(task_id, "started") and receiver.told(task_id), 30, "both are told")
    (started,), (completed,) = receiver.told(task_id, "started"), receiver.told(task_id)
    assert (started["type"], completed["type"]) == ("task.started", "task.completed")
    assert started["timestamp"] < completed["timestamp"]
    assert (completed["data"]["status"], completed["data"]["client_ref"]) == ("SUCCEEDED", "mine")
    assert requests.get(completed["data"]["image_url"], timeout=10).content.startswith(b"\x89PNG")
    until(lambda: len(deliveries(stack, task_id)) == 2, 10, "both are on the record")
    assert {(d["status"], d["error"]) for d in deliveries(stack, task_id)} == {(204, None)}


def test_failures_and_cancels_are_told_too(stack, receiver):
    failed = generate(stack, receiver, model_version="raises")
    canceled = generate(stack, receiver, input_image=True)
    requests.post(f"{stack.url}/tasks/{canceled}/cancel", timeout=10).raise_for_status()
    until(lambda: receiver.told(failed) and receiver.told(canceled), 30, "both are told")
    codes = [receiver.told(task_id)[0]["data"]["error"]["code"] for task_id in (failed, canceled)]
    assert codes == ["internal", "canceled"]


def all_saw(stack, task_ids, condition):
    return all(any(condition(d) for d in deliveries(stack, task_id)) for task_id in task_ids)


def test_a_receiver_that_was_down_gets_everything_acknowledged_once(stack, receiver):
    receiver.stop()
    task_ids = [generate(stack, receiver) for _ in range(3)]
    until(lambda: all_saw(stack, task_ids, lambda d: d["error"] == "the connection was refused"), 30, "refused")
    receiver.behave = lambda _: 500
    receiver.start()
    until(lambda: all_saw(stack, task_ids, lambda d: d["status"] == 500), 30, "answered with 500")
    released = threading.Event()
    receiver.behave = lambda _: released.wait(30) and 503
    until(lambda: all_saw(stack, task_ids, lambda d: "no answer" in (d["error"] or "")), 60, "too slow")
    receiver.behave = accept
    released.set()
    until(lambda: all_saw(stack, task_ids, lambda d: d["status"] == 204), 120, "delivered")
    assert sorted(receiver.acknowledged) == sorted(f"{task_id}.completed" for task_id in task_ids)
    assert {task(stack, task_id)["status"] for task_id in task_ids} == {"SUCCEEDED"}


def test_a_courier_that_is_killed_during_a_delivery_loses_nothing(stack, receiver):
    released = threading.Event()
    receiver.behave = lambda _: released.wait(30) and 503
    task_id = generate(stack, receiver)
    until(lambda: receiver.told(task_id), 30, "a delivery is under way")
    courier = next(role for role in stack.roles if role.name == "courier")
    courier.kill()
    stack.roles.remove(courier)
    receiver.behave = accept
    released.set()
    stack.start("courier")
    until(lambda: receiver.acknowledged, 30, "the next courier delivers it")
    assert receiver.acknowledged == [f"{task_id}.completed"]


def test_a_delivery_can_be_repeated(stack, receiver):
    task_id = generate(stack, receiver)
    until(lambda: receiver.acknowledged, 30, "delivered")
    until(lambda: deliveries(stack, task_id), 10, "on the record")
    again = requests.post(f"{stack.url}/tasks/{task_id}/webhook/redeliver", timeout=10)
    assert again.status_code == 202
    until(lambda: len(receiver.acknowledged) == 2, 10, "delivered again")
    assert set(receiver.acknowledged) == {f"{task_id}.completed"}


def test_a_slow_receiver_holds_up_nobody_else(stack, receiver):
    released, quick = threading.Event(), Receiver()
    quick.url = quick.url.replace("127.0.0.1", "localhost")
    quick.start()
    receiver.behave = lambda _: released.wait(30) and 503
    for _ in range(6):
        generate(stack, receiver, input_image=True)
    task_ids = [generate(stack, receiver, input_image=True) for _ in range(6)]
    with contextlib.closing(requests.Session()) as session:
        for task_id in task_ids:
            session.post(f"{stack.url}/tasks/{task_id}/cancel", timeout=10)
        told = generate(stack, quick, input_image=True)
        session.post(f"{stack.url}/tasks/{told}/cancel", timeout=10)
    try:
        until(lambda: quick.acknowledged, 10, "the quick one is told")
    finally:
        released.set()
        quick.stop()


def test_everything_may_be_restarted_before_a_delivery(tmp_path, receiver):
    receiver.stop()
    folder, key = tmp_path / "valkey", uuid.uuid4().hex
    folder.mkdir()

    @contextlib.contextmanager
    def running(*roles):
        with valkey(folder) as url:
            urls = {"BROKER_URL": f"{url}/0", "REDIS_URL": f"{url}/1", "STORAGE_URL": f"file://{tmp_path}/storage"}
            with Stack(tmp_path, **urls, **SETTINGS, SIGNING_KEY=key) as stack:
                for role in roles:
                    stack.start(role)
                yield stack.ready()
                for role in stack.roles:
                    role.kill()

    with running("web", "courier") as stack:
        task_id = generate(stack, receiver, input_image=True)
        requests.post(f"{stack.url}/tasks/{task_id}/cancel", timeout=10).raise_for_status()
        until(lambda: deliveries(stack, task_id), 20, "a first try has failed")
    receiver.start()
    with running("web", "courier") as stack:
        until(lambda: receiver.acknowledged, 40, "delivered after the restart")
        until(lambda: deliveries(stack, task_id)[-1]["status"] == 204, 10, "on the record")
    assert receiver.acknowledged == [f"{task_id}.completed"]


def test_the_receiver_of_the_documentation_works(stack, receiver, tmp_path):
    page = (ROOT / "docs/webhooks.md").read_text()
    (tmp_path / "receiver.py").write_text(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1])
    commands = re.search(r"```sh\n(.*?)```", page, re.DOTALL)[1]
    check_secret(commands.splitlines()[0])
    receiver.stop()
    # The stack runs already, with a secret of its own.
    script = commands.replace(".venv/bin/python", sys.executable).replace("script/server", "wait")
    script = re.sub(r'"whsec_.*?\)"', SECRET, script)
    log = tmp_path / "receiver.log"
    with log.open("wb") as out, subprocess.Popen(
        ["bash", "-euc", script], env={**os.environ, "PORT": str(receiver.port)}, stdout=out, cwd=tmp_path,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            task_id = generate(stack, receiver)
            until(lambda: f"task.completed {task_id} SUCCEEDED" in log.read_text(), 30, "it prints what it is told")
            requests.post(f"{stack.url}/tasks/{task_id}/webhook/redeliver", timeout=10).raise_for_status()
            until(lambda: len(deliveries(stack, task_id)) > 1, 30, "delivered again")
            assert [d["status"] for d in deliveries(stack, task_id)][-1] == 204
            assert log.read_text().count(task_id) == 1, "it knows what it has seen"
            forged = requests.post(receiver.url, json={}, timeout=10, headers={"webhook-id": "1"})
            assert forged.status_code == 401
        finally:
            os.killpg(process.pid, signal.SIGTERM)


def check_secret(export):
    """Whether what the page makes is a secret; raises SettingsError."""
    script = f'{export}; printf %s "$WEBHOOK_SECRET"'
    made = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=True).stdout
    assert settings.load(signing_key="k" * 32, webhook_secret=made).webhook_secret.get_secret_value()


def test_no_log_of_any_process_holds_the_query_of_a_webhook(stack, receiver):
    task_id = generate(stack, receiver, model_version="raises")
    until(lambda: receiver.told(task_id), 30, "delivered")
    assert not [role.name for role in stack.roles if role.wrote("sesame")]
    courier = next(role for role in stack.roles if role.name == "courier")
    until(lambda: courier.wrote(task_id), 10, "the courier logs the delivery")
