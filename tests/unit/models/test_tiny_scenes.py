"""The bundled model's words, drawings, training and export."""

import itertools
import random

import numpy as np
import pytest
from click.testing import CliRunner

from app.models.tiny_scenes import grammar
from app.models.tiny_scenes.captions import captioned_scene, spoken
from app.models.tiny_scenes.drawing import draw
from app.models.tiny_scenes.grammar import COLOURS, NOUNS, SYNONYMS, Scene, caption, parse, random_scene


def scenes(count, seed=0):
    rng = random.Random(seed)
    return [random_scene(rng) for _ in range(count)]


def share_near(colour, pixels):
    """The share of (N, 3) pixels whose three channels are about those of a named colour."""
    return (abs(pixels - COLOURS[colour]).sum(axis=1) < 110).mean()


def test_a_caption_reads_back_as_its_scene():
    for scene in scenes(200):
        size = None if scene.size == "medium" else scene.size  # medium goes without saying
        assert parse(caption(scene)) == Scene(scene.noun, scene.colour, scene.background, size)


def test_every_wording_of_a_caption_reads_back_as_the_same_scene():
    rng = random.Random(1)
    for scene in scenes(300, seed=1):
        assert parse(spoken(scene, rng)) == parse(caption(scene))


def test_articles_agree_with_the_word_that_follows():
    rng = random.Random(2)
    for words in (captioned_scene(rng)[1].split() for _ in range(500)):
        for article, after in itertools.pairwise(words):
            if article in {"a", "an"}:
                assert (article == "an") == (after[0] in "aeiou"), " ".join(words)


def test_every_other_word_stands_for_a_word_that_is_known():
    assert set(SYNONYMS.values()) <= {*COLOURS, *NOUNS, "small", "large"}


def test_example_prompts_are_the_same_for_the_same_seed():
    first, again, other = (grammar.example_prompts(5, seed) for seed in (3, 3, 4))
    assert first == again != other


@pytest.mark.parametrize("noun", NOUNS)
def test_a_drawing_has_the_colours_that_its_scene_names(noun):
    picture = draw(Scene(noun, "blue", "yellow", "large"), random.Random(5))
    pixels = np.asarray(picture, dtype=float).reshape(-1, 3)
    assert share_near("yellow", pixels) > 0.3
    assert share_near("blue", pixels) > 0.08


def test_a_drawing_is_the_same_for_the_same_random_numbers():
    scene = Scene("star", "red", "white")
    assert draw(scene, random.Random(6)).tobytes() == draw(scene, random.Random(6)).tobytes()


# ---- training


@pytest.fixture(scope="module")
def tokenizer():
    from app.models.tiny_scenes.tokenizer import build_tokenizer

    return build_tokenizer()


def test_every_word_of_the_grammar_is_one_token(tokenizer):
    for word in (*COLOURS, *NOUNS, *SYNONYMS, "background", "on", "a"):
        assert len(tokenizer(word).input_ids) == 3, word  # with the start's and the end's


def test_words_that_nobody_taught_are_spelt_out(tokenizer):
    numbers = tokenizer("a zebra in grün").input_ids
    assert tokenizer.decode(numbers, skip_special_tokens=True).strip() == "a zebra in grün"


def test_the_autoencoder_starts_by_carrying_the_picture_through():
    import torch

    from app.models.tiny_scenes.autoencoder import build_autoencoder, decibels
    from app.models.tiny_scenes.pictures import scenes as pictures

    torch.manual_seed(0)
    assert decibels(build_autoencoder(), pictures(4, seed=1)[0]) > 20


class Noise:
    """Latents and text states that need neither pictures nor words."""

    def batch(self, _seen, count, generator, _hidden):
        import torch

        shapes = ((count, 4, 16, 16), (count, 32, 128))
        return tuple(torch.randn(shape, generator=generator) for shape in shapes)


