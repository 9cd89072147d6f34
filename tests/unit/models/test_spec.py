"""What an entry of the catalogue may say, and what is ready in this repository."""

import pytest
import yaml

from app.errors import SettingsError
from app.models import load_catalogue

GOOD = {"model_version": "one-1", "source": "weights", "queue": "gen.one"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def mistakes(tmp_path):
    """The lines of the refusal of a catalogue with these entries; none when it is right."""

    def of(*entries):
        path = tmp_path / "models.yaml"
        path.write_text(yaml.safe_dump({"models": list(entries)}))
        try:
            load_catalogue(str(path))
        except SettingsError as error:
            return str(error).splitlines()
        return []

    return of


@pytest.mark.parametrize("source", ["../weights", f"hf:org/name@{COMMIT}", "gs://bucket/models/one", "python:a.b"])
def test_a_source_may_be_a_folder_a_commit_a_bucket_or_a_module(mistakes, source):
    assert mistakes({**GOOD, "source": source}) == []


@pytest.mark.parametrize(
    "source",
    ["hf:org/name", "hf:org/name@main", "hf:name@" + COMMIT, "gs://bucket", "gs://b/../x", "python:", "s3://a/b"],
)
def test_a_source_that_can_change_or_leads_nowhere_is_refused(mistakes, source):
    [line] = mistakes({**GOOD, "source": source})
    assert "models.0.source (one-1)" in line


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"capabilities": ["video"]}, "capabilities"),
        ({"capabilities": []}, "capabilities"),
        ({"dtype": {"cuda": "int8"}}, "dtype.cuda"),
        ({"weights_sha256": "abc"}, "weights_sha256"),
        ({"without_worker": "ask"}, "without_worker"),
        ({"schedulers": ["euler"]}, "schedulers"),
        ({"defaults": {"scheduler": "DDIMScheduler"}}, "DDIMScheduler is not among them"),
        ({"limits": {"pixels": 1000}}, "defaults.pixels is above limits.pixels"),
        ({"limits": {"num_inference_steps": 5}}, "defaults.num_inference_steps is above"),
        ({"sheduler": "x"}, "sheduler"),
    ],
)
def test_a_mistake_in_an_entry_is_named(mistakes, change, reason):
    [line] = mistakes({**GOOD, **change})
    assert reason in line


def test_mistakes_of_one_entry_do_not_hide_each_other(mistakes):
    lines = mistakes({**GOOD, "capabilities": ["video"], "defaults": {"width": 2050}, "queue": ""})
    found = [part for part in ("capabilities", "above limits.width", "no multiple of 8", "queue")
             if any(part in line for line in lines)]  # fmt: skip
    assert (len(found), len(lines)) == (4, 4)


@pytest.fixture(scope="module")
def ready():
    return {spec.model_version: spec for spec in load_catalogue("config/models.yaml").all()}


def test_the_default_model_needs_nothing_from_elsewhere(ready):
    default = next(iter(ready.values()))
    assert (default.queue, default.is_remote) == ("gen.tiny", False)


def test_every_model_from_elsewhere_is_pinned_has_a_licence_and_a_queue_of_its_own(ready):
    remote = [spec for spec in ready.values() if spec.is_remote]
    assert len(remote) > 5
    assert all(spec.licence and spec.source.startswith("hf:") for spec in remote)
    assert len({spec.queue for spec in remote}) == len(remote)


@pytest.mark.parametrize("name", ["sd-turbo", "sdxl-turbo", "flux.1-schnell"])
def test_distilled_models_take_few_steps_and_no_guidance(ready, name):
    spec = ready[name]
    assert (spec.defaults.guidance_scale, spec.limits.guidance_scale, spec.negative_prompt) == (0, 0, False)
    assert spec.defaults.num_inference_steps <= 4


@pytest.mark.parametrize("name", ["sd3.5-medium", "flux.1-schnell"])
def test_models_whose_text_encoder_overflows_use_bfloat16_on_gpus(ready, name):
    assert (ready[name].dtype.cuda, ready[name].dtype.cpu) == ("bfloat16", "float32")
