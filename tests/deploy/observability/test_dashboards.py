"""Grafana's dashboards: their fields against Grafana's own types, their queries by Prometheus' own parser."""

import itertools
import json
import re
import subprocess

import pytest
import yaml

from tests.deploy.observability.files import PROMETHEUS, dashboards, load, metrics_in, node_packages, queries, run
from tests.stack import ROOT

pytestmark = pytest.mark.deploy

LABELS = {"http_request_method", "http_response_status_code", "http_route"}


def overlap(one, other):
    return (
        one["x"] < other["x"] + other["w"] and other["x"] < one["x"] + one["w"]
        and one["y"] < other["y"] + other["h"] and other["y"] < one["y"] + one["h"]
    )  # fmt: skip


def test_every_field_is_one_of_grafanas(tmp_path):
    packages = node_packages()
    (tmp_path / "node_modules").symlink_to(packages / "node_modules")
    imports = 'import { type Dashboard, ThresholdsMode } from "@grafana/schema";\nvoid ThresholdsMode;'
    for name, dashboard in dashboards().items():
        # What Grafana reads as text is an enum for TypeScript.
        text = json.dumps(dashboard).replace('"mode": "absolute"', '"mode": ThresholdsMode.Absolute')
        (tmp_path / f"{name}.ts").write_text(f"{imports}\nexport const d: Dashboard = {text};")
    options = ["--noEmit", "--strict", "--skipLibCheck", "--moduleResolution", "bundler", "--module", "esnext"]
    tsc = [packages / "node_modules/.bin/tsc", *options, *tmp_path.glob("*.ts")]
    done = subprocess.run(tsc, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_query_is_promql(tmp_path):
    rules = [{"record": f"query:{number}", "expr": expr} for number, (_, expr) in enumerate(queries())]
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    run("promtool", "check", "rules", str(tmp_path / "queries.yml"))


@pytest.mark.parametrize("name", dashboards())
def test_panels_have_their_own_numbers_and_places(name):
    panels = dashboards()[name]["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    pairs = itertools.combinations(panels, 2)
    assert [(a["title"], b["title"]) for a, b in pairs if overlap(a["gridPos"], b["gridPos"])] == []
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)


def test_dashboards_have_names_of_their_own_and_links_that_lead_somewhere():
    uids = [dashboard["uid"] for dashboard in dashboards().values()]
    assert len(set(uids)) == len(uids)
    links = {link["url"].removeprefix("/d/") for dashboard in dashboards().values() for link in dashboard["links"]}
    assert links <= set(uids)


def test_every_source_that_is_named_is_provisioned():
    sources = {source["uid"]: source for source in load("grafana/provisioning/datasources.yml")["datasources"]}
    named = {
        (target["datasource"]["uid"], target["datasource"]["type"])
        for dashboard in dashboards().values()
        for panel in dashboard["panels"]
        for target in panel["targets"]
    }
    assert {(uid, kind) for uid, kind in named if uid != "${datasource}"} <= {
        (uid, source["type"]) for uid, source in sources.items()
    }
    # From a log line to its trace, and back.
    assert sources["darkroom-logs"]["jsonData"]["dataLinks"][0]["datasourceUid"] == "darkroom-jaeger"
    assert sources["darkroom-jaeger"]["jsonData"]["tracesToLogsV2"]["datasourceUid"] == "darkroom-logs"


def test_what_every_courier_tells_is_not_added_up():
    """Two of them run, and each counts the same jobs."""
    told = re.findall(r'"(darkroom_\w+)"', (ROOT / "app/census.py").read_text())
    asked = [query for _, query in queries() if any(re.search(rf"{name}(_total)?\b", query) for name in told)]
    assert len(asked) > 8
    assert [query for query in asked if not re.search(r"\bmax( by \([\w, ]+\))? ?\((rate\()?darkroom_", query)] == []


def test_every_number_that_we_tell_is_asked_for_by_a_panel_or_a_rule():
    declared = " ".join((ROOT / "app" / name).read_text() for name in ("metrics.py", "census.py"))
    told = set(re.findall(r'"((?:darkroom|http)_\w+)"', declared)) - LABELS
    rules = [
        rule["expr"] for path in PROMETHEUS.glob("rules/*.yml") for g in load(path)["groups"] for rule in g["rules"]
    ]
    asked = {name for text in [*rules, *(query for _, query in queries())] for name in metrics_in(text)}
    assert len(told) > 20
    assert [name for name in told if not any(one == name or one.startswith(f"{name}_") for one in asked)] == []
