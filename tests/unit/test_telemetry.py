"""Logs: one ECS document a line, whoever writes it, and never a prompt."""

import dataclasses
import io
import json
import logging

import pytest
import structlog
from PIL import Image

from app import telemetry
from app.errors import GpuOutOfMemory, JobError
from app.pictures import decode
from app.web import create_app
from tests.things import job, runner

# Python and JSON write it in other ways.
SECRET = "most secret"
PROMPT = f'a {SECRET} "prompt"\nof \\ Ä, it\'s'


@pytest.fixture
def written(settings):
    """Sends the logs of this process to a text in memory, as the settings say."""
    # What another test has bound is no part of these lines.
    structlog.contextvars.clear_contextvars()
    root, before = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers[:], root.level

    def set_up(**changes):
        telemetry.logs(settings.model_copy(update=changes), "web")
        text = io.StringIO()
        [handler] = [handler for handler in root.handlers if handler not in handlers]
        handler.setStream(text)
        return text

    yield set_up
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**before)
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def lines(written):
    """Everything that this process has logged, a document a line."""
    text = written()
    return lambda: [json.loads(line) for line in text.getvalue().splitlines()]


def test_our_own_lines_carry_the_fields_of_ecs(lines):
    structlog.get_logger("darkroom.test").info("thing.happened", task_id="7", ms=1.5)
    [line] = lines()
    assert line["message"] == "thing.happened"
    assert (line["log.level"], line["service"]["name"], line["ecs.version"]) == ("info", "darkroom-web", "1.6.0")
    assert (line["darkroom"], line["event"]["duration"]) == ({"task_id": "7"}, 1_500_000)
    assert (line["log"]["logger"], line["event"]["action"]) == ("darkroom.test", "thing.happened")
    assert line["@timestamp"].endswith("Z")


def test_the_lines_of_libraries_have_the_same_format(lines):
    logging.getLogger("some.library").warning("it is %s", "late")
    [line] = lines()
    assert (line["message"], line["log.level"], line["service"]["name"]) == ("it is late", "warning", "darkroom-web")


def test_celerys_own_lines_about_a_task_tell_its_id(lines):
    logging.getLogger("celery.app.trace").error("it failed", extra={"data": {"id": "7", "args": "()"}})
    [line] = lines()
    assert line["darkroom"] == {"task_id": "7"}


def test_an_exception_is_one_line_with_its_traceback(lines):
    try:
        int("no number")
    except ValueError:
        structlog.get_logger("darkroom.test").exception("thing.failed")
    [line] = lines()
    assert "ValueError: invalid literal" in json.dumps(line)
    assert "Traceback" in json.dumps(line)


@pytest.mark.parametrize(("level", "count"), [("WARNING", 1), ("INFO", 2)])
def test_the_level_decides_what_is_written(written, level, count):
    text = written(log_level=level)
    structlog.get_logger("darkroom.test").info("one")
    structlog.get_logger("darkroom.test").warning("two")
    assert len(text.getvalue().splitlines()) == count


def test_not_even_the_finest_level_tells_what_a_clients_picture_says_of_itself(written):
    text, exif = written(log_level="DEBUG"), Image.Exif()
    exif[0x010E] = SECRET
    for kind in ("TIFF", "JPEG"):
        data = io.BytesIO()
        Image.new("RGB", (64, 64)).save(data, kind, exif=exif)
        assert SECRET.encode() in data.getvalue()
        decode(data.getvalue())
    logging.getLogger("app").debug("heard")
    assert "heard" in text.getvalue()
    assert SECRET not in text.getvalue()


def fails(_):
    secret = PROMPT  # a local variable, as the parameters are in every frame of ours
    raise RuntimeError(f"a fault {len(secret)}")


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_traceback_shows_no_local_variable(written, log_format):
    text = written(log_format=log_format)
    try:
        fails(PROMPT)
    except RuntimeError:
        structlog.get_logger("darkroom.test").exception("thing.failed")
    out = text.getvalue()
    assert f"RuntimeError: a fault {len(PROMPT)}" in out
    assert SECRET not in out.replace("\n", "")


