"""API keys on real processes: two web processes keep one limit, no key leaks, and no caller sees another's tasks."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys

import psutil
import pytest
import requests

from app import keys
from app.client import ApiError, Client
from tests.backends import embedded
from tests.stack import ROOT, Stack, free_port, until
from tests.things import picture

pytestmark = [pytest.mark.functional, pytest.mark.slow, pytest.mark.timeout(300)]

TERMS = {
    "alice": {"rate": "1000/second"},
    "bob": {"rate": "1000/second"},
    "boss": {"rate": "", "role": "operator"},
    "slow": {"rate": "4/hour"},
    "brisk": {"rate": "2 per 20 second"},
    "few": {"rate": "", "open_tasks": 2},
}


@pytest.fixture(scope="module")
def hired(tmp_path_factory):
    """The file of keys, and each caller's key."""
    path = tmp_path_factory.mktemp("keys") / "keys.yaml"
    made = {name: keys.new_key(name, **terms) for name, terms in TERMS.items()}
    for _, caller in made.values():
        keys.add(path, caller)
    return path, {name: key for name, (key, _) in made.items()}


@pytest.fixture(scope="module")
def stack(hired, tmp_path_factory):
    """Two web processes behind one address, a worker and a courier."""
    path, held = hired
    folder = tmp_path_factory.mktemp("stack")
    more = {"API_KEYS_FILE": str(path), "WEB_WORKERS": "2", "WEB_THREADS": "8", "LOG_LEVEL": "DEBUG"}
    with embedded(folder) as settings, Stack(folder, key=held["boss"], **settings, **more) as stack:
        yield stack.start_all("steady")


@pytest.fixture
def callers(stack, hired):
    """A client for each caller."""
    return {name: Client(stack.url, key=key) for name, key in hired[1].items()}


@contextlib.contextmanager
def only(web, index):
    """Let one of the web processes answer, and stop the other for a moment."""
    processes = sorted(web.children, key=lambda child: child.pid)
    processes[1 - index].suspend()
    try:
        yield
    finally:
        processes[1 - index].resume()


def status_of(stack, key, path="/tasks"):
    """One request on a connection of its own."""
    return requests.get(stack.url + path, headers={"Authorization": f"Bearer {key}"}, timeout=10)


def test_a_limit_holds_over_both_web_processes(stack, hired):
    web, key = stack.roles[0], hired[1]["slow"]
    with only(web, 0):
        assert [status_of(stack, key).status_code for _ in range(4)] == [200] * 4
    with only(web, 1):
        refused = status_of(stack, key)
    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
    assert 1 <= int(refused.headers["Retry-After"]) <= 3600


