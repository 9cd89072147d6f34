"""Pictures as bytes: reading what clients send, writing what the model made, with its provenance."""

import hashlib
import io
import re
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from PIL import Image
from PIL.ExifTags import Base
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import PREFIXES, STRIPOFFSETS, TILEOFFSETS, ImageFileDirectory_v2

from app.errors import InputInvalid
from app.params import Params

# Decoded, a pixel takes up to four bytes, and a picture is copied a few times on its way to the model.
MAX_PIXELS = 64_000_000
# A progressive JPEG has about ten; each costs a pass over all pixels, however few bytes it is. libtiff's bound too.
MAX_SCANS = 100
# Pillow makes objects of all segments of a JPEG and of all strips of a TIFF before it knows how large the picture is:
# gigabytes, where millions of them have one byte each. 64k strips are as many as such a picture has rows.
MAX_SEGMENTS = 100_000
# Of these it makes one, copying what it has for each: a file has one, or a few.
MAX_EXIF_SEGMENTS = 64
MAX_STRIP_BYTES = 4 * 65_536
# What may begin a segment; within a scan FF is followed by 00 or D0 to D7.
_SEGMENT = re.compile(rb"\xff[\xc0-\xcf\xda-\xfe]")
_EXIF_SEGMENT = re.compile(rb"\xff\xe1..Exif\0\0", re.DOTALL)
# Within a scan FF 00 is a byte; FF 01 and FF D0 to FF D8 have no length behind them; more FF before a marker fill up.
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")
_SCAN, _END = b"\xda", b"\xd9"
# The version of a TIFF whose header has 16 bytes.
_BIG = 43
# EXIF's orientations, and what sets each upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


@dataclass(frozen=True)
class Picture:
    """An encoded picture: the seed it was made from, its PNG bytes, its size in pixels."""

    seed: int
    data: bytes
    width: int
    height: int

    @property
    def sha256(self) -> str:
        """The digest of the bytes, in hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()


def decode(data: bytes) -> Image.Image:
    """An input picture, upright, in RGB on white; raises InputInvalid for what is no picture or too large."""
    return _opened(data, "RGB", "input")


def decode_mask(data: bytes) -> Image.Image:
    """A mask, upright, in grey: white is painted anew, and so is what is transparent. Raises InputInvalid."""
    return _opened(data, "L", "mask")


def _opened(data: bytes, mode: str, what: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Pillow warns of what our own bound refuses, and of tags that no one here reads.
            warnings.simplefilter("ignore")
            _check_parts(data, what)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_size(image, what)
                _check_scans(image, data, what)
                _check_depth(image, what)
                return _on_white(_upright(image)).convert(mode)
    except InputInvalid:
        raise
    except Image.DecompressionBombError:
        raise _too_many_pixels(what) from None
    except Exception as error:  # whatever strange bytes make Pillow's decoders raise, the bytes are to blame
        formats = ", ".join(FORMATS)
        raise InputInvalid(f"The {what} is no picture that can be read ({formats}).") from error


def _check_parts(data: bytes, what: str) -> None:
    if data[:2] == b"\xff\xd8" and (
        _many(_SEGMENT, data, MAX_SEGMENTS) or _many(_EXIF_SEGMENT, data, MAX_EXIF_SEGMENTS)
    ):
        raise InputInvalid(f"The {what} is a JPEG of too many segments.")
    if data[:4] in PREFIXES and _strip_bytes(data) > MAX_STRIP_BYTES:
        raise InputInvalid(f"The {what} is a TIFF of too many strips or tiles; save it with larger ones.")


def _many(part: re.Pattern[bytes], data: bytes, most: int) -> bool:
    return len(list(islice(part.finditer(data), most + 1))) > most


def _strip_bytes(data: bytes) -> int:
    """Of the list of them, read as Pillow reads it."""
    directory = ImageFileDirectory_v2(data[: 16 if data[2] == _BIG else 8])
    file = io.BytesIO(data)
    file.seek(directory.next)
    directory.load(file)
    raw = directory._tagdata  # noqa: SLF001, in the open they are numbers already, each an object
    return max(len(raw.get(tag, b"")) for tag in (STRIPOFFSETS, TILEOFFSETS))


def _check_size(image: Image.Image, what: str) -> None:
    """Before anything is decoded: a small file may hold a picture that fills the memory."""
    if image.width * image.height > MAX_PIXELS:
        raise _too_many_pixels(what)


def _check_scans(image: Image.Image, data: bytes, what: str) -> None:
    if image.format in ("JPEG", "MPO") and _scans(data) > MAX_SCANS:
        raise InputInvalid(f"The {what} is a JPEG of more than {MAX_SCANS} scans.")


def _scans(data: bytes) -> int:
    """From segment to segment up to the end: behind it phones put a film, and a segment may hold a small picture."""
    scans, at = 0, 2
    while (found := _MARKER.search(data, at)) and found[1] != _END:
        scans += found[1] == _SCAN
        length = data[found.end() : found.end() + 2]
        at = found.end() + int.from_bytes(length, "big")
    return scans


def _check_depth(image: Image.Image, what: str) -> None:
    """Which of such numbers is white, a file does not say: read as 16 bits, it would be all black or all white."""
    if image.mode in ("I", "F"):
        raise InputInvalid(f"The {what} has 32 bits a channel or signed numbers; save it with 8 or 16 bits.")


def _too_many_pixels(what: str) -> InputInvalid:
    return InputInvalid(f"The {what} has more than {MAX_PIXELS} pixels.")


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its camera says. An orientation that cannot be read is none.

    Not by ImageOps.exif_transpose: it writes all other tags anew, which are as many as a client likes.
    """
    image.load()
    with suppress(Exception):
        return image.transpose(_TURNS[image.getexif()[Base.Orientation]])
    return image


def _on_white(image: Image.Image) -> Image.Image:
    """Transparent parts become white: the model knows no transparency, and they would turn black."""
    if image.mode.startswith("I;16"):
        # Sixteen bits a pixel; Pillow would cut the upper half off instead of scaling it. It asks for this form.
        image = image.convert("F").point(lambda value: value / 256 + 0).convert("L")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    ground = Image.new("RGBA", layer.size, "white")
    ground.alpha_composite(layer)
    return ground.convert("RGB")


def encode(image: Image.Image, params: Params, index: int, provenance: Mapping[str, str]) -> Picture:
    """The picture as PNG. Its text chunks say how to make it again."""
    seed = params.seed + index
    chunks = PngInfo()
    for name, value in {**provenance, **_recipe(params), "seed": str(seed)}.items():
        chunks.add_text(name, value)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=chunks)
    return Picture(seed, buffer.getvalue(), image.width, image.height)


def reread(data: bytes, params: Params, index: int) -> Picture | None:
    """The picture of an earlier attempt; None when these bytes are not that picture."""
    seed = params.seed + index
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            image.load()
            same = image.info.get("seed") == str(seed) and image.info.get("prompt") == params.prompt
            return Picture(seed, data, image.width, image.height) if same else None
    except Exception:  # noqa: BLE001, see _opened
        return None


# What a picture does not depend on, is told otherwise, or leads to what may be gone.
_NO_PART = {"seed", "seed_drawn", "num_images", "output_format", "input_url", "mask_url", "priority"}


def _recipe(params: Params) -> dict[str, str]:
    recipe = params.model_dump(exclude=_NO_PART, exclude_none=True)
    return {name: str(value) for name, value in recipe.items()}
