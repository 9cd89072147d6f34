"""What may come in, and what the model fills in."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from app.errors import InvalidRequest
from app.models import ModelSpec
from app.params import resolve
from app.schemas import MAX_SEED, GenerateRequest

SPEC = ModelSpec(
    model_version="one-1",
    source="x",
    queue="q",
    capabilities=("txt2img", "img2img"),
    defaults={"width": 64, "height": 48, "num_inference_steps": 10, "guidance_scale": 5.0, "strength": 0.5},
    limits={"width": 128, "height": 96, "num_inference_steps": 20, "guidance_scale": 9.0, "num_images": 2},
)


def request(**fields):
    return GenerateRequest.model_validate({"prompt": "a", **fields})


def refused(**fields):
    """The fields that a request is refused for, by its model."""
    with pytest.raises(InvalidRequest) as error:
        resolve(request(**fields), SPEC)
    return [e["field"] for e in error.value.errors]


def test_a_prompt_is_enough():
    params = resolve(request(), SPEC)
    assert (params.width, params.height, params.num_inference_steps) == (64, 48, 10)
    assert (params.guidance_scale, params.strength, params.num_images, params.negative_prompt) == (5.0, 0.5, 1, "")
    assert (params.model_version, params.output_format, params.input_url) == ("one-1", "png", None)


def test_what_the_request_names_counts_even_when_it_is_zero():
    params = resolve(request(guidance_scale=0, seed=0, width=8), SPEC)
    assert (params.guidance_scale, params.seed, params.width) == (0, 0, 8)


def test_every_picture_of_several_has_a_seed_that_a_request_may_name():
    assert resolve(request(seed=MAX_SEED - 1, num_images=2), SPEC).seed == MAX_SEED - 1
    with pytest.raises(InvalidRequest, match=f"seed: at most {MAX_SEED - 1} for 2 images"):
        resolve(request(seed=MAX_SEED, num_images=2), SPEC)


def test_a_seed_is_drawn_so_that_those_after_it_are_seeds_too(monkeypatch):
    monkeypatch.setattr("app.params.secrets.randbelow", lambda most: most - 1)
    assert resolve(request(num_images=2), SPEC).seed == MAX_SEED - 1


def test_a_seed_is_drawn_from_all_there_are():
    seeds = [resolve(request(), SPEC).seed for _ in range(50)]
    assert len(set(seeds)) > 45
    assert all(0 <= seed <= MAX_SEED for seed in seeds)
    assert max(seeds) > MAX_SEED // 2


@pytest.mark.parametrize(
    ("field", "value"),
    [("prompt", ""), ("prompt", None), ("prompt", 7), ("prompt", "a" * 2001), ("prompt", "a\x00b"), ("prompt", "\x1b"),
     ("prompt", "\ud800"), ("negative_prompt", None), ("negative_prompt", "\udfff"), ("model_version", 1),
     ("input_image", "yes"), ("input_image", 1), ("input_image", None), ("strength", 0), ("strength", 1.01),
     ("strength", "0.5"), ("width", "64"), ("width", 64.0), ("width", 7), ("width", True), ("height", 16385),
     ("num_inference_steps", 0), ("num_inference_steps", 1001), ("guidance_scale", -0.1),
     ("guidance_scale", float("nan")), ("guidance_scale", float("inf")), ("seed", -1), ("seed", 2**32),
     ("seed", 10**400), ("num_images", 0), ("num_images", None), ("output_format", "gif"), ("deadline_seconds", 0),
     ("deadline_seconds", 604_801), ("client_ref", "x" * 201), ("input_url", "x" * 1001), ("widht", 64),
     ("model_version", ""), ("input_url", ""), ("mask_url", "")],
)  # fmt: skip
def test_a_value_that_is_not_allowed_is_refused(field, value):
    with pytest.raises(ValidationError) as error:
        request(**{field: value})
    assert [e["loc"] for e in error.value.errors()] == [(field,)]


@pytest.mark.parametrize(
    ("field", "value"),
    [("prompt", "a" * 2000), ("prompt", "日没\n\t🦊"), ("seed", MAX_SEED), ("strength", 1), ("width", 16384),
     ("guidance_scale", 100), ("num_images", 100), ("deadline_seconds", 604_800), ("client_ref", "")],
)  # fmt: skip
def test_a_value_at_the_limit_is_allowed(field, value):
    assert getattr(request(**{field: value}), field) == value


def test_a_prompt_is_needed():
    with pytest.raises(ValidationError, match="prompt"):
        GenerateRequest.model_validate({})


def test_two_inputs_exclude_each_other():
    with pytest.raises(ValidationError, match="exclude each other"):
        request(input_image=True, input_url="gs://x/input/y")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"width": 136}, ["width"]),
        ({"height": 104}, ["height"]),
        ({"width": 60}, ["width"]),
        ({"height": 20}, ["height"]),
        ({"num_inference_steps": 21}, ["num_inference_steps"]),
        ({"guidance_scale": 9.5}, ["guidance_scale"]),
        ({"num_images": 3}, ["num_images"]),
        ({"width": 500, "height": 99, "num_images": 9}, ["width", "height", "num_images", "width", "height"]),
    ],
)
def test_each_limit_of_the_model_holds_and_all_are_told_together(fields, named):
    assert sorted(refused(**fields)) == sorted(named)


def test_the_limits_themselves_are_allowed():
    limits = {"width": 128, "height": 96, "num_inference_steps": 20, "guidance_scale": 9.0, "num_images": 2}
    assert resolve(request(**limits), SPEC).model_dump().items() >= limits.items()


def test_a_model_does_what_it_can_do_and_nothing_else():
    painter = SPEC.model_copy(update={"capabilities": ("img2img",)})
    sketcher = SPEC.model_copy(update={"capabilities": ("txt2img",)})
    for spec, fields in ((painter, {}), (sketcher, {"input_image": True}), (sketcher, {"input_url": "x"})):
        with pytest.raises(InvalidRequest, match="does not do"):
            resolve(request(**fields), spec)
    resolve(request(input_image=True), painter)
    resolve(request(), sketcher)


@pytest.mark.parametrize("source", [{"input_image": True}, {"input_url": "gs://x/input/y"}])
def test_a_strength_that_leaves_no_step_is_refused(source):
    assert refused(num_inference_steps=4, strength=0.2, **source) == ["strength"]
    assert resolve(request(num_inference_steps=4, strength=0.25, **source), SPEC).strength == 0.25


def test_a_strength_does_not_matter_without_an_input():
    assert resolve(request(num_inference_steps=1, strength=0.1), SPEC).strength == 0.1


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.sampled_from([*GenerateRequest.model_fields, "other"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers()),
    )
)
def test_whatever_comes_is_either_refused_or_becomes_parameters_within_the_limits(fields):
    try:
        params = resolve(GenerateRequest.model_validate(fields), SPEC)
    except (ValidationError, InvalidRequest):
        return
    assert 8 <= params.width <= 128
    assert params.width % 8 == params.height % 8 == 0
    assert 1 <= params.num_inference_steps <= 20
    assert 0 <= params.seed <= MAX_SEED
    params.model_dump_json().encode()
