"""What must not be in charts and Terraform, by checkov; what is left out of it has a reason (config/checkov)."""

import os
import re

import pytest
import yaml

from tests.deploy.programs import HELMS, ROOT, TOOLS, run, tool

CHECKOV = TOOLS / "checkov/bin/checkov"
RULES = sorted((ROOT / "config/checkov").glob("*.yaml"))


def refused(rules, kind, planted):
    """What checkov has against a file, by these rules: names of checks."""
    command = (tool(CHECKOV), "--config-file", ROOT / f"config/checkov/{rules}.yaml", "--skip-download", "--compact")
    told = run(*command, f"--{kind}", planted, check=False, env={**os.environ, "LOG_LEVEL": "ERROR"})
    assert told.returncode == 1
    return set(re.findall(r"Check: (\w+): [^\n]*\n\tFAILED", told.stdout))


def test_the_charts_pass_lint_and_every_policy_that_is_not_left_out(tmp_path):
    tool(CHECKOV)
    # One of the two: both make the same (test_chart.py, test_observability_chart.py).
    (tmp_path / "helm").symlink_to(tool(TOOLS / "programs" / HELMS[-1]))
    told = run(ROOT / "infra/ci/check-charts", env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert told.stdout.count("0 chart(s) failed") == 4
    assert re.findall(r"Failed checks: (\d+)", told.stdout) == ["0", "0"]


def test_a_pod_that_may_do_everything_is_refused(tmp_path):
    container = {"name": "c", "image": "busybox:1", "securityContext": {"privileged": True, "runAsUser": 0}}
    spec = {"containers": [container], "hostNetwork": True}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}
    (tmp_path / "pod.yaml").write_text(yaml.safe_dump(pod))
    assert {"CKV_K8S_16", "CKV_K8S_19", "CKV_K8S_20", "CKV_K8S_22"} <= refused(
        "darkroom", "file", tmp_path / "pod.yaml"
    )


def test_a_bucket_for_everybody_and_a_door_for_everybody_are_refused(tmp_path):
    (tmp_path / "main.tf").write_text(
        """
        resource "google_storage_bucket" "open" {
          name     = "open"
          location = "EU"
        }
        resource "google_compute_firewall" "open" {
          name          = "open"
          network       = "default"
          source_ranges = ["0.0.0.0/0"]
          allow {
            protocol = "tcp"
            ports    = ["22"]
          }
        }
        """
    )
    assert {"CKV_GCP_29", "CKV_GCP_114", "CKV_GCP_2"} <= refused("infra", "directory", tmp_path)


@pytest.mark.parametrize("rules", RULES, ids=lambda path: path.stem)
def test_whatever_is_left_out_has_a_reason(rules):
    left_out = [line for line in rules.read_text().splitlines() if line.startswith("  - ")]
    assert left_out
    assert [line for line in left_out if not re.fullmatch(r"  - CKV2?_\w+ +# \S.{15,}", line)] == []
