"""Prometheus' and Alertmanager's files, by their own tools; the runbook has a section for every alert."""

import re

import pytest
import yaml

from app.census import ENDS
from tests.deploy.observability.files import FILES, PROMETHEUS, alerts, dashboards, load, run
from tests.stack import ROOT

pytestmark = pytest.mark.deploy


def without_kubernetes(config):
    """Distributions build Prometheus without it; the rules of relabelling stay."""
    for job in config["scrape_configs"]:
        if job.pop("kubernetes_sd_configs", None):
            job["file_sd_configs"] = [{"files": [f"{job['job_name']}/*.yml"]}]
            # promtool wants to see a pod's token.
            job.pop("authorization", None)
    return config


def with_address(config, url="http://127.0.0.1:1/hook"):
    """Alertmanager 0.25 knows no file for Discord's address."""
    for receiver in config["receivers"]:
        for discord in receiver["discord_configs"]:
            assert discord.pop("webhook_url_file")
            discord["webhook_url"] = url
    return config


def test_prometheus_takes_its_configuration(tmp_path):
    config = without_kubernetes(load("prometheus/prometheus.yml"))
    (tmp_path / "rules").symlink_to(PROMETHEUS / "rules")
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    assert "SUCCESS" in run("promtool", "check", "config", "prometheus.yml", cwd=tmp_path)


def test_prometheus_finds_no_fault_in_the_rules():
    run("promtool", "check", "rules", "--lint=all", "--lint-fatal", *map(str, sorted(PROMETHEUS.glob("rules/*.yml"))))


def test_every_alert_fires_where_it_should_and_nowhere_else():
    run("promtool", "test", "rules", *map(str, sorted(PROMETHEUS.glob("tests/*.yml"))))


def test_every_alert_is_tested_firing_and_quiet():
    cases = [case for path in PROMETHEUS.glob("tests/*.yml") for case in yaml.safe_load(path.read_text())["tests"]]
    tested = {(check["alertname"], bool(check["exp_alerts"])) for case in cases for check in case["alert_rule_test"]}
    assert tested == {(name, fires) for name in alerts() for fires in (True, False)}


@pytest.mark.parametrize("name", alerts())
def test_every_alert_says_what_it_means_and_where_to_look(name):
    alert = alerts()[name]
    assert alert["labels"]["severity"] in ("page", "ticket")
    assert set(alert["annotations"]) == {"summary", "description", "runbook_url", "dashboard"}
    assert alert["annotations"]["dashboard"].removeprefix("/d/") in {d["uid"] for d in dashboards().values()}
    page, _, section = alert["annotations"]["runbook_url"].partition("#")
    assert section == name.lower()
    assert re.search(rf"^## {name}$", (ROOT / page).read_text(), re.MULTILINE)


def test_the_runbook_has_no_section_of_an_alert_that_is_gone():
    # A name in one word; the others have several.
    sections = re.findall(r"^## (\w+)$", (ROOT / "docs/operations.md").read_text(), re.MULTILINE)
    assert sorted(sections) == sorted(alerts())


# What clients wish, send or wait too little for.
THEIRS = {"succeeded", "canceled", "deadline_exceeded", "input_invalid", "safety_blocked", "upload_expired"}


def test_jobs_that_fail_are_counted_by_every_end_that_is_our_own_fault():
    ends = re.search(r'outcome=~"([^"]+)"', alerts()["JobsFailing"]["expr"])[1].split("|")
    assert (set(ends) | THEIRS, set(ends) & THEIRS) == (set(ENDS), set())


def test_alertmanager_takes_its_configuration_and_sends_all_to_discord(tmp_path):
    path = tmp_path / "alertmanager.yml"
    config = with_address(load("alertmanager/alertmanager.yml"))
    (tmp_path / "templates").symlink_to(FILES / "alertmanager/templates")
    path.write_text(yaml.safe_dump(config))
    run("amtool", "check-config", str(path))
    for severity in ("page", "ticket"):
        assert run("amtool", "config", "routes", "test", f"--config.file={path}", f"severity={severity}") == "discord\n"


def test_a_page_comes_at_once_and_every_hour_and_a_ticket_once_a_day():
    route = load("alertmanager/alertmanager.yml")["route"]
    (page,) = route["routes"]
    assert page == {
        "matchers": ['severity="page"'],
        "receiver": "discord",
        "group_wait": "10s",
        "repeat_interval": "1h",
    }
    assert (route["receiver"], route["repeat_interval"], route["group_by"]) == (
        "discord",
        "24h",
        ["alertname", "queue"],
    )


def test_a_queue_without_a_worker_silences_what_follows_from_it_on_that_queue_alone():
    rules = load("alertmanager/alertmanager.yml")["inhibit_rules"]
    told = {rule["source_matchers"][0]: rule["equal"] for rule in rules if "equal" in rule}
    assert told == {'alertname="NoWorkerForModel"': ["queue"]}
    follows = next(rule for rule in rules if "equal" in rule)["target_matchers"]
    of_queue = re.fullmatch(r'alertname=~"(.+)"', *follows)[1].split("|")
    assert all(
        re.search(r"max by \([^)]*\bqueue\)", alerts()[name]["expr"]) for name in ("NoWorkerForModel", *of_queue)
    )


def test_what_is_silenced_for_another_is_an_alert():
    rules = load("alertmanager/alertmanager.yml")["inhibit_rules"]
    matchers = [m for rule in rules for m in (*rule["source_matchers"], *rule["target_matchers"])]
    patterns = [re.fullmatch(r'alertname=~?"(.+)"', matcher)[1] for matcher in matchers]
    words = [word for pattern in patterns for word in pattern.split("|")]
    assert [word for word in words if not any(re.fullmatch(word, name) for name in alerts())] == []


def test_no_secret_is_in_any_file():
    texts = {path: path.read_text() for path in FILES.rglob("*") if path.is_file()}
    told = re.compile(r"discord(app)?\.com/api/webhooks/\d|api_key: \w{10}|password: \S")
    assert [path for path, text in texts.items() if told.search(text)] == []
