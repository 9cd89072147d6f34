"""docs/jobs.md has one table of the times that must agree: it tells the truth, and they do."""

import re
import runpy

import pytest

from app import jobs, lease, settings, tasks, up, worker
from app.models import load_catalogue
from app.schemas import TaskQuery
from app.services import build
from app.settings import Settings
from tests.stack import ROOT

DEPLOYED_GRACE = {
    "charts/darkroom/values.yaml": r"workerDefaults:.*?drainSeconds: (\d+)",
    "infra/modules/gpu_worker/variables.tf": r'variable "grace" {[^}]*default += (\d+)',
}

ROW = re.compile(r"^\| ([^|]+?) \| ([\d.]+) \|", re.MULTILINE)


@pytest.fixture(scope="module")
def table():
    text = (ROOT / "docs" / "jobs.md").read_text()
    return {name.strip("`"): float(value) for name, value in ROW.findall(text)}


def defaults():
    return {name.upper(): field.default for name, field in Settings.model_fields.items()}


def options(role, url):
    loaded = Settings(broker_url=url, storage_url="gs://bucket", models_file=str(ROOT / "config/models.yaml"))
    return tasks.make_celery(loaded, load_catalogue(loaded.models_file), role).conf


def test_every_setting_in_the_table_has_that_default(table):
    told = {name: value for name, value in table.items() if name.isupper()}
    assert told.keys() >= {"TIME_LIMIT", "LEASE", "SWEEP_INTERVAL", "WORKER_GRACE", "DEADLINE", "RESULT_TTL"}
    assert told == {name: defaults()[name] for name in told}


def test_everything_else_in_the_table_is_as_the_code_has_it(table, monkeypatch):
    monkeypatch.setenv("STORAGE_URL", "gs://bucket")
    conf = options("worker", "redis://127.0.0.1:1/0")
    services = (ROOT / "script" / "services").read_text()
    gs = Settings(storage_url="gs://bucket", models_file=str(ROOT / "config/models.yaml"))
    assert {name: value for name, value in table.items() if not name.isupper()} == {
        "RabbitMQ's `consumer_timeout": int(re.search(r"consumer_timeout = (\d+)", services)[1]) / 1000,
        "visibility timeout of a Redis broker": conf.broker_transport_options["visibility_timeout"],
        "renewal of a lease": lease.Lease(None, "x", "t", defaults()["LEASE"])._pause,
        "publishing": tasks.PUBLISH_TIMEOUT,
        "bucket, in the web tier": build(gs, "web").storage._seconds,
        "bucket, in a worker": build(gs, "worker").storage._seconds,
        "the supervisor's patience with a worker": up.WORKER_PATIENCE,
        "gunicorn's grace": runpy.run_path(settings.CONFIG / "gunicorn.conf.py")["graceful_timeout"],
        "idempotency keys, tombstones": jobs.TICKET_TTL,
    }
    assert jobs.TICKET_TTL == jobs.DELETED_TTL


def test_the_times_agree_with_each_other(table):
    redis_patience = build(
        Settings(storage_url="gs://bucket", models_file=str(ROOT / "config/models.yaml")), "worker"
    ).redis.connection_pool.connection_kwargs["socket_timeout"]
    longest_wait = next(m.le for m in TaskQuery.model_fields["wait"].metadata if hasattr(m, "le"))
    assert options("worker", "amqp://127.0.0.1:1//").task_time_limit == table["TIME_LIMIT"] + table["WORKER_TURN"]
    longest_turn = table["TIME_LIMIT"] + table["WORKER_TURN"] + table["WORKER_GRACE"]
    assert table["RabbitMQ's `consumer_timeout"] > longest_turn
    for file, grace in DEPLOYED_GRACE.items():
        seconds = int(re.search(grace, (ROOT / file).read_text(), re.DOTALL)[1])
        assert table["RabbitMQ's `consumer_timeout"] > longest_turn - table["WORKER_GRACE"] + seconds, file
    assert table["visibility timeout of a Redis broker"] == 4 * table["TIME_LIMIT"]
    assert table["LEASE"] > redis_patience
    assert table["renewal of a lease"] <= table["LEASE"] / 3
    assert table["UNCONFIRMED_AFTER"] > 3 * table["publishing"]
    assert 3 * table["publishing"] < 2
    assert table["the supervisor's patience with a worker"] > worker.HAND_BACK + worker.GOODBYE
    assert table["gunicorn's grace"] > longest_wait
    assert table["UPLOAD_TTL"] < table["DEADLINE"] < table["RESULT_TTL"]


def test_the_longest_pause_between_two_sweeps_is_shorter_than_what_is_taken_for_death():
    longest = next(m.le for m in Settings.model_fields["sweep_interval"].metadata if hasattr(m, "le"))
    age = int(re.search(r"-newermt '(\d+) seconds ago'", (ROOT / "Dockerfile.web").read_text())[1])
    rules = (ROOT / "charts/observability/files/prometheus/rules/causes.yml").read_text()
    silence = int(re.search(r"max\(darkroom_sweep_timestamp_seconds\) > (\d+)", rules)[1])
    assert longest < age < silence
