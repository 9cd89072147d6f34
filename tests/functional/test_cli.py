"""The command line as a script drives it, against a real deployment with keys."""

import itertools
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys

import psutil
import pytest
import redis
from PIL import Image

from app import keys
from app.settings import Settings
from tests.backends import embedded
from tests.stack import ROOT, Stack, free_port, until
from tests.things import picture

pytestmark = [pytest.mark.functional, pytest.mark.slow, pytest.mark.timeout(300)]

LONG = ("--model", "steady", "--steps", "1000")


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """One web process, a worker, a courier; one caller."""
    path = tmp_path_factory.mktemp("keys") / "keys.yaml"
    key, caller = keys.new_key("script", rate="1000/second")
    keys.add(path, caller)
    with embedded(tmp_path_factory.mktemp("embedded")) as settings:
        stack = Stack(tmp_path_factory.mktemp("stack"), key=key, API_KEYS_FILE=str(path), **settings)
        for role in ("web", "worker", "courier"):
            stack.start(role)
        stack.key = key
        try:
            yield stack.ready("steady", "raises")
        finally:
            stack.stop()


def environment(stack, **more):
    """What a person's shell holds: none of the service's settings."""
    bare = {name: value for name, value in os.environ.items() if name.lower() not in Settings.model_fields}
    own = {"PYTHONPATH": str(ROOT), "DARKROOM_URL": stack.url, "DARKROOM_API_KEY": stack.key}
    return {**bare, **own, **more}


