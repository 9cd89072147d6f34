"""Every family of models is loaded from files by the service's own code and gives pictures, on the CPU."""

import io

import pytest
import torch
from PIL import Image, ImageChops

from app.errors import ModelLoadFailed, SafetyBlocked
from app.models import loading, pipelines
from app.models.sources import weights_digest
from app.models.spec import ModelSpec
from app.pictures import encode
from tests.things import params
from tests.unit.models import folders
from tests.unit.models.conftest import FAMILIES

# torch hands its arrays to numpy in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")

ALL = ("txt2img", "img2img", "inpaint")


def spec(folder, **entry):
    entry = {"capabilities": ALL, "call": {}, **entry}
    return ModelSpec(model_version="tiny-scenes-1", source=str(folder), queue="gen.tiny", **entry)


@pytest.fixture
def load(made, on_cpu):
    """Loads a family's model as a worker does, with its warm-up."""

    def load(family, **entry):
        chosen = spec(made(family) if isinstance(family, str) else family, **entry)
        model = loading.load(chosen, on_cpu)
        loading.warm_up(model, chosen)
        return model

    return load


def draw(model, source=None, *mask, **changes):
    wanted = params(**{"num_inference_steps": 2, "prompt": "a red star", **changes})
    return list(model.generate(wanted, source, lambda *_: None, *mask))


def half_white(size=(64, 64)):
    mask = Image.new("L", size, "black")
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_makes_pictures_from_text_from_pictures_and_within_masks(load, family):
    model, red = load(family), Image.new("RGB", (100, 50), "red")
    for given in ((None,), (red,), (red, half_white())):
        [image] = draw(model, *given, width=64, height=48)
        assert (image.size, image.mode) == ((64, 48), "RGB")
        assert len(image.getcolors(10**6)) > 50


@pytest.mark.parametrize("family", FAMILIES)
def test_a_request_makes_the_same_picture_each_time_and_another_seed_another(load, family):
    model = load(family)
    first, again, other = (draw(model, seed=seed)[0].tobytes() for seed in (1, 1, 2))
    assert first == again != other


def test_each_of_several_pictures_is_the_one_its_seed_makes_alone(load):
    model = load("stable-diffusion")
    together = [image.tobytes() for image in draw(model, seed=7, num_images=3)]
    assert together == [draw(model, seed=seed)[0].tobytes() for seed in (7, 8, 9)]


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_made_together_are_those_that_are_made_alone(load, family):
    model = load(family)
    jobs = [params(prompt=prompt, seed=seed, num_inference_steps=2) for prompt, seed in (("a red star", 1), ("", 9))]
    told = [[], []]
    together = model.together(jobs, [lambda *step, own=own: own.append(step[:2]) for own in told])
    alone = [image for job in jobs for image in model.generate(job, None, lambda *_: None)]
    assert [difference(*pair) <= 1 for pair in zip(together, alone, strict=True)] == [True, True]
    assert difference(*together) > 1
    assert [own[-1] for own in told] == [(2, 2), (2, 2)]


def test_a_negative_prompt_is_heeded_for_its_own_picture_only(load):
    model = load("stable-diffusion")
    jobs = [params(num_inference_steps=2, negative_prompt=words) for words in ("", "a blue star")]
    together = model.together(jobs, [lambda *_: None] * 2)
    assert difference(together[0], *draw(model, prompt=jobs[0].prompt)) <= 1
    assert difference(*together) > 1


def difference(one, other):
    """The largest difference of two pictures in any channel of any pixel."""
    return max(most for _, most in ImageChops.difference(one, other).getextrema())


def test_an_interrupted_picture_leaves_nothing_in_the_next_one(load):
    model = load("stable-diffusion", schedulers=["PNDMScheduler"])
    expected = draw(model, scheduler="PNDMScheduler")[0].tobytes()

    def stop(*_):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        list(model.generate(params(scheduler="PNDMScheduler"), None, stop))
    assert draw(model, scheduler="PNDMScheduler")[0].tobytes() == expected


