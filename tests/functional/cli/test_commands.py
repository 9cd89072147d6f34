"""The other commands, their refusals, and every example of docs/cli.md and docs/api.md."""

import itertools
import json
import re
import shlex
import subprocess
import sys

import pytest

from app import keys
from tests.functional.cli.shell import ended, environment, size
from tests.stack import ROOT, free_port, until

pytestmark = [pytest.mark.functional, pytest.mark.slow, pytest.mark.timeout(300)]

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
    late = ended(darkroom("cancel", task_id), 0)
    assert ("SUCCEEDED" in late.stdout, late.stderr) == (True, "It had ended before, and stays as it is.\n")


def test_a_running_task_that_is_canceled_is_said_to_end_soon(darkroom, stack):
    running = stack.client.generate("x", model_version="steady", num_inference_steps=1000)["task_id"]
    until(lambda: stack.client.task(running)["phase"] == "RUNNING", 60, "it runs")
    assert ended(darkroom("cancel", running), 0).stdout == f"{running}: ends at its next step\n"


@pytest.mark.parametrize("command", [["status"], ["cancel"], ["quarantine", "drop"]])
def test_an_empty_id_is_told(darkroom, command):
    assert ended(darkroom(*command, ""), 1).stderr == "darkroom: An id is wanted, and this one is empty.\n"


def test_a_list_of_nothing_says_so(darkroom):
    told = ended(darkroom("list", "--model", "nobody-1"), 0)
    assert told.stderr == "There are none.\n"


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
    # A setting that script/server reads says nothing of a service in this shell.
    lines = ended(darkroom("doctor", WEB_BIND="127.0.0.1:8080"), 0).stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [["ok", "web"], ["ok", "ready"], ["ok", "models"]]


def test_doctor_looks_at_the_services_own_connections_where_its_settings_are(darkroom, stack):
    done = ended(darkroom("doctor", "--json", **stack.settings), 0)
    checks = json.loads(done.stdout)["checks"]
    names = ["web", "ready", "models", "settings", "redis", "broker", "storage", "catalogue"]
    assert [(check["name"], check["ok"]) for check in checks] == [(name, True) for name in names]


def test_doctor_says_what_fails_why_and_what_to_do(darkroom, stack, tmp_path):
    (tmp_path / "file").write_text("")
    dead, folder = free_port(), tmp_path / "file" / "folder"
    wrong = {"REDIS_URL": f"redis://:hunter2@127.0.0.1:{dead}/0", "STORAGE_URL": f"file://{folder}"}
    wrong["BROKER_URL"] = f"amqp://me:hunter2@127.0.0.1:{dead}//"
    done = ended(darkroom("doctor", **{**stack.settings, **wrong, "DARKROOM_URL": f"http://127.0.0.1:{dead}"}), 1)
    failed = {line.split()[1]: line for line in done.stdout.splitlines() if line.startswith("failed")}
    assert set(failed) == {"web", "redis", "broker", "storage"}
    assert "refused" in failed["redis"]
    assert all(" -> " in line for line in failed.values())
    assert "hunter2" not in done.stdout + done.stderr


def test_doctor_blames_the_catalogue_alone_for_its_mistake(darkroom, stack):
    done = ended(darkroom("doctor", **{**stack.settings, "MODELS_FILE": "x"}), 1)
    [failed] = [line for line in done.stdout.splitlines() if line.startswith("failed")]
    assert failed.split()[1] == "catalogue"
    assert failed.endswith(" -> correct that, or name another by MODELS_FILE")


def test_doctor_advises_a_key_to_who_has_none(darkroom):
    line = ended(darkroom("doctor", DARKROOM_API_KEY=""), 1).stdout.splitlines()[-1]
    assert line.startswith("failed  models")
    assert line.endswith(" -> DARKROOM_API_KEY must hold one of its keys.")


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
    assert done.stderr.endswith("DARKROOM_API_KEY must hold one of its keys.\n")
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


def examples(page="docs/cli.md"):
    """Every command of this page, in its order."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    return [line for line in "".join(blocks).splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize(("page", "picture"), [("docs/cli.md", "again.png"), ("docs/api.md", "from-star.png")])
def test_every_example_of_the_documentation_runs(stack, tmp_path, page, picture):
    """In one shell, after the exports, with `darkroom` as the entry point is called."""
    shell = f'darkroom() {{ {shlex.quote(sys.executable)} -m app "$@"; }}\nset -euo pipefail\n'
    lines = [line.replace("https://darkroom.example", stack.url).replace("dk_…", stack.key) for line in examples(page)]
    done = subprocess.run(
        ["bash", "-c", shell + "\n".join(lines)], cwd=tmp_path, env=environment(stack),
        capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert size(tmp_path / picture) == (64, 64)
    if page == "docs/api.md":
        assert "304\n" in done.stdout
        assert "event: status" in done.stdout
        assert "/problems/" not in done.stdout, "no request is refused"


def test_the_example_in_python_runs(stack, tmp_path, monkeypatch):
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "docs/cli.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code.replace("https://darkroom.example", stack.url).replace("dk_…", stack.key), {})
    assert size(tmp_path / "star.png") == (64, 64)


def test_every_command_has_an_example(darkroom):
    told = ended(darkroom("--help"), 0).stdout
    block = itertools.takewhile(str.strip, told.partition("Commands:\n")[2].splitlines())
    names = {line.split()[0] for line in block} - {"web", "worker", "courier", "up", "settings"}
    assert names <= {match for line in examples() for match in re.findall(r"darkroom (\w+)", line)}
