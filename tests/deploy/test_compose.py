"""compose.yaml, as docker compose itself reads it; script/check-images brings it up."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from app.settings import Settings
from tests.backends import skip_or_fail
from tests.stack import ROOT

pytestmark = pytest.mark.deploy
OURS = ["web", "courier", "worker", "worker-gpu"]


def program():
    """docker compose, or the same program that script/tools fetched."""
    bundled = ROOT / "var/tools/compose/docker-compose"
    if bundled.exists():
        return [str(bundled)]
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], check=False, capture_output=True).returncode:
        skip_or_fail("needs docker compose: script/tools compose")
    return [docker, "compose"]


@pytest.fixture(scope="module")
def secrets(tmp_path_factory):
    """What script/secrets makes, in a checkout of its own."""
    checkout = tmp_path_factory.mktemp("checkout")
    for name in ("script", "config"):
        shutil.copytree(ROOT / name, checkout / name)
    shutil.copy(ROOT / "compose.yaml", checkout)
    for _ in range(2):
        told = subprocess.run([checkout / "script/secrets"], check=True, capture_output=True, text=True, timeout=30)
    return checkout, told.stdout


def config(checkout, *arguments, **environ):
    command = [*program(), "--project-directory", str(checkout), "-f", str(checkout / "compose.yaml"), *arguments]
    environ = {"PATH": os.environ["PATH"], "HOME": str(checkout), **environ}
    return subprocess.run(command, env=environ, check=False, capture_output=True, text=True, timeout=30)


@pytest.fixture(scope="module")
def services(secrets):
    told = config(secrets[0], "--profile", "*", "config")
    assert told.returncode == 0, told.stderr
    return yaml.safe_load(told.stdout)["services"]


def made(checkout):
    """The passwords and the key that script/secrets wrote."""
    return re.findall(r"^(?:\w+_PASSWORD|SIGNING_KEY)=(.*)$", (checkout / ".env").read_text(), re.MULTILINE)


def test_no_secret_is_in_a_list_of_processes(secrets, services):
    for name, service in services.items():
        started = str([service.get("command"), service.get("entrypoint"), service.get("healthcheck", {}).get("test")])
        assert not [secret for secret in made(secrets[0]) if secret in started], name


def test_secrets_are_made_once_and_for_nobody_else(secrets):
    checkout, second = secrets
    assert second == ""
    assert (checkout / ".env").stat().st_mode & 0o077 == 0
    assert (checkout / "var/compose/tls/tls.key").stat().st_mode & 0o077 == 0
    passwords = made(checkout)
    assert len(set(passwords)) == 5
    assert all(len(password) == 48 for password in passwords)


def test_what_the_containers_mount_can_be_read_by_their_user_whoever_made_it(secrets, tmp_path):
    checkout, file = tmp_path / "checkout", "var/compose/keys/keys.yaml"
    shutil.copytree(secrets[0], checkout, ignore=shutil.ignore_patterns("var", ".env"))
    made = ["bash", "-c", f"umask 077; script/secrets && API_KEYS_FILE={file} {sys.executable} -m app keys new alice"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(made, cwd=checkout, env=environ, check=True, capture_output=True, timeout=60)
    assert (checkout / file).stat().st_mode & 0o004
    assert [
        name for name in ("keys", "models", "tls") if (checkout / "var/compose" / name).stat().st_mode & 0o5 != 5
    ] == []


def test_another_host_than_the_first_is_told_what_to_change(secrets):
    def said(host):
        command, environ = [secrets[0] / "script/secrets"], {**os.environ, "HOST": host}
        return subprocess.run(command, env=environ, check=True, capture_output=True, text=True, timeout=30).stdout

    assert said("localhost") == ""
    told = said("darkroom.example")
    assert "set PUBLIC_URL=https://darkroom.example there" in told
    assert "tls.crt is not for darkroom.example" in told


def test_a_setting_that_compose_does_not_name_comes_from_a_file(secrets, tmp_path):
    shutil.copytree(secrets[0], tmp_path / "checkout")
    (tmp_path / "checkout/var/compose/settings.env").write_text("QUEUE_LIMIT=3\nLOG_LEVEL=DEBUG\n")
    told = yaml.safe_load(config(tmp_path / "checkout", "--profile", "cpu", "config").stdout)["services"]
    for name in ("web", "courier", "worker"):
        environment = told[name]["environment"]
        assert (environment["QUEUE_LIMIT"], environment["LOG_LEVEL"]) == ("3", "INFO"), "what .env may say stands there"


def test_without_secrets_compose_says_what_to_run(tmp_path):
    shutil.copy(ROOT / "compose.yaml", tmp_path)
    told = config(tmp_path, "config")
    assert told.returncode != 0
    assert "run script/secrets first" in told.stderr


def test_the_worker_is_the_one_of_the_chosen_profile(secrets):
    def chosen(*arguments):
        return set(config(secrets[0], *arguments, "config", "--services").stdout.split())

    assert chosen() & {"worker", "worker-gpu"} == {"worker"}
    assert chosen("--profile", "gpu") & {"worker", "worker-gpu"} == {"worker-gpu"}


def test_every_service_is_restrained_and_heals(services):
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["restart"] == "unless-stopped", name
        assert service["init"], name


def test_only_nginx_and_pages_for_operators_are_published_and_on_this_machine_alone(services):
    published = {name: [port["host_ip"] for port in s["ports"]] for name, s in services.items() if "ports" in s}
    alone = {name: ["127.0.0.1"] for name in ("flower", "grafana", "jaeger")}
    assert published == {"nginx": ["127.0.0.1"] * 2, **alone}


@pytest.mark.parametrize("name", OURS)
def test_a_role_gets_only_settings_that_there_are(services, name):
    others = {"GOOGLE_APPLICATION_CREDENTIALS", "HF_TOKEN"}
    names = set(services[name]["environment"]) - others
    assert names <= {setting.upper() for setting in Settings.model_fields}


def test_a_worker_on_a_gpu_is_told_what_one_without_is_told(services):
    assert services["worker-gpu"]["environment"] == {**services["worker"]["environment"], "DEVICE": "cuda"}


@pytest.mark.parametrize("name", OURS)
def test_a_role_starts_with_its_settings(services, name):
    given = {key.lower(): value for key, value in services[name]["environment"].items() if value not in ("", None)}
    given.pop("google_application_credentials", None)
    settings = Settings(**given)
    assert settings.storage_url == "file:///var/lib/darkroom"
    assert "pictures" in [volume.get("source") for volume in services[name]["volumes"]]


def test_a_stopped_role_has_the_time_that_it_may_take(services):
    seconds = {name: int(service.get("stop_grace_period", "10s").rstrip("s")) for name, service in read_times(services)}
    gunicorn = (ROOT / "config/gunicorn.conf.py").read_text()
    assert seconds["web"] > int(re.search(r"graceful_timeout = (\d+)", gunicorn)[1])
    assert seconds["worker"] > Settings.model_fields["worker_grace"].default + 10
    assert seconds["courier"] > Settings.model_fields["webhook_timeout"].default
    assert seconds["nginx"] > seconds["web"]


def test_the_images_of_others_are_those_of_the_charts():
    def of_others(path):
        text = (ROOT / path).read_text()
        return dict(
            re.findall(
                r"image:\s+(?:\$\{\w+:-)?(?:docker\.io/(?:library/)?)?([a-z./-]+):([\w.-]+)\}?$", text, re.MULTILINE
            )
        )

    charts = of_others("charts/darkroom/values.yaml") | of_others("charts/observability/values.yaml")
    here = of_others("compose.yaml")
    assert {"redis", "rabbitmq", "mher/flower", "danihodovic/celery-exporter", "grafana/grafana"} <= set(here) & set(
        charts
    )
    assert {name: here[name] for name in here if name in charts} == {
        name: charts[name] for name in charts if name in here
    }


def read_times(services):
    """Compose writes 75 s as 1m15s."""
    for name, service in services.items():
        minutes, _, rest = service.get("stop_grace_period", "10s").rpartition("m")
        yield name, {"stop_grace_period": f"{int(minutes or 0) * 60 + int(rest.rstrip('s') or 0)}s"}


def test_redis_keeps_every_job_as_the_tests_redis_does(services):
    command = " ".join(services["redis"]["command"])
    tests = re.search(r"redis_settings=\((.*)\)", (ROOT / "script/services").read_text())[1]
    for option in tests.replace('""', "").replace("ziplist", "listpack").replace("--", "\0--").split("\0"):
        assert " ".join(option.split()) in command.replace('""', "")


def test_images_are_those_that_the_tests_run_on(services):
    script = (ROOT / "script/services").read_text()
    for name in ("redis", "rabbitmq"):
        assert services[name]["image"] == re.search(rf"^{name}_image=(.*)$", script, re.MULTILINE)[1]
    # No image 0.11.2 was found, and no later package than that: the same but for the last number.
    lock = (ROOT / "requirements/celery-exporter.txt").read_text()
    exporter = re.search(r"prometheus-exporter-celery==(\d+\.\d+)\.", lock)[1]
    assert re.search(rf":{re.escape(exporter)}\.\d+$", services["celery-exporter"]["image"])


def test_rabbitmq_waits_for_a_consumer_longer_than_a_job_may_take():
    milliseconds = int(re.search(r"consumer_timeout = (\d+)", (ROOT / "config/rabbitmq.conf").read_text())[1])
    assert milliseconds > 1000 * Settings.model_fields["time_limit"].default


def test_the_names_that_the_docs_offer_for_env_are_read():
    table = re.search(r"^\| name \| default .*?\n\n", (ROOT / "docs/deploy.md").read_text(), re.MULTILINE | re.DOTALL)[
        0
    ]
    offered = {name for row in table.splitlines()[2:] for name in re.findall(r"`([A-Z_]+)[`=]", row)}
    read = set(re.findall(r"\$\{([A-Z_]+)", (ROOT / "compose.yaml").read_text())) | {"COMPOSE_PROFILES"}
    assert offered
    assert offered <= read


def test_every_file_that_a_service_reads_is_there(services, secrets):
    bound = [volume["source"] for s in services.values() for volume in s.get("volumes", ()) if volume["type"] == "bind"]
    files = [Path(source).relative_to(secrets[0]) for source in bound]
    assert [file for file in files if file.parts[0] != "var" and not (ROOT / file).exists()] == []


def test_prometheus_asks_services_that_there_are(services):
    groups = yaml.safe_load((ROOT / "config/prometheus-targets.yml").read_text())
    targets = dict(target.split(":") for group in groups for target in group["targets"])
    assert set(targets) <= set(services)
    for name, role in (("courier", "courier"), ("worker", "worker"), ("worker-gpu", "worker")):
        assert services[name]["environment"]["METRICS_BIND"] == f"0.0.0.0:{targets[role]}"
    # One name for whichever of the two the profile starts: a target that is not there would be told of for ever.
    assert services["worker-gpu"]["networks"]["back"]["aliases"] == ["worker"]


def test_every_image_of_others_has_a_stand_in(services):
    theirs = {name for name in services if name not in OURS and not services[name].get("profiles")}
    assert theirs == {path.stem for path in (ROOT / "tests/deploy/stand-ins").glob("*.Dockerfile")}
