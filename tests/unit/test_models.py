"""The catalogue: what the file says, and every mistake in it at once."""

import math

import pytest
import yaml

from app.errors import SettingsError, UnknownModelVersion
from app.models import load_catalogue
from app.tasks import QUARANTINE

GOOD = {"model_version": "one-1", "source": "weights", "queue": "gen.one"}


@pytest.fixture
def load(tmp_path):
    """Loads a catalogue of these entries."""

    def load(*entries, default=""):
        (tmp_path / "models.yaml").write_text(yaml.safe_dump({"models": list(entries)}))
        return load_catalogue(str(tmp_path / "models.yaml"), default)

    return load


def test_the_first_model_is_the_default(load):
    catalogue = load(GOOD, {**GOOD, "model_version": "two-1"})
    assert (catalogue.default.model_version, catalogue.get("two-1").queue) == ("one-1", "gen.one")
    assert [spec.model_version for spec in catalogue.all()] == ["one-1", "two-1"]


def test_a_setting_chooses_another_default(load):
    two, three = ({**GOOD, "model_version": name, "queue": f"gen.{name}"} for name in ("two-1", "three-1"))
    catalogue = load(GOOD, two, three, default="two-1")
    assert catalogue.default.model_version == "two-1"
    assert [spec.model_version for spec in catalogue.all()] == ["two-1", "one-1", "three-1"]
    assert catalogue.queues() == ["gen.two-1", "gen.one", "gen.three-1"]


def test_a_default_that_is_not_there_is_refused(load):
    with pytest.raises(SettingsError, match="DEFAULT_MODEL_VERSION: two-1"):
        load(GOOD, default="two-1")


def test_models_that_share_a_queue_are_served_together(load):
    two, three = {**GOOD, "model_version": "two-1"}, {**GOOD, "model_version": "three-1", "queue": "gen.big"}
    catalogue = load(GOOD, three, two)
    assert catalogue.queues() == ["gen.one", "gen.big"]
    assert [spec.model_version for spec in catalogue.on_queue("gen.one")] == ["one-1", "two-1"]


def test_an_unknown_model_is_refused_with_those_that_there_are(load):
    with pytest.raises(UnknownModelVersion, match="one-1") as refused:
        load(GOOD).get("nobody-1")
    assert refused.value.errors[0]["field"] == "model_version"


def test_a_folder_is_found_beside_the_file_and_a_module_by_its_name(load, tmp_path):
    catalogue = load({**GOOD, "source": "../weights"}, {**GOOD, "model_version": "two-1", "source": "python:m"})
    assert catalogue.get("one-1").source == str((tmp_path / "../weights").resolve())
    assert catalogue.get("two-1").source == "python:m"


def test_all_mistakes_are_told_together(load):
    wrong = [
        {"model_version": "a b", "source": "", "queue": "q"},
        {**GOOD, "colour": "red", "capabilities": ["video"], "multiple_of": 0},
        {**GOOD, "defaults": {"width": 2048}},
        {**GOOD, "defaults": {"width": 60}},
        {"source": "x"},
    ]
    with pytest.raises(SettingsError) as refused:
        load(*wrong)
    lines = str(refused.value).splitlines()
    for part in ("0.model_version", "0.source", "1.colour", "1.capabilities", "1.multiple_of", "4.model_version",
                 "4.queue", "defaults.width is above limits.width", "no multiple of 8",
                 "one-1 is there twice"):  # fmt: skip
        assert any(part in line for line in lines), (part, lines)


@pytest.mark.parametrize("queue", [QUARANTINE, "celery", "celeryev.x", "celery_delayed_1", "x.celery.pidbox"])
def test_a_queue_of_the_service_itself_is_no_models(load, queue):
    with pytest.raises(SettingsError, match="a queue of the service itself"):
        load({**GOOD, "queue": queue})


def test_a_number_without_end_is_none_for_a_model(load):
    with pytest.raises(SettingsError, match="guidance_scale"):
        load({**GOOD, "defaults": {"guidance_scale": math.inf}, "limits": {"guidance_scale": math.inf}})


def test_a_model_is_there_once(load):
    with pytest.raises(SettingsError, match="one-1 is there twice"):
        load(GOOD, GOOD)


@pytest.mark.parametrize(
    "text", ["", "models:", "models: []", "models: {}", "[]", "{", "models: [1]", "\x00", "[" * 9999]
)
def test_a_file_that_is_no_catalogue_is_refused(tmp_path, text):
    path = tmp_path / "models.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=r"models\.yaml"):
        load_catalogue(str(path))


@pytest.mark.parametrize("content", [None, b"\xff\xfe\xfa"], ids=["missing", "binary"])
def test_a_file_that_cannot_be_read_is_refused(tmp_path, content):
    path = tmp_path / "models.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match="cannot be read"):
        load_catalogue(str(path))


def test_the_catalogue_of_this_repository_holds_what_it_names():
    from pathlib import Path

    catalogue = load_catalogue("config/models.yaml")
    assert catalogue.default.model_version == "tiny-scenes-1"
    assert all(spec.is_remote or Path(spec.source).is_dir() for spec in catalogue.all())