@pytest.mark.parametrize(
    "change",
    [
        {"negative_prompt": "blue"},
        {"guidance_scale": 9.0},
        {"prompt": "a cat"},
        {"num_inference_steps": 3},
        {"scheduler": "EulerAncestralDiscreteScheduler"},
    ],
)
def test_every_wish_of_a_request_reaches_the_model(load, change):
    model = load("stable-diffusion", schedulers=["EulerAncestralDiscreteScheduler"])
    assert draw(model)[0].tobytes() != draw(model, **change)[0].tobytes()


def test_strength_decides_how_much_of_the_input_picture_is_left(load):
    model, noise = load("stable-diffusion"), Image.effect_noise((64, 64), 100).convert("RGB")
    little, much = (draw(model, noise, strength=s, num_inference_steps=10)[0].tobytes() for s in (0.2, 1.0))
    assert little != much


def test_what_the_mask_keeps_is_kept_to_the_pixel(load):
    red = Image.new("RGB", (64, 64), "red")
    [image] = draw(load("sdxl"), red, half_white())
    assert image.crop((32, 0, 64, 64)).getcolors() == [(32 * 64, (255, 0, 0))]
    assert len(image.crop((0, 0, 32, 64)).getcolors(10**6)) > 50


@pytest.mark.parametrize("family", FAMILIES)
def test_progress_goes_up_to_the_end(load, family):
    model, seen = load(family), []
    list(
        model.generate(
            params(num_images=2, num_inference_steps=3), None, lambda step, steps, _: seen.append((step, steps))
        )
    )
    assert seen == [(step, 6) for step in range(1, 7)]


def test_a_picture_says_which_scheduler_weights_and_device_made_it(load, made):
    model = load("stable-diffusion", schedulers=["EulerDiscreteScheduler"])
    asked = params(scheduler="EulerDiscreteScheduler", num_inference_steps=1)
    [image] = model.generate(asked, None, lambda *_: None)
    with Image.open(io.BytesIO(encode(image, asked, 0, model.provenance).data)) as picture:
        info = picture.info
    assert info["scheduler"] == "EulerDiscreteScheduler"
    assert (info["weights_sha256"], info["device"]) == (weights_digest(made("stable-diffusion")), "cpu (1 threads)")


def test_a_flagged_picture_is_an_error_and_never_a_black_picture(tmp_path, load, on_cpu):
    folder = folders.stable_diffusion(tmp_path / "checked", checker=folders.safety_checker())
    [image] = draw(load(folder, safety_checker=True))
    assert image.getextrema() != ((0, 0),) * 3
    folders.flag_everything(folder)
    with pytest.raises(SafetyBlocked) as blocked:
        draw(loading.load(spec(folder, safety_checker=True), on_cpu), num_images=2)
    assert blocked.value.flagged == [True, True]


def test_a_flagged_picture_among_several_is_its_own_jobs_error_alone(tmp_path, load, on_cpu):
    folder = folders.stable_diffusion(tmp_path / "checked", checker=folders.safety_checker())
    folders.flag_everything(folder)
    model = loading.load(spec(folder, safety_checker=True), on_cpu)
    first, second = model.together([params(num_inference_steps=1)] * 2, [lambda *_: None] * 2)
    assert isinstance(first, SafetyBlocked)
    assert isinstance(second, SafetyBlocked)


def test_a_checker_that_flags_the_first_picture_keeps_no_worker_from_starting(tmp_path, on_cpu):
    folder = folders.stable_diffusion(tmp_path / "checked", checker=folders.safety_checker())
    folders.flag_everything(folder)
    entry = spec(folder, safety_checker=True)
    loading.warm_up(loading.load(entry, on_cpu), entry)