@pytest.fixture
def one_thread():
    """Two threads that wait for each other take minutes where other tests keep the cores busy."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def diffusion_run(monkeypatch):
    import torch

    from app.models.tiny_scenes import diffusion

    monkeypatch.setattr(diffusion, "BATCH", 2)
    torch.manual_seed(0)
    return diffusion.unet_run(diffusion.build_unet(), Noise())


@pytest.mark.usefixtures("one_thread")
def test_a_training_that_was_interrupted_ends_in_the_same_weights(monkeypatch, tmp_path):
    import torch

    whole = diffusion_run(monkeypatch)
    losses = [whole.step() for _ in range(4)]
    first = diffusion_run(monkeypatch)
    assert [first.step(), first.step()] == losses[:2]
    first.save(tmp_path / "unet.pt")
    second = diffusion_run(monkeypatch)
    assert second.load(tmp_path / "unet.pt")
    assert [second.step(), second.step()] == losses[2:]
    for weight, again in zip(whole.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(weight, again)
    for average, again in zip(whole.averages, second.averages, strict=True):
        assert torch.equal(average, again)


def test_a_training_without_a_checkpoint_starts_at_the_beginning(monkeypatch, tmp_path):
    run = diffusion_run(monkeypatch)
    assert not run.load(tmp_path / "unet.pt")
    assert run.samples == 0


def test_the_learning_rate_rises_stays_and_falls():
    from app.models.tiny_scenes.diffusion import STEADY, WARM_UP, learning_rate

    assert learning_rate(0) < learning_rate(WARM_UP // 2) < learning_rate(WARM_UP) == learning_rate(STEADY)
    assert learning_rate(STEADY) > learning_rate(2 * STEADY) > 0


def test_what_was_never_trained_is_not_exported(tmp_path):
    from app.models.tiny_scenes import train

    arguments = ["--checkpoints", str(tmp_path / "none"), "--samples", "0", "--out", str(tmp_path / "out")]
    told = CliRunner().invoke(train.main, arguments)
    assert (told.exit_code, "train first" in told.output, list(tmp_path.iterdir())) == (1, True, [])


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own, about numpy
def test_an_exported_folder_loads_in_diffusers_and_gives_a_picture(tokenizer, tmp_path):
    import torch
    from diffusers import StableDiffusionPipeline

    from app.models.tiny_scenes.autoencoder import build_autoencoder
    from app.models.tiny_scenes.diffusion import build_unet
    from app.models.tiny_scenes.export import export
    from app.models.tiny_scenes.text_encoder import build_text_encoder

    parts = {"unet": build_unet(), "vae": build_autoencoder(), "text_encoder": build_text_encoder(tokenizer)}
    export(tmp_path / "weights", tokenizer=tokenizer, **parts)
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "weights", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("a red circle on a blue background", width=128, height=128, num_inference_steps=1).images[0]
    assert picture.size == (128, 128)


@pytest.mark.usefixtures("one_thread")
def test_a_decoder_that_is_trained_on_leaves_the_latents_alone():
    import torch

    from app.models.tiny_scenes.autoencoder import build_autoencoder, encode
    from app.models.tiny_scenes.pictures import scenes as pictures
    from app.models.tiny_scenes.sharpen import sharpen_run

    torch.manual_seed(0)
    network, some = build_autoencoder(), pictures(4, seed=1)[0]
    before, run = encode(network, some), sharpen_run(network, some, samples=1000)
    weights = [weight.clone() for weight in network.decoder.parameters()]
    run.step()
    assert torch.equal(encode(network, some), before)
    assert not all(map(torch.equal, weights, network.decoder.parameters()))


# ---- the judge


@pytest.mark.usefixtures("one_thread")
def test_the_judge_names_the_colours_of_a_drawing():
    from app.models.tiny_scenes.judge import build_reader, drawings, judge, shares

    pictures, wanted = drawings(60, seed=7)
    found = shares(wanted, judge(build_reader().eval(), pictures))
    assert found["background"] == 1
    assert found["colour"] > 0.95


def test_outlines_do_not_depend_on_the_colours():
    import torch

    from app.models.tiny_scenes.judge import outlines
    from app.models.tiny_scenes.pictures import as_tensor

    painted = [Scene("star", "red", "white", "large"), Scene("star", "white", "black", "large")]
    two = [draw(scene, random.Random(8)) for scene in painted]
    first, second = outlines(torch.stack([as_tensor(picture) for picture in two]))
    assert (first - second).abs().mean() < 0.12
