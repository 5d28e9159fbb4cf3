"""Real files made with Pillow in every mode that a product archive may hold, and files that are none."""

import io
import random
import struct
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image, features

from abo_pipeline import decoding
from abo_pipeline.archive import Archive
from abo_pipeline.decoding import FORMATS, MAX_ASPECT, decode, decode_pixels
from abo_pipeline.errors import ImageError

LIMIT = 50_000_000

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 128, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def file_of(image: Image.Image, file_type: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_type, **options)
    return buffer.getvalue()


def flag(size: tuple[int, int] = (48, 32), mode: str = "RGB") -> Image.Image:
    """Four quarters of different colours, so that every turn of the picture looks different."""
    image = Image.new("RGB", size, RED)
    width, height = size[0] // 2, size[1] // 2
    image.paste(GREEN, (width, 0, size[0], height))
    image.paste(BLUE, (0, height, width, size[1]))
    image.paste(WHITE, (width, height, size[0], size[1]))
    return image.convert(mode)


def quarters(image: Image.Image) -> list[tuple[int, ...]]:
    """The colours in the middle of the four quarters."""
    x, y = image.width // 4, image.height // 4
    return [image.getpixel(place) for place in ((x, y), (3 * x, y), (x, 3 * y), (3 * x, 3 * y))]


def colours(data: bytes) -> set[tuple[int, int, int]]:
    """The colours of a picture, once decoded."""
    image = decode(data, max_pixels=LIMIT)
    assert image.mode == "RGB"
    return {colour for _, colour in image.getcolors(maxcolors=1 << 24)}


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def refusal(data: bytes, max_pixels: int = LIMIT) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data, max_pixels=max_pixels)
    return str(caught.value)


