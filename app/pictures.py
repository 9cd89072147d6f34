"""Pictures as bytes: reading what clients send, writing what the model made, with its provenance."""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from app.errors import InputInvalid
from app.schemas import Params

MAX_PIXELS = 64_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


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
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputInvalid(f"The input picture has more than {MAX_PIXELS} pixels.")
            upright = ImageOps.exif_transpose(image)
            return _on_white(upright)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        raise InputInvalid("The input is no picture that can be read (PNG, JPEG, WebP, GIF, BMP, TIFF).") from error


def _on_white(image: Image.Image) -> Image.Image:
    """Transparent parts become white: the model knows no transparency, and they would turn black."""
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
    for name, value in {**_recipe(params), "seed": str(seed), **provenance}.items():
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
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        return None


def _recipe(params: Params) -> dict[str, str]:
    recipe = params.model_dump(exclude={"seed", "num_images", "output_format", "input_url"})
    return {name: str(value) for name, value in recipe.items()}