def test_parts_of_three_dimensions_keep_their_layout_and_others_get_that_of_tensor_cores():
    flat, deep = torch.nn.Conv2d(4, 4, 3), torch.nn.Conv3d(4, 4, 3)
    for part in (flat, deep):
        pipelines.lay_out(part)
    assert flat.weight.is_contiguous(memory_format=torch.channels_last)
    assert deep.weight.is_contiguous()


def test_a_checker_that_is_not_wanted_is_not_loaded(tmp_path, load):
    folder = folders.stable_diffusion(tmp_path / "checked", checker=folders.safety_checker())
    folders.flag_everything(folder)
    assert draw(load(folder))[0].getextrema() != ((0, 0),) * 3


def test_a_checker_that_is_wanted_must_be_there(load):
    with pytest.raises(ModelLoadFailed, match="asks for a safety checker"):
        load("sdxl", safety_checker=True)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"schedulers": ["FlowMatchEulerDiscreteScheduler"]}, "cannot run with FlowMatchEulerDiscreteScheduler"),
        ({"schedulers": ["NoSuchScheduler"]}, "cannot run with NoSuchScheduler"),
        # What diffusers has in its place here wants scipy.
        ({"schedulers": ["LMSDiscreteScheduler"]}, "cannot run with LMSDiscreteScheduler here"),
        ({"pipeline": "NoSuchPipeline"}, "has no NoSuchPipeline"),
        ({"weights_sha256": "0" * 64}, "the catalogue says 0000"),
        ({"variant": {"cpu": "fp16"}}, "cannot be loaded"),
    ],
)
def test_an_entry_that_does_not_fit_its_folder_is_refused_in_one_sentence(load, entry, reason):
    with pytest.raises(ModelLoadFailed, match=reason) as refused:
        load("stable-diffusion", **entry)
    assert "tiny-scenes-1" in str(refused.value)


def test_a_folder_that_is_not_there_is_one_clear_sentence(tmp_path, load):
    with pytest.raises(ModelLoadFailed, match=r"tiny-scenes-1 is not in .*nowhere"):
        load(tmp_path / "nowhere")


def test_weights_that_run_code_are_not_loaded(copied, load):
    folder = copied("stable-diffusion")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save({}, weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(ModelLoadFailed, match="safetensors"):
        load(folder)


def test_half_precision_files_of_a_variant_run_on_a_cpu(tmp_path, load):
    folder = folders.stable_diffusion(tmp_path / "half", variant="fp16")
    assert draw(load(folder, variant={"cpu": "fp16"}))[0].size == (64, 64)


def test_numbers_that_overflow_are_an_error_and_never_a_black_picture(load):
    model = load("stable-diffusion")
    model._base.unet.conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(Exception, match="overflowed"):
        draw(model)


# diffusers' own pipeline calls what it means to take away.
@pytest.mark.filterwarnings("ignore:.*upcast_vae:FutureWarning")
def test_a_decoder_whose_memory_ran_out_decodes_the_next_picture(load, monkeypatch):
    """Some families decode half-precision latents in full, and put that back only when it went well."""
    model = load("sdxl", dtype={"cpu": "float16"})
    before = draw(model)[0]
    with monkeypatch.context() as full:
        full.setattr(model._base.vae, "decode", runs_out)
        with pytest.raises(torch.OutOfMemoryError):
            draw(model)
    assert draw(model)[0].tobytes() == before.tobytes()


def runs_out(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory.")


def test_frugal_pictures_look_the_same_and_leave_no_trace(load):
    model = load("stable-diffusion")
    before = draw(model)[0]
    with model.frugal():
        frugal = draw(model)[0]
    assert draw(model)[0].tobytes() == before.tobytes()
    far = max(high for _, high in Image.frombytes("RGB", (64, 64), bytes(
        abs(a - b) for a, b in zip(before.tobytes(), frugal.tobytes(), strict=True))).getextrema())  # fmt: skip
    assert far <= 2
