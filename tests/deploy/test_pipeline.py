"""The scripts of infra/ci, with programs that take notes; those for secrets are in test_cluster_secrets.py."""

import json
import re
import shlex
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


@pytest.mark.parametrize(("given", "limit"), [({}, "10m"), ({"TIMEOUT": "3m"}, "3m")])
def test_an_upgrade_waits_for_its_pods_and_keeps_what_a_rollback_may_go_to(script, path, given, limit):
    path(helm="")
    upgrade = script("deploy-web", VALUES="production.yaml", **given).notes[-1]
    assert f" --wait --timeout {limit} " in upgrade
    assert int(re.search(r" --history-max (\d+)$", upgrade)[1]) > 1


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


def test_a_cluster_that_cannot_be_reached_is_told_as_that(script, path):
    path(helm="echo 'Error: kubernetes cluster unreachable' >&2; exit 1")
    done = script("rollback", "web", check=False)
    told = "Error: kubernetes cluster unreachable\nrollback: the history of the release cannot be read\n"
    assert (done.returncode, done.stderr) == (1, told)


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


# The service as a client sees it, by what the variables say.
CURL = r"""
for each in "$@"; do
  case $each in
    */key) stat -c %a "$each" >"$TMPDIR/mode"; cat "$each" >"$TMPDIR/told" ;;
    */readyz) [[ -z ${AWAY:-} ]] || exit 22 ;;
    */generate) echo "$ANSWER"; [[ $ANSWER != *code* ]] || exit 22 ;;
    */tasks/t-1\?wait=30) echo "{\"status\": \"$STATUS\"}" ;;
    */picture.png) printf "$PICTURE" >"$each" ;;
  esac
done
"""
GOOD_SERVICE = {"ANSWER": '{"task_id": "t-1"}', "STATUS": "SUCCEEDED", "PICTURE": r"\x89PNG\r\n\x1a\nand more"}


@pytest.fixture
def smoke(script, path):
    path(curl=CURL)
    return lambda **environ: script("smoke", check=False, URL="https://darkroom.example", **GOOD_SERVICE | environ)


def test_a_service_that_makes_a_picture_passes_the_smoke_test(smoke):
    done = smoke()
    assert (done.returncode, done.stdout) == (0, "smoke: a picture of 16 bytes from https://darkroom.example\n")


@pytest.mark.parametrize(
    ("service", "told"),
    [
        ({"AWAY": "1"}, "https://darkroom.example is not ready"),
        ({"ANSWER": '{"code": "no_worker"}'}, 'no task was accepted: {"code": "no_worker"}'),
        ({"STATUS": "FAILED"}, "task t-1: FAILED"),
        ({"STATUS": "CANCELLED"}, "task t-1: CANCELLED"),
        ({"STATUS": "PENDING", "PATIENCE": "0"}, "task t-1 is still PENDING after 0 s"),
        ({"PICTURE": "<html>"}, "task t-1: its picture is no PNG"),
        ({"PICTURE": ""}, "task t-1: its picture is no PNG"),
    ],
)
def test_a_refused_smoke_test_says_why(smoke, service, told):
    done = smoke(**service)
    assert (done.returncode, done.stderr) == (1, f"smoke: {told}\n")


def test_the_key_of_a_smoke_test_is_read_by_nobody_else_and_is_no_argument(smoke, tmp_path):
    done = smoke(API_KEY="a-secret")
    assert done.returncode == 0
    assert (tmp_path / "mode").read_text() == "600\n"
    assert (tmp_path / "told").read_text() == 'header = "Authorization: Bearer a-secret"\n'
    assert "a-secret" not in done.stdout + done.stderr + "".join(done.notes)


def test_discord_is_told_and_its_address_is_in_no_list_of_processes(script, path):
    path(curl="cat >/dev/null\n")
    done = script("notify", 'all "well"', DISCORD_WEBHOOK_URL="https://discord.example/a-secret")
    assert "a-secret" not in "".join(done.notes)
    assert "allowed_mentions" in done.notes[0]


# ---- infra/ci/scan

TRIVY = "trivy image --scanners vuln,secret --exit-code 1 --severity HIGH,CRITICAL --ignore-unfixed --no-progress"
SCANS = [f"{TRIVY} docker.io/darkroom/darkroom-{image}:1.2.3-abcdef0" for image in ("web", "worker")]


@pytest.fixture
def scan(tmp_path, path):
    """Runs a copy of the scan, in which a program's own file says how it ends."""
    (tmp_path / "infra/ci").mkdir(parents=True)
    for name in ("scan", "common.sh"):
        shutil.copy(ROOT / "infra/ci" / name, tmp_path / "infra/ci")

    def run_it(**ends):
        path(**{name: ends.get(name, "exit 0\n") for name in ("bootstrap", "audit", "trivy")})
        (tmp_path / "script").symlink_to(tmp_path / "bin")
        environ = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "NOTES": str(tmp_path / "notes")}
        done = run(tmp_path / "infra/ci/scan", env={**environ, "VERSION": "1.2.3-abcdef0"}, check=False)
        notes = (tmp_path / "notes").read_text().splitlines()
        done.notes = [" ".join(shlex.split(note)).strip() for note in notes]
        return done

    return run_it


def test_packages_are_audited_and_then_both_images_are_looked_through(scan):
    done = scan()
    assert (done.returncode, done.notes) == (0, ["bootstrap --dev", "audit", *SCANS])


@pytest.mark.parametrize(
    ("ends", "asked"),
    [
        ({"audit": "exit 1\n"}, []),
        ({"trivy": "exit 1\n"}, SCANS[:1]),
        ({"trivy": "[[ ${!#} != *-worker:* ]]\n"}, SCANS),
    ],
)
def test_a_weakness_of_a_package_or_of_either_image_fails_the_scan(scan, ends, asked):
    done = scan(**ends)
    assert (done.returncode, done.notes) == (1, ["bootstrap --dev", "audit", *asked])


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
