"""Log lines of running processes against ECS' own list of fields; and the files of the shipper and the store."""

import json
import os
import re
import signal
import subprocess
from itertools import islice
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from tests.deploy.observability.conftest import PROMPT
from tests.deploy.observability.files import FILES, node_packages
from tests.deploy.programs import rendered, tool
from tests.stack import ROOT, free_port, until

pytestmark = pytest.mark.deploy


@pytest.fixture(scope="session")
def ecs():
    """The name and the type of every field of ECS."""
    script = 'console.log(JSON.stringify(require("@elastic/ecs").EcsFlat))'
    told = subprocess.run(
        ["node", "-e", script], cwd=node_packages(), capture_output=True, text=True, check=True
    ).stdout
    return {name: field["type"] for name, field in json.loads(told).items()}


@pytest.fixture
def lines(stack, done, unlucky):
    """Every line of every role, as a flat dictionary: of tasks that went well, and of those that did not."""

    def read(role):
        return [flat(json.loads(line)) for line in written(stack, role) if line.startswith("{")]

    until(lambda: any(line["message"] == "webhook.delivered" for line in read("courier")), 10, "all is logged")
    return {role: read(role) for role in ("web", "worker", "courier")}


def written(stack, role):
    """Every line of a role, those of a worker that was killed too."""
    return [line for path in stack.folder.glob(f"{role}-*.log") for line in path.read_text().splitlines()]


def flat(document, before=""):
    found = {}
    for name, value in document.items():
        found |= flat(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: value}
    return found


@pytest.mark.services
def test_every_field_of_every_line_is_one_of_ecs_or_our_own(lines, ecs):
    fields = {name for role in lines.values() for line in role for name in line}
    assert fields > {"@timestamp", "message", "log.level", "log.logger", "service.name", "trace.id", "event.action"}
    assert {name for name in fields if not name.startswith("darkroom.")} - ecs.keys() == set()


@pytest.mark.services
def test_numbers_are_numbers_and_words_are_words(lines, ecs):
    wrong = {
        (name, ecs[name], value)
        for role in lines.values()
        for line in role
        for name, value in line.items()
        if name in ecs and (ecs[name] == "long") != (isinstance(value, int) and not isinstance(value, bool))
    }
    assert wrong == set()


@pytest.mark.services
@pytest.mark.parametrize(
    ("role", "event"),
    [
        ("web", "request"), ("worker", "task.received"), ("worker", "job.attempt_ended"),
        ("courier", "webhook.delivered"),
    ],
)  # fmt: skip
def test_lines_about_a_task_tell_its_id_and_its_trace(lines, done, role, event):
    told = [line for line in lines[role] if line["message"] == event and line.get("trace.id") == done["asked"]]
    assert told
    assert {line["darkroom.task_id"] for line in told} == {done["task_id"]}
    assert {line["span.id"] for line in told}


@pytest.mark.services
def test_every_line_about_a_task_tells_its_trace(lines, done, lost, unlucky):
    told = [line for role in lines.values() for line in role if "darkroom.task_id" in line]
    assert {line["darkroom.task_id"] for line in told} >= {done["task_id"], lost["task_id"], *unlucky}
    assert [line for line in told if "trace.id" not in line] == []


@pytest.mark.services
def test_every_line_of_every_process_is_a_document(stack, lines):
    told = [line for role in stack.running for line in written(stack, role)]
    assert [line for line in told if not line.startswith("{")] == []


@pytest.fixture
def rabbitmq(tmp_path):
    """The first lines of a RabbitMQ that logs as the chart's does."""
    chart = rendered("darkroom", values="values-production.yaml")["ConfigMap", "darkroom-rabbitmq"]["data"]
    settings = [line for line in chart["rabbitmq.conf"].splitlines() if line.startswith("log.")]
    (tmp_path / "rabbitmq.conf").write_text("\n".join(["listeners.tcp = none", *settings, ""]))
    port = str(free_port())
    environ = os.environ | {
        "HOME": str(tmp_path), "ERL_EPMD_PORT": port, "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODENAME": f"logs-{port}@localhost", "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_CONF_ENV_FILE": os.devnull, "RABBITMQ_CONFIG_FILE": str(tmp_path / "rabbitmq.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(tmp_path / "none"), "RABBITMQ_MNESIA_BASE": str(tmp_path / "data"),
    }  # fmt: skip
    # Debian's program on PATH changes to the user rabbitmq, and this does not.
    program = (
        [tool("epmd"), "-port", port, "-address", "127.0.0.1"],
        [tool(Path("/usr/lib/rabbitmq/bin/rabbitmq-server"))],
    )
    started = [
        subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True, start_new_session=True)
        for command in program
    ]
    yield islice((line for line in started[1].stdout if line.startswith("{")), 10)
    for process in started:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_rabbitmqs_lines_are_ecs_too(rabbitmq, ecs):
    lines = [json.loads(line) for line in rabbitmq]
    assert len(lines) == 10
    assert {tuple(line) for line in lines} == {("@timestamp", "log.level", "message", "process.thread.name")}
    assert set(lines[0]) <= ecs.keys()