class Model:
    def __init__(self, error=None):
        self.error = error
        self.provenance = {}

    def generate(self, params, source, on_step):
        on_step(1, 1)
        if self.error:
            raise self.error
        yield Image.new("RGB", (64, 64))


@pytest.mark.parametrize(
    "error",
    [
        None,
        GpuOutOfMemory("too large"),
        RuntimeError("a fault"),
        RuntimeError(f"no picture of {PROMPT}"),
        KeyError(PROMPT),
        RuntimeError(json.dumps({"prompt": PROMPT})),
    ],
)
def test_no_line_of_a_whole_run_holds_the_prompt(services, lines, error):
    new = job(prompt=PROMPT, negative_prompt=PROMPT)
    services.jobs.create(new)
    try:
        runner(services, {"tiny-scenes-1": Model(error)}).run(new)
    except JobError:
        logging.getLogger("celery").exception("raised")
    told = lines()
    assert told
    assert SECRET not in json.dumps(told)
    ids = {line["darkroom"]["task_id"] for line in told if "darkroom" in line}
    assert ids == {new.task_id} or isinstance(error, GpuOutOfMemory)


def test_no_line_of_a_whole_request_holds_the_prompt_or_a_signed_url(services, lines):
    client = create_app(services).test_client()
    task = client.post("/generate", json={"prompt": PROMPT, "input_image": True}).json
    path = task["upload_url"].removeprefix(services.settings.base_url)
    client.put(path, data=b"x")
    client.get(f"/tasks/{task['task_id']}")
    client.post("/generate", json={"prompt": PROMPT, "width": 1})
    client.post("/generate", data=json.dumps({"prompt": PROMPT})[:-1], content_type="application/json")
    told = lines()
    statuses = [line["http"]["response"]["status_code"] for line in told if line["message"] == "request"]
    assert statuses == [202, 200, 200, 422, 400]
    assert SECRET not in json.dumps(told)
    assert path.split("/")[2] not in json.dumps(told)


def test_not_even_a_fault_of_ours_logs_the_prompt(services, lines):
    def break_down(job):
        raise RuntimeError("broken")

    client = create_app(dataclasses.replace(services, publish=break_down)).test_client()
    assert client.post("/generate", json={"prompt": PROMPT}).status_code == 500
    told = lines()
    assert "RuntimeError: broken" in json.dumps(told)
    assert SECRET not in json.dumps(told)


def test_a_line_tells_the_request_that_it_belongs_to(services, lines):
    create_app(services).test_client().get("/healthz", headers={"X-Request-ID": "mine"})
    [line] = [line for line in lines() if line["message"] == "request"]
    assert line["http"] == {"request": {"id": "mine", "method": "GET"}, "response": {"status_code": 200}}
    assert line["darkroom"] == {"route": "/healthz"}


@pytest.mark.parametrize(
    ("level", "said", "sent", "kept"),
    [
        ("ERROR", "Error handling request %s %s", ("GET", "/files/SECRET"), "Error handling request"),
        ("WARNING", "Invalid request from ip=::1: SECRET", (), "Invalid request from ip=::1"),
        ("DEBUG", "Ignored premature client disconnection. %s", (OSError("SECRET"),), "disconnection. OSError"),
        ("ERROR", "Worker (pid:%s) exited with code %s", (7, 1), "Worker (pid:7) exited with code 1"),
    ],
)
def test_gunicorn_repeats_nothing_that_was_sent(written, level, said, sent, kept):
    text = written(log_level="DEBUG")
    logging.getLogger("gunicorn.error").log(logging.getLevelName(level), said, *sent)
    assert json.loads(text.getvalue())["message"].endswith(kept)
    assert "SECRET" not in text.getvalue()


def test_gunicorn_writes_no_lines_with_paths(settings):
    loggers = telemetry.config(settings, "web")["loggers"]
    assert loggers["gunicorn.access"] == {"handlers": [], "propagate": False, "level": "CRITICAL"}
