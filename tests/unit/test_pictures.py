"""Pictures as bytes: what is accepted, how it is read, and what a finished one tells about itself."""

import hashlib
import io
import struct
import zlib
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from app.errors import InputInvalid
from app.pictures import FORMATS, decode, decode_mask, encode, reread
from tests.things import params, picture


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_that_is_promised_is_read(name):
    image = decode(picture((20, 10), "blue", kind=name))
    red, _, blue = image.getpixel((5, 5))
    assert (image.size, image.mode, red < 20, blue > 235) == ((20, 10), "RGB", True, True)


@pytest.mark.parametrize("name", ["PPM", "ICO", "PDF"])
def test_any_other_format_is_refused(name):
    with pytest.raises(InputInvalid):
        decode(picture(kind=name))


@pytest.mark.parametrize("orientation", range(10))
def test_a_photograph_is_turned_upright(orientation):
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.linear_gradient("L").resize((20, 10)).rotate(20).convert("RGB").save(buffer, "PNG", exif=exif)
    with Image.open(buffer) as image:
        assert decode(buffer.getvalue()).tobytes() == ImageOps.exif_transpose(image).tobytes()


def test_a_photograph_taken_on_its_side_is_turned_the_right_way():
    source = Image.new("RGB", (20, 10), "blue")
    source.paste("red", (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    source.save(buffer, "PNG", exif=exif)
    upright = decode(buffer.getvalue())
    assert (upright.getpixel((5, 2)), upright.getpixel((5, 17))) == ((255, 0, 0), (0, 0, 255))


@pytest.mark.parametrize(("mode", "colour"), [("RGBA", (0, 0, 0, 0)), ("LA", (0, 0))], ids=["colour", "grey"])
def test_what_is_transparent_becomes_white(mode, colour):
    assert decode(picture(mode=mode, colour=colour)).getpixel((5, 5)) == (255, 255, 255)


def test_what_is_half_transparent_becomes_pale():
    assert decode(picture(mode="RGBA", colour=(255, 0, 0, 128))).getpixel((5, 5)) == (255, 127, 127)


def test_a_palette_with_a_transparent_colour_becomes_white():
    source, buffer = Image.new("P", (9, 9), 1), io.BytesIO()
    source.putpalette([0, 0, 0, 255, 0, 0])
    source.save(buffer, "PNG", transparency=1)
    assert decode(buffer.getvalue()).getpixel((5, 5)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [("L", 90, 90), ("1", 1, 255), ("CMYK", (0, 0, 0, 0), 255), ("P", 0, None)],
)
def test_every_kind_of_pixel_becomes_rgb(mode, colour, expected):
    image = decode(picture(mode=mode, colour=colour, kind="TIFF"))
    assert image.mode == "RGB"
    assert expected is None or image.getpixel((5, 5))[0] == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("data", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"<svg/>", b"\xff\xd8\xff"])
def test_what_is_no_picture_is_refused(data):
    with pytest.raises(InputInvalid):
        decode(data)


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_a_picture_that_was_cut_off_is_refused(name):
    whole = picture((200, 200), kind=name)
    with pytest.raises(InputInvalid):
        decode(whole[: len(whole) // 2])


def bomb(width, height):
    """A PNG that says it is so large; its data is not there."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    made = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


@pytest.mark.parametrize("side", [8001, 9500, 14_000, 60_000])
def test_a_bomb_is_refused_before_it_is_unpacked(side):
    with pytest.raises(InputInvalid):
        decode(bomb(side, side))


def test_it_is_the_mask_that_is_named_where_the_mask_is_at_fault():
    for data in (b"no picture", bomb(64_001, 1000)):
        with pytest.raises(InputInvalid, match="The input "):
            decode(data)
        with pytest.raises(InputInvalid, match="The mask "):
            decode_mask(data)


def test_the_largest_picture_is_measured_in_pixels_not_sides():
    with pytest.raises(InputInvalid, match="no picture that can be read"):
        decode(bomb(64_000, 1000))
    with pytest.raises(InputInvalid, match="more than 64000000 pixels"):
        decode(bomb(64_001, 1000))


def test_a_small_picture_that_would_take_minutes_to_decode_is_refused_at_once():
    whole = picture((200, 200), kind="JPEG", progressive=True)
    assert decode(whole).size == (200, 200)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    # Each pass over all pixels costs but these few bytes.
    with pytest.raises(InputInvalid, match="more than 100 scans"):
        decode(whole[:-2] + 100 * last + whole[-2:])
    # Nor are they hidden behind a marker without a length.
    with pytest.raises(InputInvalid, match="more than 100 scans"):
        decode(whole[:-2] + 100 * (b"\xff\x01" + last) + whole[-2:])


def strips(count):
    """A TIFF of three pixels a row that lists so many strips, each one byte."""
    fields = [(256, 3), (257, count), (258, 8), (259, 1), (262, 1), (277, 1), (278, 1), (279, 3)]
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields]
    entries.insert(5, struct.pack("<HHII", 273, 1, count, 8))
    where = 8 + count + count % 2
    head = b"II*\0" + struct.pack("<I", where) + bytes(where - 8)
    return head + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)


def test_a_file_of_millions_of_parts_is_refused_before_they_are_counted_out():
    assert decode(strips(1000)).size == (3, 1000)
    with pytest.raises(InputInvalid, match="TIFF of too many strips"):
        decode(strips(300_000))
    head, rest = (whole := picture((8, 8), kind="JPEG"))[:2], whole[2:]
    with pytest.raises(InputInvalid, match="too many segments"):
        # None is an end to Pillow, which looks for a scan.
        decode(head + b"\xff\xd9" + 100_000 * b"\xff\xe0\x00\x02" + rest)
    exif = b"\xff\xe1\x00\x08Exif\0\0"
    assert decode(head + 9 * exif + rest).size == (8, 8)
    with pytest.raises(InputInvalid, match="too many segments"):
        decode(head + 65 * exif + rest)


def test_what_looks_like_a_scan_beside_or_behind_the_picture_is_none():
    whole, like = picture((200, 200), kind="JPEG"), 200 * b"\xff\xda\x00\x04"
    comment = b"\xff\xfe" + struct.pack(">H", 2 + len(like)) + like
    # A phone's film lies behind the end.
    assert decode(whole[:2] + comment + whole[2:] + like).size == (200, 200)


@pytest.mark.parametrize("name", ["PNG", "TIFF"])
def test_a_grey_picture_of_sixteen_bits_keeps_its_greys(name):
    assert decode(picture(mode="I;16", colour=0x4000, kind=name)).getpixel((5, 5)) == (64, 64, 64)


@pytest.mark.parametrize(("mode", "colour"), [("I", 2**30), ("F", 0.5)])
def test_a_picture_of_32_bits_is_refused_rather_than_read_as_all_black_or_all_white(mode, colour):
    with pytest.raises(InputInvalid, match="32 bits a channel"):
        decode(picture(mode=mode, colour=colour, kind="TIFF"))


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(FORMATS),
    st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=8),
    st.booleans(),
)
def test_a_damaged_picture_is_read_or_refused_and_nothing_else(name, damages, early):
    data = bytearray(picture((9, 9), kind=name))
    for place, value in damages:
        data[int(place * min(len(data), 40 if early else len(data)))] = value
    with suppress(InputInvalid):
        assert decode(bytes(data)).mode == "RGB"


def made(index=0, **changes):
    return encode(Image.new("RGB", (64, 64), "red"), params(**changes), index, {"scheduler": "DDIM"})


def test_a_picture_knows_its_seed_size_and_digest():
    result = made(index=2)
    assert (result.seed, result.width, result.height) == (44, 64, 64)
    assert result.sha256 == hashlib.sha256(result.data).hexdigest()


@pytest.mark.parametrize("prompt", ["a red star", "où est la mer?", "日没の海 🦊", "a\nb\tc", " spaces ", "=" * 2000])
def test_a_picture_tells_how_to_make_it_again_in_any_script(prompt):
    with Image.open(io.BytesIO(made(prompt=prompt).data)) as image:
        info = image.info
    assert (info["prompt"], info["seed"], info["scheduler"]) == (prompt, "42", "DDIM")
    assert {"width", "height", "num_inference_steps", "guidance_scale", "strength", "model_version"} <= set(info)


def test_the_same_picture_has_the_same_bytes():
    assert made().data == made().data


def test_an_earlier_picture_is_known_by_its_seed_and_prompt():
    data = made(index=1).data
    assert reread(data, params(), 1) == made(index=1)
    assert reread(data, params(), 0) is None
    assert reread(data, params(prompt="another"), 1) is None
    assert reread(data, params(seed=7), 1) is None


@pytest.mark.parametrize(
    "data", [b"", b"no picture", made().data[:-30], made().data[:60], picture(), bomb(20_000, 20_000)]
)
def test_what_is_not_that_earlier_picture_is_not_taken(data):
    assert reread(data, params(), 0) is None
