"""The same loading code on a GPU: half precision, its memory, and what happens when that runs out."""

import pytest
import torch

from app.errors import GpuOutOfMemory
from app.models import devices, loading
from app.models.residency import Residents
from app.models.spec import ModelSpec
from app.settings import Settings
from tests.things import params
from tests.unit.models import folders

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA: torch sees no GPU here"),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning"),
]

FAMILIES = {
    "stable-diffusion": (folders.stable_diffusion, {}),
    "sdxl": (folders.sdxl, {}),
    "sd3": (folders.sd3, {"dtype": {"cuda": "bfloat16"}}),
    "flux": (folders.flux, {"dtype": {"cuda": "bfloat16"}}),
}


@pytest.fixture
def settings(tmp_path):
    key = "a key that nobody uses but the tests"
    return Settings(storage_url=f"file://{tmp_path}", signing_key=key, device="cuda")


@pytest.fixture
def spec(tmp_path):
    def make(family, **more):
        write, entry = FAMILIES[family]
        source = str(write(tmp_path / family))
        return ModelSpec(model_version="tiny-scenes-1", source=source, queue="q", **entry, **more)

    return make


def draw(model, **changes):
    return list(model.generate(params(**{"num_inference_steps": 2, **changes}), None, lambda *_: None))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_makes_the_same_picture_twice_on_the_gpu(spec, settings, family):
    model = loading.load(spec(family), settings)
    first, again = draw(model)[0], draw(model)[0]
    assert len(first.getcolors(10**6)) > 50
    assert first.tobytes() == again.tobytes()


def test_weights_lie_on_the_gpu_in_the_layout_of_tensor_cores(spec, settings):
    model = loading.load(spec("stable-diffusion"), settings)
    weight = model._base.unet.conv_in.weight
    assert (weight.device.type, weight.dtype) == ("cuda", torch.float16)
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_a_compiled_model_makes_a_picture(spec, settings):
    assert len(draw(loading.load(spec("stable-diffusion", compile=True), settings))) == 1


def test_a_model_that_goes_gives_its_memory_back(spec, settings):
    models = Residents([spec("stable-diffusion")], settings)
    models.load_all()
    held = torch.cuda.memory_allocated()
    models._evict_all()
    assert torch.cuda.memory_allocated() < held


def test_a_picture_beyond_the_gpus_memory_is_refused_and_a_small_one_follows(spec, settings):
    models = Residents([spec("stable-diffusion", limits={"width": 65536, "height": 65536})], settings)
    models.load_all()
    torch.cuda.set_per_process_memory_fraction(0.02)
    try:
        with pytest.raises(GpuOutOfMemory):
            draw(models["tiny-scenes-1"], width=32768, height=32768, num_inference_steps=1)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert len(draw(models["tiny-scenes-1"])) == 1


def test_the_gpu_is_told_by_its_name(settings):
    assert torch.cuda.get_device_name() in devices.describe("cuda")
