"""The files under charts/observability/files, and the tools that they are checked with."""

import json
import re
import shutil
import subprocess

import pytest
import yaml

from tests.backends import skip_or_fail
from tests.stack import ROOT

FILES = ROOT / "charts/observability/files"
NODE = ROOT / "var/tools/node_packages"
PROMETHEUS = FILES / "prometheus"


def tool(name):
    """The path of a program that script/tools installs."""
    return shutil.which(name) or skip_or_fail(f"needs {name}: script/tools installs it")


def run(*command, **options):
    """What a tool said; fails with that when the tool found a fault."""
    done = subprocess.run([tool(command[0]), *command[1:]], capture_output=True, text=True, check=False, **options)
    if done.returncode != 0:
        pytest.fail(done.stdout + done.stderr)
    return done.stdout


def node_packages():
    """The folder of the npm packages."""
    if not (NODE / "stamp").exists():
        skip_or_fail("needs the npm packages: script/tools installs them")
    return NODE


def load(path):
    return yaml.safe_load((FILES / path).read_text())


def alerts():
    """Every alert by its name."""
    rules = [r for path in PROMETHEUS.glob("rules/*.yml") for g in load(path)["groups"] for r in g["rules"]]
    return {rule["alert"]: rule for rule in rules if "alert" in rule}


def dashboards():
    return {path.stem: json.loads(path.read_text()) for path in sorted(FILES.glob("grafana/dashboards/*.json"))}


def queries():
    """Every query of every dashboard to Prometheus, as (dashboard and panel, PromQL)."""
    return [
        (f"{name}: {panel['title']}", plain(target["expr"]))
        for name, dashboard in dashboards().items()
        for panel in dashboard["panels"]
        for target in panel["targets"]
        if "expr" in target
    ]


def plain(expression):
    """A dashboard's query without its variables."""
    return re.sub(r"\$(queue|model)\b", ".*", expression.replace("$__rate_interval", "1m"))


# What is PromQL's own in our queries.
_WORDS = {
    "and", "or", "sum", "max", "rate", "increase", "deriv", "absent", "time", "max_over_time", "predict_linear",
    "histogram_quantile", "offset", "unless",
}  # fmt: skip


def metrics_in(expression):
    """The names of the metrics that an expression asks for."""
    bare = re.sub(r'"[^"]*"', '""', re.sub(r"\{__name__=~\"([^\"]*)\"\}", "", expression))
    bare = re.sub(r"\b(?:by|without|on) *\([^)]*\)|\{[^}]*\}|\[[^]]*\]", " ", bare)
    names = set(re.findall(r"(?<![\w:.])[a-zA-Z_][\w:]*", bare)) - _WORDS
    return {name for name in names if not name.startswith("darkroom:")}