@pytest.fixture
def darkroom(stack, tmp_path):
    """Run one command to its end, in an empty folder."""

    def run(*arguments, input=None, **more):  # noqa: A002, as subprocess calls it
        return subprocess.run(
            [sys.executable, "-m", "app", *arguments], cwd=tmp_path, env=environment(stack, **more),
            input=input, capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip

    return run


@pytest.fixture
def started(stack, tmp_path):
    """Start a command and leave it running."""
    running = []

    def start(*arguments, **options):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        command = [sys.executable, "-m", "app", *arguments]
        running.append(subprocess.Popen(command, cwd=tmp_path, env=environment(stack), text=True, **pipes))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


def size(path):
    with Image.open(path) as image:
        return image.size


def ended(done, status):
    assert done.returncode == status, f"{done.returncode}: {done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


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


def test_who_sees_another_cancel_ends_with_status_4(started, stack):
    process = started("generate", "x", *LONG)
    stack.client.cancel(task_of(process))
    process.communicate(timeout=60)
    assert process.returncode == 4


# ---- The other commands


@pytest.fixture(scope="module")
def task_id(stack):
    """A finished task with two pictures."""
    ticket = stack.client.generate("x", model_version="steady", num_images=2, seed=11)
    return stack.client.wait(ticket["task_id"], 30)["task_id"]


def test_status_tells_how_a_task_is(darkroom, task_id):
    assert ended(darkroom("status", task_id), 0).stdout == f"{task_id}: SUCCEEDED, seed 11, steady\n"
    assert json.loads(ended(darkroom("status", task_id, "--json"), 0).stdout)["task_id"] == task_id


def test_wait_saves_the_pictures_of_a_task(darkroom, task_id, tmp_path):
    assert ended(darkroom("wait", task_id), 0).stdout == f"{task_id}\n"
    assert ended(darkroom("wait", task_id, "-o", "w.png"), 0).stdout == "w-0.png\nw-1.png\n"
    assert size(tmp_path / "w-1.png") == (64, 64)
    assert ended(darkroom("wait", task_id, "-o", "w.png"), 1).stderr.endswith("--force writes over it.\n")


def test_rerun_gives_a_new_task_with_the_same_seed(darkroom, task_id, stack):
    again = ended(darkroom("rerun", task_id), 0).stdout.strip()
    assert again != task_id
    task = stack.client.wait(again, 30)
    assert (task["seed"], task["rerun_of"]) == (11, task_id)


def test_cancel_ends_a_task_and_leaves_a_finished_one(darkroom, task_id, stack):
    running = stack.client.generate("x", model_version="steady", num_inference_steps=1000)["task_id"]
    ended(darkroom("cancel", running), 0)
    assert stack.client.wait(running, 30)["error"]["code"] == "canceled"
    assert "CANCELED" in ended(darkroom("status", running), 0).stdout
    assert "SUCCEEDED" in ended(darkroom("cancel", task_id), 0).stdout


def test_list_shows_the_newest_first_and_takes_filters(darkroom, task_id, stack):
    newest = stack.client.wait(stack.client.generate("x", model_version="raises")["task_id"], 30)["task_id"]
    lines = ended(darkroom("list", "--limit", "2"), 0).stdout.splitlines()
    assert (lines[0].split()[0], lines[1].split()[0], len(lines)) == ("task", newest, 3)
    good = json.loads(ended(darkroom("list", "--status", "SUCCEEDED", "--model", "steady", "--json"), 0).stdout)[
        "tasks"
    ]
    assert task_id in [task["task_id"] for task in good]
    assert {(task["status"], task["model_version"]) for task in good} == {("SUCCEEDED", "steady")}


def test_models_are_listed_with_what_serves_them(darkroom):
    lines = ended(darkroom("models"), 0).stdout.splitlines()
    assert next(line for line in lines if line.startswith("steady ")).split()[1] == "ready"
    assert "steady" in [model["model_version"] for model in json.loads(darkroom("models", "--json").stdout)["models"]]


# ---- doctor


def test_doctor_looks_at_a_deployment_from_outside(darkroom):
    lines = ended(darkroom("doctor"), 0).stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [["ok", "web"], ["ok", "ready"], ["ok", "models"]]


def test_doctor_looks_at_the_services_own_connections_where_its_settings_are(darkroom, stack):
    done = ended(darkroom("doctor", "--json", **stack.settings), 0)
    checks = json.loads(done.stdout)["checks"]
    names = ["web", "ready", "models", "settings", "redis", "broker", "storage", "catalogue"]
    assert [(check["name"], check["ok"]) for check in checks] == [(name, True) for name in names]


def test_doctor_says_what_fails_why_and_what_to_do(darkroom, stack, tmp_path):
    (tmp_path / "file").write_text("")
    dead, folder = free_port(), tmp_path / "file" / "folder"
    wrong = {"REDIS_URL": f"redis://:hunter2@127.0.0.1:{dead}/0", "STORAGE_URL": f"file://{folder}", "MODELS_FILE": "x"}
    wrong["BROKER_URL"] = f"amqp://me:hunter2@127.0.0.1:{dead}//"
    done = ended(darkroom("doctor", **{**stack.settings, **wrong, "DARKROOM_URL": f"http://127.0.0.1:{dead}"}), 1)
    failed = {line.split()[1]: line for line in done.stdout.splitlines() if line.startswith("failed")}
    assert set(failed) == {"web", "redis", "broker", "storage", "catalogue"}
    assert "refused" in failed["redis"]
    assert all(" -> " in line for line in failed.values())
    assert "hunter2" not in done.stdout + done.stderr


def test_doctor_names_wrong_settings(darkroom):
    done = ended(darkroom("doctor", LEASE="0", STORAGE_URL="s3://x"), 1)
    [line] = [line for line in done.stdout.splitlines() if line.startswith("failed")]
    assert "LEASE" in line
    assert "STORAGE_URL" in line
    assert ended(darkroom("doctor", DARKROOM_URL="nowhere"), 1).stdout.startswith("failed  client")


# ---- Refusals, one sentence each


@pytest.mark.parametrize("command", [["generate", "x"], ["status", "x"], ["list"], ["models"]])
def test_no_server_is_one_sentence(darkroom, command):
    url = f"http://127.0.0.1:{free_port()}"
    done = ended(darkroom(*command, DARKROOM_URL=url), 1)
    assert done.stderr == f"darkroom: {url} does not answer (ConnectionError). DARKROOM_URL says where to look.\n"
    assert json.loads(darkroom(*command, "--json", DARKROOM_URL=url).stdout)["detail"]


def test_a_wrong_key_is_one_sentence_that_does_not_repeat_it(darkroom):
    done = ended(darkroom("list", DARKROOM_API_KEY="hunter2"), 1)
    assert done.stderr.endswith("DARKROOM_API_KEY holds the key.\n")
    strange = ended(darkroom("list", DARKROOM_API_KEY="hunter2\nx"), 1)
    assert strange.stderr.startswith("darkroom: DARKROOM_API_KEY: ")
    assert "hunter2" not in done.stderr + strange.stderr


def test_a_wish_that_cannot_be_names_the_field(darkroom):
    done = ended(darkroom("generate", "x", "--model", "steady", "--width", "10000", "--json"), 1)
    assert done.stderr == "darkroom: width: at most 512 for steady\n"
    assert json.loads(done.stdout)["errors"] == [{"field": "width", "reason": "at most 512 for steady"}]


def test_a_task_that_is_not_there_is_one_sentence(darkroom):
    assert ended(darkroom("status", "nothing"), 1).stderr == "darkroom: There is no task nothing.\n"
    assert ended(darkroom("wait", "../../healthz"), 1).stderr.startswith("darkroom: ")


def test_a_full_disk_is_one_sentence_and_the_picture_is_kept(darkroom):
    done = ended(darkroom("generate", "x", "--model", "steady", "-o", "/dev/full", "--force"), 1)
    last = done.stderr.splitlines()[-1]
    assert re.search(r"/dev/full cannot be written: No space left on device. .*`darkroom wait \S+ -o FILE`", last)


@pytest.mark.parametrize(
    "arguments",
    [["generate"], ["generate", ""], ["generate", "x", "-i", "nowhere.png"], ["generate", "x", "-n", "0"],
     ["generate", "x", "-o", "."], ["status"], ["list", "--status", "LOST"], ["developp"]],
)  # fmt: skip
def test_a_wrong_command_line_is_status_2(darkroom, arguments):
    assert ended(darkroom(*arguments), 2).stderr.startswith("Usage:")


# ---- keys


def test_keys_are_made_listed_and_revoked(darkroom, tmp_path):
    file = {"API_KEYS_FILE": str(tmp_path / "keys.yaml")}
    key = ended(darkroom("keys", "new", "alice", "--role", "operator", "--rate", "5/minute", **file), 0).stdout.strip()
    assert re.fullmatch(r"dk_\S{43}", key)
    assert key not in (tmp_path / "keys.yaml").read_text()
    assert ended(darkroom("keys", "list", **file), 0).stdout.splitlines()[1].split() == [
        "alice", "operator", "5/minute", "100",
    ]  # fmt: skip
    assert "alice already" in ended(darkroom("keys", "new", "alice", **file), 1).stderr
    ended(darkroom("keys", "revoke", "alice", **file), 0)
    assert json.loads(ended(darkroom("keys", "list", "--json", **file), 0).stdout) == {"callers": []}


def test_without_a_file_of_keys_the_entry_to_add_is_printed(darkroom, tmp_path):
    import yaml

    done = ended(darkroom("keys", "new", "alice"), 0)
    assert "API_KEYS_FILE is not set" in done.stderr
    [entry] = yaml.safe_load(done.stderr.split("\n\n")[1])["callers"]
    assert entry["sha256"] == keys.digest_of(done.stdout.strip())
    assert list(tmp_path.iterdir()) == []
    assert ended(darkroom("keys", "list"), 1).stderr.startswith("darkroom: API_KEYS_FILE is not set")


# ---- The documentation


def examples():
    """Every command of docs/cli.md, in its order."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/cli.md").read_text(), re.DOTALL)
    return [line for line in "".join(blocks).splitlines() if line and not line.startswith("#")]


def test_every_example_of_the_documentation_runs(stack, tmp_path):
    """In one shell, after the exports, with `darkroom` as the entry point is called."""
    shell = f'darkroom() {{ {shlex.quote(sys.executable)} -m app "$@"; }}\nset -euo pipefail\n'
    lines = [line.replace("http://darkroom.example", stack.url).replace("dk_…", stack.key) for line in examples()]
    done = subprocess.run(
        ["bash", "-c", shell + "\n".join(lines)], cwd=tmp_path, env=environment(stack),
        capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_example_in_python_runs(stack, tmp_path, monkeypatch):
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "docs/cli.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code.replace("http://darkroom.example", stack.url).replace("dk_…", stack.key), {})
    assert size(tmp_path / "star.png") == (64, 64)


def test_every_command_has_an_example(darkroom):
    told = ended(darkroom("--help"), 0).stdout
    block = itertools.takewhile(str.strip, told.partition("Commands:\n")[2].splitlines())
    names = {line.split()[0] for line in block} - {"web", "worker", "courier", "up", "settings"}
    assert names <= {match for line in examples() for match in re.findall(r"darkroom (\w+)", line)}
