"""Input pictures and masks of every common kind, and requests that need them."""

import pytest

from app.callers import ANYONE
from app.errors import InputInvalid, InvalidRequest, NoWorker
from app.intake import Intake, mask_name
from app.models import load_catalogue
from app.params import resolve
from app.pictures import decode, decode_mask
from app.schemas import GenerateRequest
from tests.things import picture


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("JPEG", "CMYK"), ("JPEG", "L"), ("WEBP", "RGBA"), ("AVIF", "RGB"), ("GIF", "P"), ("BMP", "RGB"), ("TIFF", "I;16"),
     ("PNG", "LA"), ("PNG", "I;16"), ("PNG", "1")],
)  # fmt: skip
def test_a_picture_of_any_common_kind_is_read(kind, mode):
    data = picture((20, 10), 0 if mode in ("I;16", "1", "L", "P") else "white", mode=mode, kind=kind)
    assert (decode(data).mode, decode(data).size, decode_mask(data).mode) == ("RGB", (20, 10), "L")


def test_a_picture_that_would_fill_the_memory_is_refused_by_its_size():
    bomb = picture((20000, 20000), 0, mode="1")
    assert len(bomb) < 100_000
    with pytest.raises(InputInvalid, match="more than 64000000 pixels"):
        decode(bomb)


def test_sixteen_bits_a_pixel_are_scaled():
    assert decode(picture(colour=0x8000, mode="I;16")).getpixel((0, 0)) == (128, 128, 128)


def test_what_is_transparent_in_a_mask_is_painted_anew():
    assert decode_mask(picture(colour=(0, 0, 0, 0), mode="RGBA")).getpixel((0, 0)) == 255


@pytest.mark.parametrize(
    "fields",
    [{"mask_image": True}, {"mask_url": "x"}, {"mask_image": True, "mask_url": "x", "input_image": True}],
)
def test_a_mask_without_its_picture_or_twice_is_refused(fields):
    with pytest.raises(ValueError, match="mask"):
        GenerateRequest(prompt="x", **fields)


@pytest.mark.parametrize(
    ("model", "fields", "field"),
    [
        ("sd-turbo", {"guidance_scale": 5.0}, "guidance_scale"),
        ("sd-turbo", {"negative_prompt": "blue"}, "negative_prompt"),
        ("sd-turbo", {"input_image": True, "mask_image": True}, "mask_image"),
        ("sdxl-base-1.0", {"width": 2048, "height": 2048}, "width"),
        ("sdxl-base-1.0", {"scheduler": "NoScheduler"}, "scheduler"),
        ("flux.1-schnell", {"width": 1000}, "width"),
    ],
)
def test_what_a_model_cannot_do_is_refused_by_field(model, fields, field):
    with pytest.raises(InvalidRequest) as refused:
        resolve(GenerateRequest(prompt="x", **fields), load_catalogue("config/models.yaml").get(model))
    assert [error["field"] for error in refused.value.errors] == [field]


@pytest.fixture
def submit(services):
    return lambda **fields: Intake(services).submit(GenerateRequest(prompt="x", **fields), ANYONE)


def test_a_job_with_a_mask_to_come_waits_for_it(services, submit, published):
    given = services.storage.url_of("output/earlier.png")
    accepted, intake = submit(input_url=given, mask_image=True), Intake(services)
    job = accepted.job
    assert (accepted.upload, accepted.mask_upload.method) == (None, "PUT")
    assert (intake.start_if_uploaded(job), published) == (False, [])
    services.storage.put(mask_name(job.task_id), picture(), "image/png")
    assert (intake.start_if_uploaded(job), len(published)) == (True, 1)


def test_without_a_worker_a_job_is_accepted_with_a_word_or_refused(submit):
    assert "No worker serves tiny-scenes-1 now" in submit().notice
    with pytest.raises(NoWorker):
        submit(model_version="sd-turbo")