@pytest.fixture(autouse=True, params=["simplejpeg", "Pillow alone"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """All of this holds with simplejpeg, and where it is not installed."""
    if request.param == "Pillow alone":
        monkeypatch.setattr(decoding, "_simplejpeg", lambda: None)
    else:
        assert decoding._simplejpeg() is not None
    return request.param


def with_segment(jpeg: bytes, *segments: tuple[int, bytes]) -> bytes:
    """A JPEG with more segments before its pixels: markers and what they hold."""
    more = b"".join(bytes([0xFF, marker]) + (len(held) + 2).to_bytes(2) + held for marker, held in segments)
    return jpeg[:2] + more + jpeg[2:]


def test_a_picture_is_turned_by_xmp_and_by_exif_however_late_it_comes():
    plain = file_of(flag(), "JPEG", quality=95)
    xmp = (
        b'http://ns.adobe.com/xap/1.0/\x00<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="r">'
        b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    )
    long = (0xEC, b"x" * 60_000)

    of_xmp = decode(with_segment(plain, (0xE1, xmp)), max_pixels=LIMIT)
    of_late_exif = decode(with_segment(plain, long, long, (0xE1, turned(6).tobytes())), max_pixels=LIMIT)
    of_neither = decode(with_segment(plain, long, long, (0xFE, b"Exif, as a remark")), max_pixels=LIMIT)

    assert (of_xmp.size, of_late_exif.size, of_neither.size) == ((32, 48), (32, 48), (48, 32))


def test_both_decoders_give_the_same_pixels(decoder, sample, tmp_path, monkeypatch):
    with Archive.open(sample.archive, tmp_path) as archive:
        rows = archive.index.filter(pl.col("member").str.ends_with(".jpg")).iter_rows(named=True)
        files = [archive.read_at(row["offset"], row["size"]) for row in rows]

    def every() -> list[bytes]:
        found = []
        for data in files:
            try:
                found.append(decode(data, max_pixels=LIMIT).tobytes())
            except ImageError as error:
                found.append(str(error).encode())
        return found

    here = every()
    monkeypatch.setattr(decoding, "_simplejpeg", lambda: None)

    assert len(files) > 100
    assert here == every(), decoder


def test_as_an_array_every_file_is_the_same_picture_or_the_same_error(sample, tmp_path):
    def outcome(decoded: Callable[..., Any], data: bytes) -> object:
        try:
            return np.asarray(decoded(data, max_pixels=LIMIT)).tolist()
        except ImageError as error:
            return str(error)

    with Archive.open(sample.archive, tmp_path) as archive:
        files = [archive.read_at(row["offset"], row["size"]) for row in archive.index.iter_rows(named=True)]

    assert len(files) > 100
    assert [outcome(decode_pixels, data) for data in files] == [outcome(decode, data) for data in files]


@pytest.mark.parametrize("file_type", ["JPEG", "PNG"])
def test_an_array_may_be_written_to(file_type):
    array = decode_pixels(file_of(flag(), file_type), max_pixels=LIMIT)

    assert (array.shape, array.dtype, array.flags.writeable) == ((32, 48, 3), np.uint8, True)


# --- Every file type and mode ---


@pytest.mark.parametrize(
    ("file_type", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_deflate"}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_a_file_without_loss_comes_out_as_it_went_in(file_type, options):
    noise = Image.effect_noise((40, 30), 90).convert("RGB")

    image = decode(file_of(noise, file_type, **options), max_pixels=LIMIT)

    assert (image.mode, image.size) == ("RGB", (40, 30))
    assert np.array_equal(pixels(image), pixels(noise))


@pytest.mark.parametrize(
    ("file_type", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"subsampling": 0, "optimize": True}),
        ("WEBP", {}),
        ("MPO", {"save_all": True, "append_images": [Image.new("RGB", (48, 32))]}),
    ],
)
def test_a_file_with_loss_comes_out_nearly_as_it_went_in(file_type, options):
    image = decode(file_of(flag(), file_type, quality=95, **options), max_pixels=LIMIT)

    assert (image.mode, image.size) == ("RGB", (48, 32))
    assert np.abs(np.array(quarters(image)) - np.array([RED, GREEN, BLUE, WHITE])).max() <= 4


def test_grey_becomes_three_equal_channels():
    grey = flag(mode="L")

    for file_type in ("JPEG", "PNG", "TIFF", "BMP"):
        image = decode(file_of(grey, file_type, quality=100), max_pixels=LIMIT)
        channels = pixels(image).astype(int)
        assert image.mode == "RGB"
        assert np.abs(channels - pixels(grey)[:, :, None]).max() <= 2
        assert np.ptp(channels, axis=2).max() == 0


@pytest.mark.parametrize("file_type", ["PNG", "BMP", "TIFF", "GIF"])
def test_one_bit_is_black_and_white(file_type):
    one_bit = Image.new("1", (10, 10), 0)
    one_bit.putpixel((3, 4), 1)

    image = decode(file_of(one_bit, file_type), max_pixels=LIMIT)

    assert (image.getpixel((3, 4)), image.getpixel((4, 3))) == (WHITE, BLACK)
    assert image.mode == "RGB"


@pytest.mark.parametrize("file_type", ["PNG", "GIF", "BMP", "TIFF"])
def test_a_palette_is_looked_up(file_type):
    indexed = flag().quantize(4)

    image = decode(file_of(indexed, file_type), max_pixels=LIMIT)

    assert (indexed.mode, image.mode) == ("P", "RGB")
    assert quarters(image) == [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize("file_type", ["JPEG", "TIFF"])
def test_inks_become_light(file_type):
    # Pillow writes a CMYK JPEG as Adobe does: with the inks inverted, and marked so.
    data = file_of(flag(mode="CMYK"), file_type, quality=100)

    image = decode(data, max_pixels=LIMIT)

    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    assert (b"Adobe" in data) is (file_type == "JPEG")
    assert image.mode == "RGB"
    assert np.abs(np.array(quarters(image)) - np.array([RED, GREEN, BLUE, WHITE])).max() <= 4


@pytest.mark.parametrize("mode", ["YCbCr", "LAB"])
def test_other_colour_spaces_of_tiff_become_rgb(mode):
    grey = Image.new(mode, (4, 4), (128, 128, 128))

    image = decode(file_of(grey, "TIFF"), max_pixels=LIMIT)

    assert image.mode == "RGB"
    assert np.ptp(pixels(image).astype(int), axis=2).max() <= 1


# --- Transparency ---


@pytest.mark.parametrize(
    ("image", "file_type", "options", "seen"),
    [
        (Image.new("RGBA", (4, 4), (255, 0, 0, 0)), "PNG", {}, WHITE),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 255)), "PNG", {}, RED),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 128)), "PNG", {}, (255, 127, 127)),
        (Image.new("RGBA", (4, 4), (0, 0, 0, 0)), "WEBP", {"lossless": True, "exact": True}, WHITE),
        (Image.new("RGBA", (4, 4), (0, 0, 0, 0)), "TIFF", {}, WHITE),
        (Image.new("LA", (4, 4), (0, 0)), "PNG", {}, WHITE),
        (Image.new("LA", (4, 4), (0, 128)), "PNG", {}, (127, 127, 127)),
        (Image.new("LA", (4, 4), (0, 255)), "TIFF", {}, BLACK),
        (Image.new("L", (4, 4), 7), "PNG", {"transparency": 7}, WHITE),
        (Image.new("L", (4, 4), 7), "PNG", {"transparency": 8}, (7, 7, 7)),
        (Image.new("1", (4, 4), 0), "PNG", {"transparency": 0}, WHITE),
        (Image.new("RGB", (4, 4), RED), "PNG", {"transparency": RED}, WHITE),
        (Image.new("RGB", (4, 4), RED), "PNG", {"transparency": BLUE}, RED),
    ],
)
def test_transparency_is_laid_on_white(image, file_type, options, seen):
    assert colours(file_of(image, file_type, **options)) == {seen}


