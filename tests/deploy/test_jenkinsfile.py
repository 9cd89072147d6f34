"""The Jenkinsfile, by Jenkins' own Groovy against a strict recorder."""

import json
import os
import re
from pathlib import Path

import pytest

from tests.deploy.programs import ROOT, run, tool

GROOVY = "/usr/share/java/groovy-all.jar:/usr/share/java/commons-cli.jar"


def recorded(jenkinsfile, check=True, **environ):
    if not Path(GROOVY.partition(":")[0]).exists():
        tool("groovy")
    harness = ROOT / "tests/deploy/jenkinsfile.groovy"
    return run(
        tool("java"),
        "-cp",
        GROOVY,
        "groovy.ui.GroovyMain",
        harness,
        jenkinsfile,
        check=check,
        env={**os.environ, **environ},
    )


@pytest.fixture(scope="module")
def pipeline():
    return json.loads(recorded(ROOT / "Jenkinsfile").stdout)


def said(pipeline, word):
    return [(entry["path"], entry["arguments"]) for entry in pipeline if entry["word"] == word]


def test_the_stages_come_in_their_order(pipeline):
    assert [name for _, (name,) in said(pipeline, "stage")] == [
        *["Set up", "Checks", "Lint", "Charts", "Terraform", "Test", "Build", "Scan", "Push"],
        *["Deploy web", "Smoke web", "Deploy worker", "Smoke worker"],
    ]


def test_only_main_is_pushed_and_deployed(pipeline):
    guarded = {
        path[-1] for path, arguments in said(pipeline, "branch") if arguments == ["main"] for path in [path[:-1]]
    }
    assert guarded == {"Push", "Deploy web", "Smoke web", "Deploy worker", "Smoke worker"}
    for path, (text,) in said(pipeline, "sh"):
        if re.search("infra/ci/(push|deploy|smoke|rollback)", text):
            assert guarded & set(path), text


def test_a_failed_smoke_test_rolls_back(pipeline):
    back = {
        next(name for name in path if "Smoke" in name): text
        for path, (text,) in said(pipeline, "sh")
        if "failure" in path and "stages" in path
    }
    assert back == {"Smoke web": "infra/ci/rollback web", "Smoke worker": "infra/ci/rollback worker"}


def test_each_step_is_a_script_that_a_person_can_run(pipeline):
    for _, (text,) in said(pipeline, "sh"):
        scripts = re.findall(r"(?:infra/ci|script)/[\w-]+", text)
        assert scripts, text
        assert all(os.access(ROOT / script, os.X_OK) for script in scripts)


def test_no_key_of_a_machine_is_asked_for_where_google_knows_them(pipeline):
    of_group = json.loads(recorded(ROOT / "Jenkinsfile", WORKER_GROUP="darkroom-worker").stdout)
    asked = [
        [str(text) for _, text in said(steps, "withCredentials") if "gpu-ssh" in str(text)]
        for steps in (pipeline, of_group)
    ]
    assert [len(texts) for texts in asked] == [2, 0]


def test_secrets_are_jenkins_own_by_id():
    text = (ROOT / "Jenkinsfile").read_text()
    assert set(re.findall(r"credentialsId: '([\w-]+)'", text)) == {
        *["docker-hub", "gke-kubeconfig", "darkroom-values", "darkroom-url", "darkroom-api-key"],
        *["gpu-ssh", "gpu-known-hosts", "discord-webhook"],
    }
    # In a text with double quotes Groovy itself would put the secret in, and Jenkins would log it.
    assert not re.search(r'sh\s*"', text)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("stages {", "stagez {"),
        ("steps { sh 'script/lint' }", "sh 'script/lint'"),
        ("when { branch 'main' }", "when { brunch 'main' }"),
        ("timestamps()", "timestampz()"),
    ],
)
def test_the_recorder_finds_mistakes(tmp_path, right, wrong):
    text = (ROOT / "Jenkinsfile").read_text()
    assert right in text
    (tmp_path / "Jenkinsfile").write_text(text.replace(right, wrong, 1))
    assert recorded(tmp_path / "Jenkinsfile", check=False).returncode == 1
