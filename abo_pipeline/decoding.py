"""Bytes → pixels: one picture, upright, in RGB, within limits.

Whatever a product archive holds comes out as 8-bit RGB, or as an ``ImageError`` that says why not. Fitting the picture
to a model's input (resize, crop, normalise) is the model's own affair and stays in ``encoder``.
"""

import io
import warnings

from PIL import Image, ImageOps, UnidentifiedImageError

from abo_pipeline.errors import ImageError

DECODING = "rgb-1"
"""Version of what this module makes of a file. It is part of an embedding space's fingerprint: change it with the
pixels."""

MAX_ASPECT = 16
"""A picture longer than this many times its width is cut to its middle: CLIP looks at the central square only, and
scaling the short side of a 1×256 strip up to 224 pixels would make the long one 57,344."""


def decode(data: bytes, *, max_pixels: int) -> Image.Image:
    """The first frame of a JPEG, PNG, WebP, GIF, BMP or TIFF file, as RGB.

    Orientation from EXIF is applied; transparency is laid on white, as shops show it; 16-bit greyscale is scaled to 8
    bits.

    Args:
        data: a whole file.
        max_pixels: a picture of more is refused before its pixels are unpacked, so that a small file cannot fill the
            memory.

    Raises:
        ImageError: the file is empty, no picture, broken, or too large.
    """
    if not data:
        raise ImageError("the file is empty")
    try:
        with warnings.catch_warnings():
            # Pillow warns of the same thing at a limit of its own; ours is checked below, and is an error.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
            if image.width * image.height > max_pixels:
                raise ImageError(f"{image.width}×{image.height} pixels are more than the limit of {max_pixels:,}")
            image.load()
            return _rgb(ImageOps.exif_transpose(_middle(image)))
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"not a picture: it begins with {data[:8]!r}") from None
    except Exception as error:
        # Pillow's plugins raise almost anything on broken input: OSError, ValueError, SyntaxError, struct.error,
        # EOFError …
        raise ImageError(f"cannot be decoded: {error or type(error).__name__}") from error


def _middle(image: Image.Image) -> Image.Image:
    """Cut an extreme strip to ``MAX_ASPECT``, around its centre."""
    width = min(image.width, image.height * MAX_ASPECT)
    height = min(image.height, image.width * MAX_ASPECT)
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    exif = image.info.get("exif")
    cut = image.crop((left, top, left + width, top + height))
    if exif:
        cut.info["exif"] = exif
    return cut


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith(("I", "F")):
        return _eight_bits(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit samples scaled to 0–255; Pillow's own conversion would clip them, and make nearly everything white."""
    return image.convert("F").point(lambda value: value * (255 / 65535)).convert("L")