@pytest.mark.parametrize(
    ("file_type", "transparency", "seen"),
    [
        ("PNG", None, RED),
        ("PNG", 1, WHITE),
        ("PNG", b"\xff\x80", (255, 127, 127)),
        ("PNG", 0, RED),
        ("GIF", 1, WHITE),
        ("GIF", None, RED),
    ],
)
def test_a_palette_with_transparency_is_laid_on_white(file_type, transparency, seen):
    indexed = Image.new("P", (4, 4), 1)
    indexed.putpalette([*BLACK, *RED, *[0] * 750])
    options = {} if transparency is None else {"transparency": transparency}

    assert colours(file_of(indexed, file_type, **options)) == {seen}


def test_only_what_is_transparent_becomes_white():
    image = flag(mode="RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 24, 16))

    assert quarters(decode(file_of(image, "PNG"), max_pixels=LIMIT)) == [WHITE, GREEN, BLUE, WHITE]


# --- More than 8 bits ---


def sixteen_bits(values: list[int], file_type: str, byte_order: str) -> bytes:
    raw = np.array([values], dtype=f"{byte_order}u2").tobytes()
    mode = {"<": "I;16", ">": "I;16B"}[byte_order]
    image = Image.frombytes(mode, (len(values), 1), raw)
    return file_of(image if file_type == "TIFF" else image.convert("I").convert("I;16"), file_type)


@pytest.mark.parametrize(("file_type", "byte_order"), [("PNG", "<"), ("TIFF", "<"), ("TIFF", ">")])
def test_sixteen_bits_are_scaled_to_eight(file_type, byte_order):
    values = [0, 127, 257, 16_448, 32_768, 49_087, 65_279, 65_535]

    image = decode(sixteen_bits(values, file_type, byte_order), max_pixels=LIMIT)

    assert image.mode == "RGB"
    assert [image.getpixel((x, 0)) for x in range(len(values))] == [
        (level, level, level) for level in (0, 0, 1, 64, 128, 191, 254, 255)
    ]


def test_a_dark_picture_of_sixteen_bits_stays_dark():
    assert colours(sixteen_bits([0, 255, 512], "PNG", "<")) == {(0, 0, 0), (1, 1, 1), (2, 2, 2)}


def test_a_ramp_of_sixteen_bits_is_that_of_eight():
    ramp = np.linspace(0, 65_535, 256 * 4).astype(np.uint16).reshape(32, 32)

    image = decode(file_of(Image.fromarray(ramp), "PNG"), max_pixels=LIMIT)

    assert np.abs(pixels(image)[:, :, 0].astype(int) - np.round(ramp / 257)).max() <= 1


@pytest.mark.parametrize("white", [1, 255, 65_535])
def test_floats_are_scaled_from_what_they_count_as_white(white):
    samples = np.array([[0, 0.25, 0.5, 1]], dtype=np.float32) * white

    image = decode(file_of(Image.fromarray(samples), "TIFF"), max_pixels=LIMIT)

    assert [image.getpixel((x, 0))[0] for x in range(4)] == [0, 64, 128, 255]


@pytest.mark.parametrize("samples", [[np.nan], [np.inf], [-np.inf], [-5.0], [0.0], [np.nan, 1.0]])
def test_odd_floats_are_some_picture(samples):
    image = Image.fromarray(np.array([samples], dtype=np.float32))

    assert decode(file_of(image, "TIFF"), max_pixels=LIMIT).mode == "RGB"


@pytest.mark.parametrize(
    ("samples", "seen"), [([0, 32_768, 65_535], [0, 128, 255]), ([0, 2**30, 2**31 - 1], [0, 128, 255]), ([-9], [0])]
)
def test_whole_numbers_of_32_bits_are_scaled_too(samples, seen):
    image = decode(file_of(Image.fromarray(np.array([samples], dtype=np.int32)), "TIFF"), max_pixels=LIMIT)

    assert [image.getpixel((x, 0))[0] for x in range(len(seen))] == seen


# --- Animations ---


@pytest.mark.parametrize(("file_type", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})])
def test_of_an_animation_the_first_frame_counts(file_type, options):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]

    data = file_of(frames[0], file_type, save_all=True, append_images=frames[1:], **options)

    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert colours(data) == {RED}