@pytest.mark.services
def test_no_line_holds_the_prompt_or_a_secret(stack, lines):
    secrets = (PROMPT, stack.settings["WEBHOOK_SECRET"], urlsplit(stack.settings["BROKER_URL"]).password)
    told = [line for role in stack.running for line in written(stack, role)]
    assert [line for line in told if any(secret in line for secret in secrets)] == []


def test_the_shipper_takes_lines_as_they_are_written():
    config = yaml.safe_load((FILES / "logs/filebeat.yml").read_text())
    parsers = [parser for entry in config["filebeat.inputs"] for parser in entry["parsers"] if "ndjson" in parser]
    assert len(parsers) == 2
    for parser in parsers:
        assert parser["ndjson"] | {"target": "", "expand_keys": True, "overwrite_keys": True} == parser["ndjson"]
    ids = [entry["id"] for entry in config["filebeat.inputs"]]
    assert len(set(ids)) == len(ids)


def test_the_index_has_ecs_types_and_a_life_that_ends(ecs):
    template = json.loads((FILES / "logs/index-template.json").read_text())
    config = yaml.safe_load((FILES / "logs/filebeat.yml").read_text())
    assert template["index_patterns"] == ["logs-darkroom-*"]
    assert config["output.elasticsearch"]["index"].startswith("logs-darkroom-")
    types = flat_types(template["template"]["mappings"]["properties"])
    wrong = {name: kind for name, kind in types.items() if not name.startswith("darkroom.") and ecs[name] != kind}
    assert wrong == {}
    assert "delete" in json.loads((FILES / "logs/lifecycle.json").read_text())["policy"]["phases"]


def test_the_shippers_key_adds_lines_to_its_own_index_and_nothing_else():
    (role,) = json.loads((FILES / "logs/filebeat-key.json").read_text())["role_descriptors"].values()
    template = json.loads((FILES / "logs/index-template.json").read_text())
    assert role["index"] == [{"names": template["index_patterns"], "privileges": ["create_doc", "auto_configure"]}]
    # To ask for Elasticsearch's version, which it does at first. The policy and the template are put there by others.
    assert role["cluster"] == ["monitor"]
    config = yaml.safe_load((FILES / "logs/filebeat.yml").read_text())
    assert not config["setup.template.enabled"]
    assert not config["setup.ilm.enabled"]


# What Elasticsearch answers, and a cluster that tells what is applied to its Secret.
CURL = """
case "$*" in
  *credential/token*) echo '{"created": true, "token": {"name": "darkroom", "value": "AAEA"}}' ;;
  *_security/api_key*) echo '{"id": "VuaC", "name": "filebeat", "api_key": "ui2l", "encoded": "VnVhQw=="}' ;;
esac
"""
KUBECTL = """
case "$*" in
  create*)
    for each in "${@#--from-file=}"; do [[ $each != /* ]] || echo "$(basename "$each")=$(cat "$each")"; done
    ;;
  *apply*) cat >"$HOME/applied" ;;
esac
"""


def test_the_commands_of_the_page_make_what_kibana_and_filebeat_log_in_with(tmp_path, path):
    [block] = re.findall(r"```console\n(.*?)```", (ROOT / "docs/observability.md").read_text(), re.DOTALL)
    path(curl=CURL, kubectl=KUBECTL)
    (tmp_path / "elastic-password").write_text("sesame")
    environ = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "HOME": str(tmp_path), "NOTES": str(tmp_path / "notes")}
    commands = re.sub(r"^\$ ", "", block, flags=re.MULTILINE) + "wait\n"
    subprocess.run(["bash", "-euo", "pipefail", "-c", commands], cwd=ROOT, env=environ, check=True, timeout=30)
    assert (tmp_path / "applied").read_text() == "kibana-token=AAEA\nfilebeat-api-key=VuaC:ui2l\n"
    asked = [note for note in (tmp_path / "notes").read_text().splitlines() if note.startswith("curl")]
    assert len(asked) == 5
    assert all("-u elastic:sesame" in note for note in asked)
    files = {name for note in asked for name in re.findall(r"(?:-T |@)([\w.-]+)", note)}
    assert files == {path.name for path in (FILES / "logs").iterdir()} - {"filebeat.yml"}


def flat_types(properties, before=""):
    found = {}
    for name, field in properties.items():
        found |= (
            flat_types(field["properties"], f"{before}{name}.")
            if "properties" in field
            else {before + name: field["type"]}
        )
    return found


def test_saved_searches_ask_for_fields_that_lines_have(ecs):
    saved = [json.loads(line) for line in (FILES / "logs/kibana.ndjson").read_text().splitlines()]
    views = {entry["id"] for entry in saved if entry["type"] == "index-pattern"}
    for entry in saved:
        assert {reference["id"] for reference in entry["references"]} <= views
        columns = entry["attributes"].get("columns", [])
        assert [name for name in columns if name not in ecs and not name.startswith("darkroom.")] == []


@pytest.mark.services
def test_a_broker_that_closes_its_connections_surprises_nobody(lines):
    """It does so when it is restarted: whoever is cut off says that it is away, and meets no error of its own."""
    told = {line["message"] for role in ("web", "courier") for line in lines[role] if line["log.level"] == "error"}
    assert told == set()
