"""How the processes stop, and how they show that they live."""

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import threading

import psutil
import pytest
import redis
import requests

from app.client import ApiError
from tests.backends import embedded
from tests.stack import ROOT, Stack, until

pytestmark = pytest.mark.functional


@pytest.fixture
def stack(tmp_path):
    with embedded(tmp_path) as backends, Stack(tmp_path, **backends, ALIVE_FILE=str(tmp_path / "alive")) as stack:
        yield stack


def refuses(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_web_process_that_stops_answers_who_waits_and_refuses_who_comes(stack):
    web, answers = stack.start("web"), []
    stack.ready()
    task_id = stack.client.submit("a red circle")["task_id"]
    url = f"{stack.url}/tasks/{task_id}?wait=3"
    waits = threading.Thread(target=lambda: answers.append(requests.get(url, timeout=30)))
    waits.start()
    until(lambda: len(web.children) == 1 and has_connection(web.children[0]), 5, "the request has come")
    web.process.send_signal(signal.SIGTERM)
    until(lambda: refuses(stack.port), 2, "the door is closed")
    assert waits.is_alive(), "nobody waits any more: this shows nothing"
    waits.join(30)
    assert [answer.status_code for answer in answers] == [200]
    assert web.process.wait(10) == 0


def test_a_web_tier_whose_first_process_is_killed_gives_way_to_the_next_and_answers_who_waits(stack):
    web, answers = stack.start("web"), []
    stack.ready()
    task_id = stack.client.submit("a red circle")["task_id"]
    waits = threading.Thread(
        target=lambda: answers.append(requests.get(f"{stack.url}/tasks/{task_id}?wait=20", timeout=60))
    )
    waits.start()
    orphan = until(lambda: [each for each in web.children if has_connection(each)], 5, "the request has come")[0]
    web.kill()
    stack.roles.remove(web)
    # Two looks for its parent, a second apart.
    until(lambda: refuses(stack.port), 5, "the door is closed")
    assert runs(orphan), "nobody is answered any more: this shows nothing"
    stack.start("web")
    stack.ready(seconds=15)
    waits.join(60)
    assert [answer.status_code for answer in answers] == [200]


def test_a_web_process_with_no_file_left_for_who_comes_goes_on_and_takes_them_later(stack):
    web = stack.start("web")
    stack.ready()
    [child] = web.children
    resource.prlimit(child.pid, resource.RLIMIT_NOFILE, (child.num_fds() + 5,) * 2)
    with contextlib.ExitStack() as silent:
        for _ in range(40):
            silent.enter_context(socket.create_connection(("127.0.0.1", stack.port), timeout=10))
        until(lambda: web.wrote("web.no_files_left"), 20, "there is no file left")
    # It finds by and by that they have gone.
    until(lambda: takes(stack), 20, "it takes requests again")
    assert web.children == [child]


def takes(stack):
    with contextlib.suppress(ApiError):
        return stack.client.submit("a red circle")["status"] == "PENDING"
    return False


def has_connection(process):
    return any(connection.status == "ESTABLISHED" for connection in process.net_connections("tcp"))


@pytest.mark.parametrize("role", ["courier", "worker"])
def test_who_lives_shows_it_while_redis_is_away(stack, tmp_path, role):
    stack.start(role, REDIS_URL="redis://127.0.0.1:1/0")
    until((tmp_path / "alive").exists, 30, "it has touched its file")
    first = (tmp_path / "alive").stat().st_mtime_ns
    until(lambda: (tmp_path / "alive").stat().st_mtime_ns > first, 20, "it touches it again")


def runs(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


@pytest.mark.slow
def test_a_worker_that_is_told_to_stop_leaves_although_redis_is_away(stack):
    stack.start("web")
    worker = stack.start("worker")
    stack.ready("steady")
    until(lambda: worker.wrote("worker.ready"), 20, "the worker has heard of its child")
    with redis.Redis.from_url(stack.settings["REDIS_URL"]) as client:
        client.shutdown(nosave=True)
    until(lambda: worker.wrote("Cannot connect to"), 20, "the worker misses its broker")
    children = worker.children
    worker.process.terminate()
    worker.process.wait(30)
    # Whose child it is now may not have looked at its end yet.
    until(lambda: not any(runs(child) for child in children), 10, "its child has ended too")
    assert not worker.wrote("Exception in thread")


@pytest.mark.slow
def test_a_worker_that_is_told_to_stop_before_it_ever_reached_redis_leaves(stack):
    worker = stack.start("worker", REDIS_URL="redis://127.0.0.1:1/0")
    children = until(lambda: worker.children, 30, "it has a child")
    worker.process.terminate()
    worker.process.wait(15)
    until(lambda: not any(runs(child) for child in children), 10, "its child has ended too")


def test_a_worker_that_is_told_to_stop_while_it_loads_its_models_leaves_without_complaint(stack):
    worker = stack.start("worker", WORKER_QUEUE="gen.tiny")
    until(lambda: worker.children, 30, "it has a child")
    worker.process.terminate()
    assert worker.process.wait(15) == 0
    assert not worker.wrote("darkroom:")


def test_a_worker_whose_terminal_is_gone_stops_as_if_it_was_told_to_unless_under_nohup(stack):
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    worker = stack.start("worker")
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    lasting = stack.start("worker-2")
    signal.signal(signal.SIGHUP, before)
    for each in (lasting, worker):
        until(lambda each=each: each.wrote("worker.ready"), 60, "it is ready")
    before = lasting.children
    for each in (lasting, worker):
        # As a terminal does: to all of them.
        os.killpg(each.process.pid, signal.SIGHUP)
    assert worker.process.wait(20) == 0
    assert worker.wrote("worker.stopping")
    assert (lasting.process.poll(), lasting.children) == (None, before)


def told_to_stop(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGTERM)


@pytest.mark.parametrize("role", ["courier", "worker"])
def test_the_first_process_of_a_container_hears_a_stop_from_the_beginning(stack, role):
    environ = {**os.environ, **stack.settings}
    command = ["unshare", "--fork", "--pid", "--kill-child", sys.executable, "-m", "app", role]
    with subprocess.Popen(command, env=environ, cwd=ROOT) as outer:
        (first,) = until(lambda: psutil.Process(outer.pid).children(), 5, "it is there")
        # Again and again: none is heard while Python itself starts. The role's own way of stopping would end with 0.
        until(lambda: told_to_stop(first) or outer.poll() is not None, 20, "it has ended")
    assert outer.returncode == 128 + signal.SIGTERM