def test_a_tiff_of_several_pages_is_its_first():
    pages = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN)]

    assert colours(file_of(pages[0], "TIFF", save_all=True, append_images=pages[1:])) == {RED}


def gif_of_noise() -> bytes:
    frames = [Image.effect_noise((32, 32), spread) for spread in (40, 90)]
    return file_of(frames[0], "GIF", save_all=True, append_images=frames[1:])


def test_a_later_frame_that_is_broken_is_not_looked_at():
    whole = gif_of_noise()

    cut = decode(whole[:-100], max_pixels=LIMIT)

    assert np.array_equal(pixels(cut), pixels(decode(whole, max_pixels=LIMIT)))


def test_a_gif_whose_first_frame_is_broken_is_refused():
    whole = gif_of_noise()

    assert refusal(whole[: len(whole) // 3]).startswith("cannot be decoded: image file is truncated")


# --- Orientation ---


TURNS = {
    1: [RED, GREEN, BLUE, WHITE],
    2: [GREEN, RED, WHITE, BLUE],
    3: [WHITE, BLUE, GREEN, RED],
    4: [BLUE, WHITE, RED, GREEN],
    5: [RED, BLUE, GREEN, WHITE],
    6: [BLUE, RED, WHITE, GREEN],
    7: [WHITE, GREEN, BLUE, RED],
    8: [GREEN, WHITE, RED, BLUE],
}
"""What a viewer shows of the flag for each orientation of EXIF: its quarters row by row."""


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("file_type", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", TURNS)
def test_orientation_is_applied(file_type, orientation):
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(file_type, {})

    image = decode(file_of(flag(), file_type, exif=turned(orientation), **options), max_pixels=LIMIT)

    assert image.size == ((48, 32) if orientation < 5 else (32, 48))
    assert np.abs(np.array(quarters(image)) - np.array(TURNS[orientation])).max() <= 3


@pytest.mark.parametrize("orientation", [0, 9, 99])
def test_an_orientation_that_does_not_exist_turns_nothing(orientation):
    assert quarters(decode(file_of(flag(), "PNG", exif=turned(orientation)), max_pixels=LIMIT)) == TURNS[1]


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"garbage",
        b"II*\0\xff\xff\xff\xff",
        b"MM\0*\0\0\0\x08\0\xff" + b"\xff" * 30,
        b"II*\0\x08\0\0\0\x01\0\x12\x01",
    ],
)
@pytest.mark.parametrize("file_type", ["JPEG", "PNG", "WEBP"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data", "ignore:Truncated File Read", "ignore:Tag data larger")
def test_exif_that_cannot_be_read_does_not_cost_the_picture(file_type, exif):
    image = decode(file_of(flag(), file_type, quality=95, exif=b"Exif\0\0" + exif), max_pixels=LIMIT)

    assert image.size == (48, 32)
    assert np.abs(np.array(quarters(image)) - np.array(TURNS[1])).max() <= 8


@pytest.mark.parametrize("orientation", [1, 6])
def test_an_extreme_strip_is_turned_as_well(orientation):
    strip = file_of(flag((400, 10)), "PNG", exif=turned(orientation))

    image = decode(strip, max_pixels=LIMIT)

    assert image.size == ((160, 10) if orientation == 1 else (10, 160))
    assert quarters(image) == TURNS[orientation]


# --- Extreme strips ---


@pytest.mark.parametrize(
    ("size", "fitted"),
    [
        ((1, 256), (1, 16)),
        ((256, 1), (16, 1)),
        ((30, 500), (30, 480)),
        ((2000, 10), (160, 10)),
        ((16, 256), (16, 256)),
        ((256, 16), (256, 16)),
        ((1, 1), (1, 1)),
        ((1, 17), (1, 16)),
    ],
)
def test_a_strip_is_cut_to_sixteen_times_its_width(size, fitted):
    assert MAX_ASPECT == 16
    assert decode(file_of(Image.new("RGB", size), "PNG"), max_pixels=LIMIT).size == fitted


@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA", "CMYK"])
def test_what_is_kept_of_a_strip_is_its_middle(mode):
    strip = Image.new("RGB", (10, 1000), BLUE)
    strip.paste(RED, (0, 420, 10, 580))

    data = file_of(strip.convert(mode), "TIFF")

    assert colours(data) == {RED}
    assert decode(data, max_pixels=LIMIT).size == (10, 160)


def test_a_strip_with_transparency_is_still_laid_on_white():
    indexed = Image.new("P", (4, 400), 1)
    indexed.putpalette([*BLACK, *RED, *[0] * 750])

    assert colours(file_of(indexed, "PNG", transparency=1)) == {WHITE}


# --- Limits ---


def png(width: int, height: int, pixel_data: bytes = b"", bits: int = 1) -> bytes:
    """A grey PNG with these words in its header, whatever its data."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", pixel_data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def compressed_zeros(count: int) -> bytes:
    """As ``zlib.compress(bytes(count))`` for whole MiB, without making them: a block that is flushed repeats."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    end = zlib.compressobj(9, zlib.DEFLATED, -15).flush()
    return b"\x78\xda" + block * (count >> 20) + end + struct.pack(">I", (count % 65521) << 16 | 1)


def test_zeros_are_compressed_as_zlib_unpacks_them():
    assert zlib.decompress(compressed_zeros(3 << 20)) == bytes(3 << 20)


@pytest.mark.parametrize(("max_pixels", "size"), [(1200, (40, 30)), (1199, None), (1_000_000, (40, 30)), (1, None)])
def test_the_limit_is_the_largest_number_of_pixels_that_is_decoded(max_pixels, size):
    data = file_of(Image.new("RGB", (40, 30)), "PNG")

    if size:
        assert decode(data, max_pixels=max_pixels).size == size
    else:
        assert refusal(data, max_pixels) == f"40×30 pixels are more than the limit of {max_pixels:,}"


def test_a_file_too_large_is_refused_by_its_header_alone():
    # There are no pixels in this file: to look for them would give another message.
    assert refusal(png(9000, 9000)) == "9000×9000 pixels are more than the limit of 50,000,000"
    assert refusal(png(9000, 9000), 81_000_000).startswith("cannot be decoded: ")


def test_a_small_file_of_3600_million_pixels_is_refused_before_it_fills_the_memory():
    bomb = png(60_000, 60_000, compressed_zeros(450_100_000))
    started = time.perf_counter()

    message = refusal(bomb)

    assert len(bomb) < 1_000_000
    assert message.startswith("cannot be decoded: Image size (3600000000 pixels) exceeds limit of ")
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize("side", [9_000, 65_535])
def test_a_gif_whose_frame_is_larger_than_its_screen_is_measured_by_the_frame(side):
    data = bytearray(file_of(Image.new("P", (4, 4)), "GIF"))
    frame = data.index(b",")
    data[frame + 5 : frame + 9] = struct.pack("<HH", side, side)

    assert refusal(bytes(data)) in (
        "9000×9000 pixels are more than the limit of 50,000,000",
        "cannot be decoded: Image size (4294836225 pixels) exceeds limit of 178956970 pixels, "
        "could be decompression bomb DOS attack.",
    )


def test_a_large_picture_within_the_limit_raises_no_warning(recwarn):
    # Pillow's own limit is at 89 million pixels.
    image = decode(file_of(Image.new("1", (9_500, 9_500)), "PNG"), max_pixels=100_000_000)

    assert image.size == (9_500, 9_500)
    assert list(recwarn) == []


# --- What is no picture ---


def test_an_empty_file_is_refused():
    assert refusal(b"") == "the file is empty"


@pytest.mark.parametrize(
    ("data", "beginning"),
    [
        (b"just text under the name of a jpg", "b'just tex'"),
        (b"<!DOCTYPE html>", "b'<!DOCTYP'"),
        (b"\xff", r"b'\xff'"),
        (b"\0" * 100, r"b'\x00\x00\x00\x00\x00\x00\x00\x00'"),
        (b"%PDF-1.7", "b'%PDF-1.7'"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "b'<svg xml'"),
    ],
)
def test_what_is_no_picture_is_named_by_its_beginning(data, beginning):
    assert refusal(data) == f"not a picture: it begins with {beginning}"


@pytest.mark.parametrize("file_type", ["EPS", "PPM", "ICO", "PCX", "TGA"])
def test_other_types_that_pillow_knows_are_not_opened(file_type):
    data = file_of(Image.new("RGB", (16, 16)), file_type)

    assert refusal(data) == f"not a picture: it begins with {data[:8]!r}"


def test_every_type_that_is_opened_is_there_in_this_pillow():
    Image.init()

    assert set(FORMATS) <= set(Image.OPEN)
    assert features.check("webp")
    assert features.check("libtiff")


@pytest.mark.parametrize("file_type", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_file_that_is_cut_is_refused(file_type, share):
    whole = file_of(Image.effect_noise((64, 64), 90).convert("RGB"), file_type)

    message = refusal(whole[: int(len(whole) * share)])

    assert message.startswith(("cannot be decoded: ", "not a picture: it begins with "))


def test_a_truncated_jpeg_says_so():
    whole = file_of(Image.effect_noise((64, 64), 90).convert("RGB"), "JPEG")

    assert refusal(whole[: len(whole) // 2]).startswith("cannot be decoded: image file is truncated (")


@pytest.mark.parametrize("file_type", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_any_damage_gives_a_picture_or_an_error_of_ours(file_type):
    draw = random.Random(file_type)  # noqa: S311 - no secret
    whole = file_of(flag(), file_type, exif=turned(6)) if file_type in ("JPEG", "PNG") else file_of(flag(), file_type)
    refused = 0

    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(draw.choice((1, 3, 10))):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        try:
            assert decode(bytes(damaged), max_pixels=1_000_000).mode == "RGB"
        except ImageError:
            refused += 1

    assert 0 < refused < 200