def test_who_waits_as_long_as_told_is_served_again(stack, hired):
    key = hired[1]["brisk"]
    answers = [status_of(stack, key) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    seconds = int(answers[-1].headers["Retry-After"])
    assert 1 <= seconds <= 20
    until(lambda: status_of(stack, key).status_code == 200, seconds + 3, "served again")


def test_the_number_of_unfinished_tasks_is_kept_until_one_ends(callers):
    client, slowly = callers["few"], {"model_version": "steady", "num_inference_steps": 1000}
    tickets = [client.generate("x", **slowly) for _ in range(2)]
    with pytest.raises(ApiError, match="At most 2 unfinished tasks") as refused:
        client.generate("x", **slowly)
    assert (refused.value.status, refused.value.problem["code"]) == (429, "quota_exceeded")
    assert refused.value.retry_after >= 1
    for ticket in tickets:
        client.cancel(ticket["task_id"])
        assert client.wait(ticket["task_id"], 30)["error"]["code"] == "canceled"
    assert client.wait(client.generate("x", model_version="steady")["task_id"], 30)["status"] == "SUCCEEDED"


def test_without_a_key_nothing_but_health_is_answered(stack):
    stranger = Client(stack.url)
    assert stranger.ready()
    for question in (stranger.models, stranger.page, lambda: stranger.generate("x"), lambda: stranger.task("x")):
        with pytest.raises(ApiError) as refused:
            question()
        assert refused.value.status == 401
    assert requests.get(f"{stack.url}/tasks", timeout=10).headers["WWW-Authenticate"] == "Bearer"


def test_another_callers_task_is_not_there(callers):
    alice, bob = callers["alice"], callers["bob"]
    task_id = alice.generate("x", model_version="steady")["task_id"]
    assert alice.wait(task_id, 30)["status"] == "SUCCEEDED"
    for question in (bob.task, bob.start, bob.cancel, bob.rerun, bob.delete, bob.image, lambda t: next(bob.events(t))):
        with pytest.raises(ApiError) as refused:
            question(task_id)
        assert refused.value.problem["code"] == "task_not_found"
    assert task_id not in [task["task_id"] for task in bob.tasks()]
    assert task_id in [task["task_id"] for task in alice.tasks()]


def test_anothers_picture_is_no_input_and_ones_own_is(callers):
    alice, bob = callers["alice"], callers["bob"]
    task_id = alice.generate("x", input_image=picture(), model_version="steady")["task_id"]
    output = alice.wait(task_id, 30)["images"][0]["input_url"]
    for url in (output, output.replace("output/", "input/").removesuffix(".png")):
        with pytest.raises(ApiError, match="input_url: must name an object of your own"):
            bob.generate("x", input_url=url, model_version="steady")
        again = alice.generate("x", input_url=url, model_version="steady")
        assert alice.wait(again["task_id"], 30)["status"] == "SUCCEEDED"


@pytest.fixture
def endless(callers):
    """A task of alice's that is not done while anybody looks."""
    task = callers["alice"].generate("x", model_version="steady", num_inference_steps=1000)
    yield task["task_id"]
    callers["alice"].cancel(task["task_id"])


def waiting(stack, key, path):
    """A request on a connection of its own, whose answer nobody reads."""
    connection = socket.create_connection(("127.0.0.1", stack.port), timeout=10)
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n\r\n".encode())
    return connection


def waiters(stack):
    told = requests.get(f"{stack.url}/metrics", timeout=10).text
    return float(re.search(r"^darkroom_waiting_clients (\S+)$", told, re.MULTILINE)[1])


@pytest.mark.parametrize("way", ["?wait=60", "/events"])
def test_who_waits_with_all_connections_there_are_keeps_nobody_else_out(stack, hired, callers, endless, way):
    with contextlib.ExitStack() as held:

        def one_more():
            """Which of the two processes takes it is the kernel's choice."""
            held.enter_context(waiting(stack, hired[1]["alice"], f"/tasks/{endless}{way}"))
            return waiters(stack) == 8

        for _ in range(40):
            one_more()
        until(one_more, 30, "four wait in each process")
        for _ in range(10):
            assert requests.get(f"{stack.url}/healthz", timeout=10).status_code == 200
        assert callers["alice"].task(endless, wait=30)["status"] == "PENDING"
        ticket = callers["bob"].generate("x", model_version="steady")["task_id"]
        assert callers["bob"].cancel(ticket)["task_id"] == ticket
    until(lambda: waiters(stack) == 0, 30, "nobody waits for those who have gone")


def test_a_key_made_now_works_now_and_a_revoked_one_no_longer(stack, hired):
    path, _ = hired
    key, caller = keys.new_key("late")
    keys.add(path, caller)
    until(lambda: status_of(stack, key).status_code == 200, 10, "the new key opens")
    keys.revoke(path, "late")
    until(lambda: both_refuse(stack, key), 10, "the revoked key is refused by both processes")


def both_refuse(stack, key):
    answers = []
    for index in (0, 1):
        with only(stack.roles[0], index):
            answers.append(status_of(stack, key).status_code)
    return answers == [401, 401]


def test_no_key_is_in_a_log_a_command_line_or_an_error(stack, hired, callers):
    secrets = [*hired[1].values(), "dk_of-a-stranger"]
    assert "dk_of-a-stranger" not in status_of(stack, "dk_of-a-stranger").text
    for role in stack.roles:
        lines = [*psutil.Process(role.process.pid).cmdline(), *(w for c in role.children for w in c.cmdline())]
        assert [key for key in secrets if role.wrote(key) or any(key in line for line in lines)] == []


def start(settings, **more):
    """A web tier that is expected not to start, or is ended by the caller."""
    return subprocess.Popen(
        [sys.executable, "-m", "app", "web"], cwd=ROOT, env={**os.environ, **settings, **more},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_without_keys_it_starts_on_loopback_only_and_says_who_may_use_it(stack, hired):
    keyless = {**stack.settings, "API_KEYS_FILE": "", "WEB_WORKERS": "1"}
    refused = start(keyless, WEB_BIND=f"0.0.0.0:{free_port()}")
    _, told = refused.communicate(timeout=60)
    assert refused.returncode == 1
    assert told.count("\n") == 1
    assert "there are no API keys: set API_KEYS_FILE" in told
    for bind, more, who in (("127.0.0.1", {}, "on this machine"), ("0.0.0.0", {"ALLOW_ANONYMOUS": "true"}, "reaches")):
        web = start(keyless, WEB_BIND=f"{bind}:{free_port()}", **more)
        try:
            line = until(web.stdout.readline, 60, "it says something")
            assert "API_KEYS_FILE is not set: anyone" in line
            assert who in line
        finally:
            web.send_signal(signal.SIGTERM)
            web.communicate(timeout=60)


def test_a_wrong_file_of_keys_keeps_it_from_starting_in_one_sentence_a_mistake(stack, tmp_path):
    wrong = tmp_path / "keys.yaml"
    wrong.write_text("callers: [{name: a b, sha256: x}]")
    refused = start(stack.settings, API_KEYS_FILE=str(wrong))
    _, told = refused.communicate(timeout=60)
    assert refused.returncode == 1
    assert [line.rpartition(f"{wrong}: ")[2].partition(":")[0] for line in told.splitlines()] == [
        "callers.0.name", "callers.0.sha256",
    ]  # fmt: skip
