"""The scripts of infra/ci, with programs that take notes; those for secrets are in test_cluster_secrets.py."""

import json
import re
import shutil

import pytest

from app import __version__
from tests.deploy.programs import ROOT, run


def test_a_commit_has_one_version(script):
    commit = run("git", "rev-parse", "--short=7", "HEAD", cwd=ROOT).stdout.strip()
    assert script("version", VERSION="").stdout.strip() == f"{__version__}-{commit}"


def test_both_images_are_built_with_version_and_commit(script, path):
    path(docker="")
    built = script("build").notes
    assert [re.search(r"--file (\S+) --tag (\S+)", note).groups() for note in built] == [
        ("Dockerfile.web", "docker.io/darkroom/darkroom-web:1.2.3-abcdef0"),
        ("Dockerfile.gpu", "docker.io/darkroom/darkroom-worker:1.2.3-abcdef0"),
    ]
    for file, note in zip(("Dockerfile.web", "Dockerfile.gpu"), built, strict=True):
        given = set(re.findall(r"--build-arg (\w+)=", note))
        assert given <= set(re.findall(r"^ARG (\w+)", (ROOT / file).read_text(), re.MULTILINE))
        assert {"VERSION", "REVISION"} <= given


def test_a_push_keeps_the_password_out_of_the_arguments_and_logs_in_for_itself(script, path):
    login = '[[ $1 != login ]] || { cat >/dev/null; touch "$DOCKER_CONFIG/config.json"; }'
    path(docker=f"[[ $1 != manifest ]] || exit 1\n{login}\n")
    done = script("push", DOCKER_USER="robot", DOCKER_PASSWORD="a-secret")
    assert "a-secret" not in done.stdout + done.stderr + "".join(done.notes)
    assert [note for note in done.notes if note.startswith("docker push")] == [
        "docker push docker.io/darkroom/darkroom-web:1.2.3-abcdef0",
        "docker push docker.io/darkroom/darkroom-worker:1.2.3-abcdef0",
    ]


def test_what_was_pushed_once_is_not_pushed_over(script, path):
    path(docker="exit 0\n")
    assert not [note for note in script("push").notes if note.startswith("docker push")]


@pytest.mark.parametrize(("helm", "option"), [("v3.17.2", "--atomic"), ("v4.3.1", "--rollback-on-failure")])
def test_the_web_tier_goes_back_by_itself(script, path, helm, option):
    path(helm=f'[[ $1 != version ]] || echo "{helm}"\n')
    upgrade = script("deploy-web", VALUES="production.yaml mine.json").notes[-1]
    assert upgrade.startswith("helm upgrade darkroom charts/darkroom --install")
    assert f" {option} " in upgrade
    assert " --values production.yaml --values mine.json " in upgrade
    assert "--set-string image.tag=1.2.3-abcdef0" in upgrade


def test_nobodys_project_is_not_deployed_to(script, path):
    path(helm="")
    done = script("deploy-web", check=False)
    assert (done.returncode, done.stderr) == (1, "deploy-web: set VALUES\n")


GOOD = {"revision": 1, "status": "superseded", "description": "Install complete"}
FAILED = {"revision": 2, "status": "failed", "description": "Upgrade failed"}
DEPLOYED = {"revision": 3, "status": "deployed", "description": "Upgrade complete"}
TAKEN_BACK = {"revision": 3, "status": "deployed", "description": "Rollback to 1"}


def rolled_back(script, path, history, **options):
    path(helm=f"[[ $1 != history ]] || echo '{json.dumps(history)}'\n")
    return script("rollback", "web", **options)


LIVE = {"revision": 2, "status": "deployed", "description": "Upgrade complete"}


@pytest.mark.parametrize(
    ("history", "revision"),
    [
        ([GOOD, FAILED, DEPLOYED], 1),
        ([GOOD, LIVE, {"revision": 3, "status": "pending-upgrade", "description": "Preparing upgrade"}], 2),
        ([GOOD, LIVE, {"revision": 3, "status": "failed", "description": "Upgrade failed"}], 2),
    ],
)
def test_the_web_tier_is_taken_back_to_what_was_replaced_and_to_nothing_that_failed(script, path, history, revision):
    done = rolled_back(script, path, history)
    assert done.notes[-1].startswith(f"helm rollback darkroom {revision} --namespace darkroom --wait")
    assert rolled_back(script, path, [], REVISION="7").notes[-1].startswith("helm rollback darkroom 7 ")


@pytest.mark.parametrize("history", [[GOOD, FAILED, TAKEN_BACK], [DEPLOYED]])
def test_what_went_back_already_and_what_was_the_first_is_not_taken_back(script, path, history):
    done = rolled_back(script, path, history, check=False)
    assert (done.returncode, [note for note in done.notes if "helm rollback" in note]) == (1, [])
    assert "name a REVISION" in done.stderr


def test_a_refused_smoke_test_says_why(script, path):
    path(curl='case ${!#} in */readyz) ;; *) echo "{\\"code\\": \\"no_worker\\"}"; exit 22 ;; esac\n')
    done = script("smoke", URL="https://darkroom.example", check=False)
    assert done.returncode == 1
    assert 'no task was accepted: {"code": "no_worker"}' in done.stderr


def test_discord_is_told_and_its_address_is_in_no_list_of_processes(script, path):
    path(curl="cat >/dev/null\n")
    done = script("notify", 'all "well"', DISCORD_WEBHOOK_URL="https://discord.example/a-secret")
    assert "a-secret" not in "".join(done.notes)
    assert "allowed_mentions" in done.notes[0]


# ---- script/check-deploy


@pytest.mark.parametrize(
    ("engine", "good", "said"), [(1, 0, "no Docker engine answers"), (0, 0, "trivy is not"), (1, 1, "")]
)
def test_the_check_of_everything_says_what_it_could_not_check(tmp_path, path, engine, good, said):
    (tmp_path / "script").mkdir()
    shutil.copy(ROOT / "script/check-deploy", tmp_path / "script")
    for name, status in (("test", good), ("check-images", 0)):
        (tmp_path / "script" / name).write_text(
            f'#!/bin/sh\n[ "$CI" = true ] || [ {name} != test ] || exit 3\nexit {status}\n'
        )
        (tmp_path / "script" / name).chmod(0o755)
    path(docker=f"exit {engine}\n")
    # Nothing else that this machine may have.
    for name in ("bash", "sh", "env", "dirname", "basename"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    environ = {"PATH": f"{tmp_path}/bin", "NOTES": str(tmp_path / "notes")}
    done = run(tmp_path / "script/check-deploy", env=environ, check=False)
    assert done.returncode == good
    assert said in done.stdout.partition("Not checked here:")[2]
    assert ("- both images and compose.yaml in Docker" in done.stdout) == (engine == 0)
    assert ("Failed: charts" in done.stderr) == bool(good)
