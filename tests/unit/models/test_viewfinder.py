"""A preview is a small picture of what is being made; looking costs the picture nothing."""

from types import SimpleNamespace

import pytest
import torch
from PIL import ImageChops, ImageStat

from app.models import loading
from app.models.spec import ModelSpec
from app.models.viewfinder import Viewfinder
from tests.stack import ROOT
from tests.things import params
from tests.unit.models.conftest import FAMILIES

# torch hands its arrays to numpy in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")

SCHEDULERS = ("DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")


def load(folder, settings, **entry):
    return loading.load(ModelSpec(model_version="m", source=str(folder), queue="q", **entry), settings)


def watched(model, **changes):
    """The finished picture, and what was to be seen after each step."""
    seen = []
    [image] = model.generate(
        params(**{"num_inference_steps": 4, **changes}), None, lambda _, __, look=None: look and seen.append(look())
    )
    return image, seen


def difference(one, other):
    """Mean difference of two pictures, in levels of 255."""
    return sum(ImageStat.Stat(ImageChops.difference(one, other.resize(one.size))).mean) / 3


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_looked_at_and_makes_the_same_picture(made, on_cpu, family):
    model = load(made(family), on_cpu)
    image, seen = watched(model, width=64, height=48)
    [unseen] = model.generate(params(num_inference_steps=4, width=64, height=48), None, lambda *_: None)
    assert image.tobytes() == unseen.tobytes()
    assert len(seen) == 4
    assert {(look.mode, look.width / look.height) for look in seen} == {("RGB", 64 / 48)}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_tiny_autoencoder_shows_the_picture_as_it_comes(on_cpu, scheduler):
    model = load(ROOT / "app/models/tiny_scenes/weights", on_cpu, schedulers=SCHEDULERS)
    image, seen = watched(model, prompt="a large yellow star on a purple background", scheduler=scheduler)
    distances = [difference(image, look) for look in seen]
    assert distances[-1] < 2
    assert distances[-1] < distances[1] < 90


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_of_jobs_that_are_made_together_each_sees_its_own_picture(on_cpu, scheduler):
    model = load(ROOT / "app/models/tiny_scenes/weights", on_cpu, schedulers=SCHEDULERS)
    prompts = ["a large yellow star on a purple background", "a small green tree on a white background"]
    jobs = [params(prompt=prompt, num_inference_steps=4, scheduler=scheduler) for prompt in prompts]
    seen = [[], []]
    images = model.together(jobs, [lambda _, __, look=None, own=own: look and own.append(look()) for own in seen])
    for image, looks in zip(images, seen, strict=True):
        assert difference(image, looks[-1]) < 2


def test_a_model_whose_latents_are_no_picture_has_no_previews_and_works():
    assert not Viewfinder(SimpleNamespace(vae=None, vae_scale_factor=8)).can_see
    assert not Viewfinder(SimpleNamespace()).can_see


class Mixing(torch.nn.Module):
    """An encoder that keeps the mean colour of each place, mixed into four channels as no person would read it."""

    config = SimpleNamespace(scaling_factor=0.2, shift_factor=0.1)
    mix = torch.tensor([[0.3, -1.0, 0.5, 0.1], [0.7, 0.2, -0.4, 0.9], [-0.6, 0.1, 0.8, 0.3]])

    def encode(self, picture):
        latents = torch.einsum("bchw,cl->blhw", torch.nn.functional.avg_pool2d(picture, 8), self.mix) + 0.5
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: latents))


def test_the_colours_of_a_large_autoencoder_are_read_from_its_latents():
    scheduler = SimpleNamespace(config={}, timesteps=[])
    pipeline = SimpleNamespace(vae=Mixing(), vae_scale_factor=8, scheduler=scheduler)
    picture = torch.full((1, 3, 64, 64), -1.0)
    picture[:, 0, :, :32], picture[:, 2, :, 32:] = 1, 1
    latents = (pipeline.vae.encode(picture).latent_dist.mode() - 0.1) * 0.2
    look = Viewfinder(pipeline).look(pipeline, latents, None, (64, 64))
    assert look.size == (8, 8)
    assert look.getpixel((1, 4)) == (255, 0, 0)
    assert look.getpixel((6, 4)) == (0, 0, 255)
