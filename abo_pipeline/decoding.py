"""Bytes → pixels: one picture, upright, in RGB, within limits.

Whatever a product archive holds comes out as 8-bit RGB, or as an ``ImageError`` that says why not. Fitting the picture
to a model's input (resize, crop, normalise) is for ``preparation``, or the model's own affair.

Where simplejpeg is installed, plain JPEGs are decoded by it: the same pixels, in half of the time and without holding
up other threads, which matters beside a GPU. Whatever it does not take as it is, is Pillow's, and so is every error.
"""

import importlib
import importlib.util
import io
import struct
import warnings
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from abo_pipeline.errors import ImageError

DECODING = "rgb-1"
"""Version of what this module makes of a file. It is part of an embedding space's fingerprint: change it with the
pixels."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""What Pillow may open. It knows more, and hands some of that to other programs: PostScript to Ghostscript."""

_JPEG = b"\xff\xd8\xff"
_SCAN, _EXIF_OR_XMP = 0xDA, 0xE1
_BARE_MARKERS = (0x01, *range(0xD0, 0xD8))
"""Of JPEG (ITU-T T.81, table B.1): where the pixels begin; what may say how to turn them; what has no length."""

MAX_ASPECT = 16
"""A picture longer than this many times its width is cut to its middle: CLIP looks at the central square only, and
scaling the short side of a 1×256 strip up to 224 pixels would make the long one 57,344."""


Pixels = NDArray[np.uint8]
"""A picture in RGB: (height, width, 3)."""


def decode(data: bytes, *, max_pixels: int) -> Image.Image:
    """The first frame of a JPEG, PNG, WebP, GIF, BMP or TIFF file, as RGB.

    Orientation from EXIF is applied; transparency is laid on white, as shops show it; greyscale of more than 8 bits is
    scaled to them.

    Args:
        data: a whole file.
        max_pixels: a picture of more is refused before its pixels are unpacked, so that a small file cannot fill the
            memory.

    Raises:
        ImageError: the file is empty, no picture, broken, or too large.
    """
    plain = _plain_jpeg(data, max_pixels)
    return _decode(data, max_pixels) if plain is None else Image.fromarray(plain)


def decode_pixels(data: bytes, *, max_pixels: int) -> Pixels:
    """The same as an array, which may be written to.

    A plain JPEG does not become an image of Pillow's first. Copying it there and back takes a quarter of the time that
    a picture needs before it is at a GPU, and no other thread can do anything meanwhile.
    """
    plain = _plain_jpeg(data, max_pixels)
    return np.array(_decode(data, max_pixels)) if plain is None else plain


def _decode(data: bytes, max_pixels: int) -> Image.Image:
    """Any file, by Pillow."""
    if not data:
        raise ImageError("the file is empty")
    try:
        with warnings.catch_warnings():
            # Pillow warns of the same thing at a limit of its own; ours is checked below, and is an error.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > max_pixels:
                raise ImageError(f"{image.width}×{image.height} pixels are more than the limit of {max_pixels:,}")
            image.load()
            return _rgb(_upright(_middle(image)))
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"not a picture: it begins with {data[:8]!r}") from None
    except Exception as error:
        # Pillow's plugins raise almost anything on broken input: OSError, ValueError, SyntaxError, struct.error,
        # EOFError …
        raise ImageError(f"cannot be decoded: {error or type(error).__name__}") from error


@cache
def _simplejpeg() -> Any:
    """The module; None where it is not installed."""
    return importlib.import_module("simplejpeg") if importlib.util.find_spec("simplejpeg") else None


def _plain_jpeg(data: bytes, max_pixels: int) -> Pixels | None:
    """A JPEG in which nothing is to be looked at but its pixels; None for all else."""
    simplejpeg = _simplejpeg()
    if simplejpeg is None or not data.startswith(_JPEG) or _may_be_turned(data):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        is_strip = max(height, width) > MAX_ASPECT * min(height, width)
        if colours not in ("YCbCr", "Gray") or height * width > max_pixels or is_strip:
            return None
        # As Pillow does it: exactly, and with smooth colours.
        pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)
        return pixels
    except ValueError:
        return None


def _may_be_turned(jpeg: bytes) -> bool:
    """Whether anything before the pixels may say that the picture is to be turned, or cannot be understood."""
    place = 2
    while place + 4 <= len(jpeg) and jpeg[place] == 0xFF:
        marker = jpeg[place + 1]
        if marker == _SCAN:
            return False
        if marker == _EXIF_OR_XMP:
            return True
        if marker == 0xFF:
            place += 1
        elif marker in _BARE_MARKERS:
            place += 2
        else:
            place += 2 + int.from_bytes(jpeg[place + 2 : place + 4])
    return True


def _middle(image: Image.Image) -> Image.Image:
    """Cut an extreme strip to ``MAX_ASPECT``, around its centre."""
    width = min(image.width, image.height * MAX_ASPECT)
    height = min(image.height, image.width * MAX_ASPECT)
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _upright(image: Image.Image) -> Image.Image:
    """Turned as EXIF says. EXIF that cannot be read turns nothing: every browser shows such a picture."""
    try:
        return ImageOps.exif_transpose(image)
    except (SyntaxError, ValueError, OSError, struct.error):
        return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return _eight_bits(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Larger samples scaled to 0–255; Pillow's own conversion would clip them, and make nearly everything white.

    Whole numbers go up to 65,535; floats up to 1, or else to 255 or 65,535, whichever holds the brightest.
    """
    samples = image.convert("F")
    brightest = float(samples.getextrema()[1])  # type: ignore[arg-type]  # a pair of pairs is for several bands
    whites = (65535,) if image.mode.startswith("I") else (1, 255, 65535)
    scale = 255 / next((white for white in whites if brightest <= white), brightest)
    return samples.point(lambda value: value * scale + 0.5).convert("L")
