"""The Dockerfiles, as far as they can be judged without building them; script/check-images builds and runs them."""

import re
import tomllib

import pytest

from app.settings import Settings
from tests.stack import ROOT

pytestmark = pytest.mark.deploy
IMAGES = {"Dockerfile.web": "web", "Dockerfile.gpu": "worker"}


def stages(name):
    """The instructions of each stage, without comments; continued lines are joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / name).read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [stage.splitlines() for stage in re.split(r"^(?=FROM )", text, flags=re.MULTILINE)[1:]]


def value(name, instruction):
    return [line.split(maxsplit=1)[1] for line in stages(name)[-1] if line.startswith(f"{instruction} ")]


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_takes_its_base_by_argument_for_both_stages(name):
    assert [stage[0] for stage in stages(name)] == ["FROM ${BASE_IMAGE} AS build", "FROM ${BASE_IMAGE}"]


@pytest.mark.parametrize("name", IMAGES)
def test_the_bases_python_is_one_that_darkroom_knows(name):
    version = re.search(r"BASE_IMAGE=python:(\d+\.\d+)-slim", (ROOT / name).read_text())[1]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={version}"


@pytest.mark.parametrize("name", IMAGES)
def test_every_package_comes_from_a_lock_and_torch_from_its_pin(name):
    installs = re.findall(r"install (--\S.*?)(?=&&|$)", "\n".join(stages(name)[0]), re.MULTILINE)
    locked = [line for line in installs if "--require-hashes --no-deps --only-binary :all:" in line]
    others = [line for line in installs if line not in locked]
    assert len(locked) == 1
    files = [re.search(r"-r (\S+)", line)[1] for line in others]
    assert files == (["requirements/torch.txt"] if name == "Dockerfile.gpu" else [])


@pytest.mark.parametrize(("name", "role"), IMAGES.items())
def test_an_image_runs_its_role_as_nobody_in_particular(name, role):
    assert value(name, "USER") == ["10001:10001"]
    assert value(name, "ENTRYPOINT") == ['["python", "-m", "app"]']
    assert value(name, "CMD") == [f'["{role}"]']


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_says_which_version_and_commit_it_is(name):
    labels = " ".join(value(name, "LABEL"))
    assert 'org.opencontainers.image.version="${VERSION}"' in labels
    assert 'org.opencontainers.image.revision="${REVISION}"' in labels


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_sets_only_settings_that_there_are(name):
    names = set(re.findall(r"\b([A-Z_]{3,})=", " ".join(value(name, "ENV"))))
    others = {"PATH", "HOME", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"}
    assert {n for n in names - others if not n.startswith("NVIDIA_")} <= {n.upper() for n in Settings.model_fields}


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_tells_whether_it_is_healthy(name):
    assert len(value(name, "HEALTHCHECK")) == 1


def test_nothing_but_what_runs_goes_into_an_image():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    assert {line for line in lines if line.startswith("!")} == {"!app", "!config", "!requirements/*.txt", "!LICENSE"}
