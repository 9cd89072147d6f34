"""The programs of script/tools, for tests: one that is missing skips here and fails in CI, where none may be."""

import shutil
import subprocess
from functools import cache
from pathlib import Path

import yaml

from tests.backends import skip_or_fail

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "var/tools"
HELMS = ("helm3", "helm4")


def tool(path):
    """The path of a program, by its name on PATH or its place in var/tools."""
    found = shutil.which(str(path))
    if found:
        return found
    return skip_or_fail(f"{path} is missing; script/tools installs it")


def run(*command, check=True, **options):
    """The finished process, with its output as text; what it says is the reason when it fails."""
    done = subprocess.run([str(part) for part in command], check=False, capture_output=True, text=True, **options)
    assert not check or done.returncode == 0, f"{command[0]}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done


@cache
def rendered(chart, helm="helm4", values="", **sets):
    """The objects of a chart: (kind, name) -> object. `values` is a file of it, `sets` values with __ for each dot."""
    folder = ROOT / "charts" / chart
    given = ["--values", folder / values] if values else []
    given += [part for name, value in sets.items() for part in ("--set-json", f"{name.replace('__', '.')}={value}")]
    told = run(tool(TOOLS / "programs" / helm), "template", "darkroom", folder, "--namespace", "darkroom", *given)
    return {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(told.stdout) if each}


def pod_of(thing):
    """The pod's specification in whatever makes pods; None for what does not."""
    if thing["kind"] == "Pod":
        return thing["spec"]
    return thing["spec"]["template"]["spec"] if "template" in thing.get("spec", {}) else None
