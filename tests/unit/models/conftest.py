"""Small pipeline folders, made once, and what loads them with the service's own code."""

import shutil

import pytest

from app.settings import Settings
from tests.unit.models import folders

FAMILIES = {
    "stable-diffusion": folders.stable_diffusion,
    "turbo": folders.turbo,
    "sdxl": folders.sdxl,
    "sd3": folders.sd3,
    "flux": folders.flux,
}


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """The folder of a family, made when it is first asked for."""
    root, done = tmp_path_factory.mktemp("models"), {}

    def make(family):
        if family not in done:
            done[family] = FAMILIES[family](root / family)
        return done[family]

    return make


@pytest.fixture
def copied(made, tmp_path):
    """A copy of a family's folder that a test may change."""
    return lambda family: shutil.copytree(made(family), tmp_path / family)


@pytest.fixture
def on_cpu(tmp_path):
    """Settings of a worker without a GPU and with one thread; no service answers."""
    key = "a key that nobody uses but the tests"
    return Settings(
        storage_url=f"file://{tmp_path}/storage", signing_key=key, device="cpu", torch_threads=1,
        models_cache=f"{tmp_path}/cache",
    )  # fmt: skip
