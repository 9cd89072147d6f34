"""`darkroom generate` as a script drives it, against a real deployment with keys, and Ctrl-C at each moment."""

import json
import os
import pty
import re
import signal

import psutil
import pytest
import redis
from PIL import Image

from tests.functional.cli.shell import ended, size
from tests.stack import until
from tests.things import picture

pytestmark = [pytest.mark.functional, pytest.mark.slow, pytest.mark.timeout(300)]

LONG = ("--model", "steady", "--steps", "1000")

# ---- generate


def test_a_prompt_becomes_a_file_and_its_name_is_all_of_standard_output(darkroom, tmp_path):
    done = ended(darkroom("generate", "a red star", "--model", "steady", "-o", "star.png", "--seed", "7"), 0)
    assert done.stdout == "star.png\n"
    assert "seed 7, steady" in done.stderr
    assert size(tmp_path / "star.png") == (64, 64)


def test_every_wish_reaches_the_model(darkroom):
    wishes = [
        "--width",
        "96",
        "--height",
        "80",
        "--steps",
        "5",
        "--guidance",
        "2.5",
        "--seed",
        "3",
        "--model",
        "steady",
        "--low",
    ]
    done = ended(darkroom("generate", "a red star", *wishes, "--json"), 0)
    task = json.loads(done.stdout)
    asked = {"width": 96, "height": 80, "num_inference_steps": 5, "guidance_scale": 2.5, "priority": "low"}
    assert {name: task["params"][name] for name in asked} == asked
    assert (task["seed"], task["model_version"], task["status"]) == (3, "steady", "SUCCEEDED")


def test_who_asks_for_a_model_that_nobody_serves_is_told_so(started):
    process = started("generate", "x", "--model", "leaks")
    assert process.stderr.readline().startswith("No worker serves leaks now; the job waits for one")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)


def test_without_a_name_the_file_is_called_for_the_prompt_and_the_task(darkroom, tmp_path):
    done = ended(darkroom("generate", "A red star, please!", "--model", "steady"), 0)
    assert re.fullmatch(r"a-red-star-please-[0-9a-f]{8}\.png\n", done.stdout)
    assert [path.name for path in tmp_path.iterdir()] == [done.stdout.strip()]


def test_several_pictures_are_numbered(darkroom, tmp_path):
    done = ended(darkroom("generate", "x", "--model", "steady", "-n", "3", "-o", "out/star.png"), 0)
    assert done.stdout.split() == [f"out/star-{index}.png" for index in range(3)]
    ended(darkroom("generate", "x", "--model", "steady", "-n", "2", "-o", "p{index}a.png"), 0)
    assert sorted(path.name for path in tmp_path.glob("p*")) == ["p0a.png", "p1a.png"]


def test_an_input_picture_is_uploaded(darkroom, tmp_path):
    (tmp_path / "in.png").write_bytes(picture(colour="red"))
    ended(darkroom("generate", "x", "-i", "in.png", "-o", "out.png", "--model", "steady", "--strength", "0.9"), 0)
    with Image.open(tmp_path / "out.png") as image:
        assert image.convert("RGB").getpixel((60, 60)) == (255, 0, 0)


def test_the_prompt_can_come_on_standard_input(darkroom):
    done = ended(darkroom("generate", "-", "--model", "steady", "--json", input="où est le renard?\n"), 0)
    assert json.loads(done.stdout)["params"]["prompt"] == "où est le renard?"


def test_json_is_one_document_with_the_files_and_progress_goes_to_standard_error(darkroom, tmp_path):
    done = ended(darkroom("generate", "x", "--model", "steady", "--steps", "30", "-o", "a.png", "--json"), 0)
    task = json.loads(done.stdout)
    assert task["files"] == ["a.png"]
    assert "RUNNING" in done.stderr


def test_no_file_is_written_over_but_by_force(darkroom, tmp_path, stack):
    (tmp_path / "star.png").write_text("mine")
    before = len(list(stack.client.tasks()))
    refused = ended(darkroom("generate", "x", "--model", "steady", "-o", "star.png"), 1)
    assert refused.stderr == "darkroom: star.png is there already: --force writes over it.\n"
    assert (tmp_path / "star.png").read_text() == "mine"
    assert len(list(stack.client.tasks())) == before, "nothing was asked for"
    ended(darkroom("generate", "x", "--model", "steady", "-o", "star.png", "--force"), 0)
    assert size(tmp_path / "star.png") == (64, 64)


def test_a_failed_task_is_status_3(darkroom):
    done = ended(darkroom("generate", "x", "--model", "raises"), 3)
    assert "FAILED" in done.stderr.splitlines()[-1]
    assert done.stdout == ""
    assert json.loads(ended(darkroom("generate", "x", "--model", "raises", "--json"), 3).stdout)["status"] == "FAILED"


def test_on_a_terminal_there_is_a_bar(stack, tmp_path, started):
    ours, theirs = pty.openpty()
    process = started("generate", "x", "--model", "steady", "--steps", "60", stderr=theirs)
    os.close(theirs)
    said = ""
    try:
        while piece := os.read(ours, 4096):
            said += piece.decode()
    except OSError:
        pass  # How Linux says that nobody writes to a terminal any more.
    finally:
        os.close(ours)
    process.wait(60)
    assert "Running" in said
    assert "━" in said


# ---- Ctrl-C


def task_of(process):
    """The id that a running `generate` tells first."""
    line = process.stderr.readline()
    assert re.match(r"[0-9a-f-]{36} ", line), line
    return line.split()[0]


def test_ctrl_c_cancels_the_task(started, stack):
    process = started("generate", "x", *LONG)
    task_id = task_of(process)
    until(lambda: stack.client.task(task_id)["phase"] == "RUNNING", 30, "it runs")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"Canceling {task_id}" in said
    assert "Traceback" not in said
    assert stack.client.task(task_id)["error"]["code"] == "canceled"


def test_ctrl_c_before_the_answer_leaves_no_task_behind(started, stack):
    """The web tier is stopped, so that nobody can know whether the request was accepted."""
    before = {task["task_id"] for task in stack.client.tasks()}
    web = stack.roles[0]
    frozen = [psutil.Process(web.process.pid), *web.children]
    for process in frozen:
        process.suspend()
    try:
        asking = started("generate", "x", *LONG)
        until(lambda: psutil.Process(asking.pid).net_connections("tcp"), 60, "it has asked")
        asking.send_signal(signal.SIGINT)
        assert asking.stderr.readline() == "Canceling it; Ctrl-C again leaves at once.\n"
    finally:
        for process in frozen:
            process.resume()
    _, said = asking.communicate(timeout=60)
    assert asking.returncode == 130, said
    [task] = [task for task in stack.client.tasks() if task["task_id"] not in before]
    assert stack.client.wait(task["task_id"], 30)["error"]["code"] == "canceled"
    assert task["task_id"] in said


def test_a_second_ctrl_c_leaves_at_once(started, stack):
    """The worker is stopped, so that the task cannot end and the first Ctrl-C goes on waiting."""
    process = started("generate", "x", *LONG)
    task_id = task_of(process)
    until(lambda: stack.client.task(task_id)["phase"] == "RUNNING", 30, "it runs")
    frozen = stack.roles[1].children
    for child in frozen:
        child.suspend()
    try:
        process.send_signal(signal.SIGINT)
        with redis.Redis.from_url(stack.settings["REDIS_URL"]) as store:
            until(lambda: store.hget(f"job:{task_id}", "cancel"), 30, "it has asked")
        process.send_signal(signal.SIGINT)
        # Well below CANCEL_SECONDS, for which it would wait.
        assert process.wait(10) == 130
    finally:
        for child in frozen:
            child.resume()
    assert stack.client.wait(task_id, 60)["error"]["code"] == "canceled"


def test_ctrl_c_on_wait_leaves_the_task_alone(started, stack):
    task_id = stack.client.generate("x", model_version="steady", num_inference_steps=1000)["task_id"]
    process = started("wait", task_id)
    assert task_of(process) == task_id
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert stack.client.task(task_id)["status"] == "PENDING"
    stack.client.cancel(task_id)
    stack.client.wait(task_id, 30)


def test_a_file_that_is_there_is_told_before_the_wait(started, stack, tmp_path):
    (tmp_path / "star.png").touch()
    task_id = stack.client.generate("x", model_version="steady", num_inference_steps=1000)["task_id"]
    process = started("wait", task_id, "-o", str(tmp_path / "star.png"))
    _, told = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "is there already" in told
    assert stack.client.task(task_id)["status"] == "PENDING"
    stack.client.cancel(task_id)
    stack.client.wait(task_id, 30)


def test_who_sees_another_cancel_ends_with_status_4(started, stack):
    process = started("generate", "x", *LONG)
    stack.client.cancel(task_of(process))
    process.communicate(timeout=60)
    assert process.returncode == 4
