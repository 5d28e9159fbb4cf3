"""An archive like Amazon Berkeley Objects, of drawn products: small, free, and with the real one's awkward cases.

Here belong the layout of the two tars, the choice of products and listings, and the awkward cases (`AWKWARD_CASES`).
How a product looks is in `drawing`. Reading such archives is none of this module's business: `abo_pipeline.archive`,
`catalog` and `listings` do that, for this archive as for the official one.
"""

import gzip
import io
import json
import math
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import IO, Any, Self

from PIL import Image

from abo_pipeline.errors import ArchiveError, SettingsError
from abo_pipeline.sample.captions import COLOR_WORDS, PATTERN_WORDS, title
from abo_pipeline.sample.drawing import LONGEST_SIDE, Subject, draw_product, picture_size, random_subject
from abo_pipeline.sample.foreign import COLOR_NAMES, LANGUAGES, PRODUCT_NAMES
from abo_pipeline.sample.products import PRODUCTS

AWKWARD_CASES: Mapping[str, int] = MappingProxyType(
    {
        "extreme_aspect": 4,  # more than 4:1; two with originals large enough to keep, two without
        "greyscale": 12,  # JPEGs of one channel (mode L)
        "png": 4,  # RGB, RGBA with a transparent ground, palette, and RGB again
        "exactly_1000": 1,  # the original is 1000 x 1000: just large enough
        "one_short": 1,  # the original is 999 high and 1000 wide: just too small
        "byte_identical": 3,  # the very bytes of another image, under an id and a path of their own
        "truncated": 1,  # a JPEG that ends in the middle; its original is large
        "text_named_jpg": 1,  # an error page where a photograph should be; its original is large
        "svg": 1,  # a size chart where a photograph should be: a type of file that is not read
        "cmyk": 1,  # a JPEG for print; its original is large
        "exif_rotated": 1,  # a JPEG that lies on its side and says so; its original is large
        "malformed_row": 1,  # a row of images.csv.gz whose height is no number; its file is there
        "missing_file": 2,  # rows of images.csv.gz whose file is not in the archive
        "duplicate_row": 1,  # a row of images.csv.gz that repeats another one's image_id
    }
)
"""Awkward cases of the real archive, and how many of each the drawn one has.

Besides these, `SMALL_SHARE` of all rows have originals under 1000 pixels on a side.
"""

SMALL_SHARE = 0.12
MIN_IMAGES = 60

_POPULAR_SHARE = 0.65
_ROW_ONLY_CASES = ("missing_file", "duplicate_row")
_FILE_CASES = [case for case in AWKWARD_CASES if case not in _ROW_ONLY_CASES]
_LARGE_SIDES = (1200, 1500, 1500, 1600, 2000, 2000, 2560, 2560)
_ID_SIGNS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+-"
_BRANDS = (
    "Fernhill",
    "Nordlys",
    "Maison Ambre",
    "Bluepine",
    "Tall Oak",
    "Kestrel & Co",
    "Casa Lirio",
    "Harbour",
)
_MARKETS = (
    ("amazon.com", "US", "en_US"),
    ("amazon.com", "US", "en_US"),
    ("amazon.co.uk", "GB", "en_GB"),
    ("amazon.in", "IN", "en_IN"),
    ("amazon.ca", "CA", "en_CA"),
)
_FOREIGN_MARKETS = (
    ("amazon.de", "DE", "de_DE"),
    ("amazon.fr", "FR", "fr_FR"),
    ("amazon.es", "ES", "es_ES"),
)
_LICENSE = (
    "Drawn by abo_pipeline. No photograph and no text of Amazon Berkeley Objects is in here, only its layout.\n"
    "These drawings and listings: Creative Commons Attribution 4.0, https://creativecommons.org/licenses/by/4.0/\n"
)
_ERROR_PAGE = b"<html><head><title>404 Not Found</title></head><body>The photograph is not here.</body></html>\n"


@dataclass(frozen=True)
class Sample:
    """A drawn archive: where its two tars are."""

    archive: Path
    listings: Path

    @classmethod
    def of(cls, folder: Path) -> Self:
        """The sample that `draw_sample` writes into a folder, whether or not it is there yet."""
        return cls(folder / "abo-images-small.tar", folder / "abo-listings.tar")


@dataclass(frozen=True)
class _Image:
    """One row of images.csv.gz, and what is needed to draw its file."""

    image_id: str
    path: str
    seed: str
    subject: Subject
    size: tuple[int, int]
    height: str
    width: str
    case: str = ""

    @property
    def row(self) -> str:
        return f"{self.image_id},{self.height},{self.width},{self.path}\n"


def draw_sample(
    folder: Path, *, images: int = 1200, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> Sample:
    """Write `abo-images-small.tar` and `abo-listings.tar` into a folder, in the official archives' layout.

    The same `images` and `seed` give the same bytes. Each file appears under its name only when it is complete.

    Args:
        folder: Where to write; made if it is not there.
        images: How many image files to draw, awkward ones included; at least `MIN_IMAGES`.
        seed: Which sample to draw.
        progress: Called with the images drawn so far and their total, after each one.

    Returns:
        Where the two files are.

    Raises:
        SettingsError: `images` is too small to hold every awkward case.
        ArchiveError: The folder cannot be written to.
    """
    if images < MIN_IMAGES:
        raise SettingsError(
            f"A sample of {images} images cannot hold every awkward case. Ask for {MIN_IMAGES} or more."
        )
    sample = Sample.of(folder)
    rng = Random(f"sample/{seed}/{images}")
    planned, products = _plan(images, seed, rng)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _written_whole(sample.listings) as file:
            _write_listings(file, _listings(products, rng))
        with _written_whole(sample.archive) as file:
            _write_images(file, planned, progress)
    except OSError as error:
        raise ArchiveError(
            f"The sample cannot be written to {folder}: {error}. Name a folder that can be written to."
        ) from error
    return sample


def _plan(count: int, seed: int, rng: Random) -> tuple[list[_Image], list[list[_Image]]]:
    """Choose every image, in the order of images.csv.gz, and group them into products."""
    names = _Names(rng)
    products: list[list[_Image]] = []
    made = 0
    while made < count:
        subject = _popular_subject(rng)
        views = min(rng.choices((1, 2, 3, 4), (50, 25, 15, 10))[0], count - made)
        products.append([_plan_image(subject, f"{seed}/{made + view}", names, rng) for view in range(views)])
        made += views
    planned = _with_awkward_cases([image for views in products for image in views], names, rng)
    planned.sort(key=lambda image: image.image_id)
    return planned, products


class _Names:
    """Image ids and paths that look like the real ones, none of them twice."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._used: set[str] = set()

    def image_id(self) -> str:
        return self._unused(
            lambda: (
                self._rng.choice("0345678AB")
                + self._rng.choice("11111A")
                + "".join(self._rng.choices(_ID_SIGNS, k=8))
                + "L"
            )
        )

    def path(self, suffix: str = "jpg") -> str:
        stem = self._unused(lambda: f"{self._rng.getrandbits(32):08x}")
        return f"{stem[:2]}/{stem}.{suffix}"

    def _unused(self, make: Callable[[], str]) -> str:
        name = make()
        while name in self._used:
            name = make()
        self._used.add(name)
        return name


def _popular_subject(rng: Random) -> Subject:
    """A random subject; as in any shop, some colours and variants of a product are far more common than others."""
    code = rng.choice(list(PRODUCTS))
    if rng.random() > _POPULAR_SHARE:
        return random_subject(rng, product_type=code)
    subject = random_subject(rng, product_type=code, color=rng.choices(PRODUCTS[code].popular, (2, 1))[0])
    return replace(subject, variant=next(iter(PRODUCTS[code].variants))) if rng.random() < 0.5 else subject


def _plan_image(subject: Subject, seed: str, names: _Names, rng: Random) -> _Image:
    width, height = picture_size(subject, Random(seed))
    image = _Image(names.image_id(), names.path(), seed, subject, (width, height), "", "")
    if rng.random() < SMALL_SHARE:
        return _small_original(image, rng)
    return _large_original(image, rng)


def _large_original(image: _Image, rng: Random) -> _Image:
    """Give an image an original of at least 1000 pixels on both sides, in its own proportions."""
    least = math.ceil(1000 * LONGEST_SIDE / min(image.size))
    return _original(image, max(rng.choice(_LARGE_SIDES), least))


def _small_original(image: _Image, rng: Random) -> _Image:
    """Give an image an original with a side under 1000 pixels; its file is never larger than its original."""
    longest = rng.choice([106, 160, 220, 300, 500, 500, 679, 800, 900, 980])
    shrink = min(1.0, longest / LONGEST_SIDE)
    width, height = (max(1, round(side * shrink)) for side in image.size)
    return _original(replace(image, size=(width, height)), longest)


def _original(image: _Image, longest: int) -> _Image:
    width, height = image.size
    scale = longest / max(width, height)
    return replace(image, height=str(round(height * scale)), width=str(round(width * scale)))


def _with_awkward_cases(images: list[_Image], names: _Names, rng: Random) -> list[_Image]:
    """Turn randomly chosen images into the awkward cases, and add the rows that have no file of their own."""
    changed = list(images)
    seen: dict[str, int] = {}
    for place, case in _places(images, rng).items():
        nth = seen[case] = seen.get(case, -1) + 1
        changed[place] = _awkward(replace(images[place], case=case), nth, rng)
    whole = [image for image in changed if not image.case]
    for place, image in enumerate(changed):
        if image.case == "byte_identical":
            before = changed[place - 1]
            twin = before if before in whole else rng.choice(whole)
            changed[place] = replace(twin, image_id=image.image_id, path=image.path, case=image.case)
    return [*changed, *_rows_without_files(whole, names, rng)]


def _places(images: list[_Image], rng: Random) -> dict[int, str]:
    """Which image becomes which case: one that suits it, as far as there are any."""
    shuffled = rng.sample(range(len(images)), len(images))
    suited: dict[str, Callable[[int], bool]] = {
        # A second view of a product that is the first one again contradicts no listing.
        "byte_identical": lambda place: place > 0 and images[place - 1].subject == images[place].subject,
        "greyscale": lambda place: images[place].subject.color in ("black", "grey", "white"),
    }
    places: dict[int, str] = {}
    kept_whole: set[int] = set()
    for case in sorted(_FILE_CASES, key=lambda case: case not in suited):
        suits = suited.get(case)
        for _ in range(AWKWARD_CASES[case]):
            free = [place for place in shuffled if place not in places and place not in kept_whole]
            place = next((place for place in free if not suits or (suits(place) and place - 1 not in places)), free[0])
            places[place] = case
            if case == "byte_identical":
                kept_whole.add(place - 1)
    return places


def _awkward(image: _Image, nth: int, rng: Random) -> _Image:
    stem = image.path.rpartition(".")[0]
    square = replace(image, size=(LONGEST_SIDE, LONGEST_SIDE))
    match image.case:
        case "extreme_aspect":
            size = ((256, 32), (30, 256), (256, 44), (15, 256))[nth]
            banner = replace(image, size=size)
            return _large_original(banner, rng) if nth < 2 else _original(banner, 500)
        case "png":
            return _large_original(replace(image, path=f"{stem}.png", seed=f"{image.seed}#{nth}"), rng)
        case "svg":
            return _large_original(replace(image, path=f"{stem}.svg"), rng)
        case "exactly_1000":
            return replace(square, height="1000", width="1000")
        case "one_short":
            return replace(square, height="999", width="1000")
        case "malformed_row":
            return replace(square, height="n/a", width="1500")
        case _:
            return _large_original(square, rng)


def _rows_without_files(whole: list[_Image], names: _Names, rng: Random) -> list[_Image]:
    lost = [
        replace(image, image_id=names.image_id(), path=names.path(), case="missing_file")
        for image in rng.sample(whole, AWKWARD_CASES["missing_file"])
    ]
    repeated = [replace(image, case="duplicate_row") for image in rng.sample(whole, AWKWARD_CASES["duplicate_row"])]
    return [*lost, *repeated]


def _encoded(image: _Image) -> bytes:
    """The bytes of one image file."""
    if image.case == "text_named_jpg":
        return _ERROR_PAGE
    picture = draw_product(image.subject, Random(image.seed), size=image.size)
    quality = Random(f"{image.seed}/quality").randint(82, 92)
    match image.case:
        case "greyscale":
            return _saved(picture.convert("L"), "JPEG", quality=quality)
        case "cmyk":
            return _saved(picture.convert("CMYK"), "JPEG", quality=quality)
        case "exif_rotated":
            return _saved(picture.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=quality, exif=_turned_exif())
        case "truncated":
            content = _saved(picture, "JPEG", quality=quality)
            return content[: len(content) // 2]
        case "png":
            return _saved(_png_mode(picture, int(image.seed.rpartition("#")[2])), "PNG")
        case "svg":
            return b'<svg xmlns="http://www.w3.org/2000/svg"><text y="20">S M L XL</text></svg>\n'
        case _:
            return _saved(picture, "JPEG", quality=quality)


def _saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def _turned_exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: to be shown turned by 90 degrees clockwise.
    return exif


def _png_mode(picture: Image.Image, nth: int) -> Image.Image:
    if nth == 1:
        ground = picture.convert("L").point([0 if level > 252 else 255 for level in range(256)])
        picture.putalpha(ground)
        return picture
    return picture.convert("P", palette=Image.Palette.ADAPTIVE) if nth == 2 else picture


def _write_images(file: IO[bytes], planned: list[_Image], progress: Callable[[int, int], None] | None) -> None:
    rows = "".join(["image_id,height,width,path\n", *(image.row for image in planned)])
    files = sorted((image for image in planned if image.case not in _ROW_ONLY_CASES), key=lambda image: image.path)
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        _add(tar, "LICENSE-CC-BY-4.0.txt", _LICENSE.encode())
        _add(tar, "images/metadata/images.csv.gz", _gzipped(rows.encode()))
        for done, image in enumerate(files, start=1):
            _add(tar, f"images/small/{image.path}", _encoded(image))
            if progress:
                progress(done, len(files))


def _write_listings(file: IO[bytes], listings: list[dict[str, Any]]) -> None:
    parts: dict[str, list[str]] = {digit: [] for digit in "0123456789abcdef"}
    for number, listing in enumerate(listings):
        parts[f"{number % 16:x}"].append(json.dumps(listing, ensure_ascii=False) + "\n")
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        _add(tar, "LICENSE-CC-BY-4.0.txt", _LICENSE.encode())
        for digit, lines in parts.items():
            _add(tar, f"listings/metadata/listings_{digit}.json.gz", _gzipped("".join(lines).encode()))


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _gzipped(content: bytes) -> bytes:
    file = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
        packed.write(content)
    return file.getvalue()


@contextmanager
def _written_whole(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary neighbour of `path`, which takes its name if the block succeeds and else goes."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _listings(products: list[list[_Image]], rng: Random) -> list[dict[str, Any]]:
    """One listing a product, and now and then a second one that shares its pictures, as sizes of a shirt do."""
    listings = []
    for views in products:
        if rng.random() < 0.02:
            continue  # Some photographs of the real archive belong to no listing either.
        ids = [image.image_id for image in views]
        subject = views[0].subject
        listings.append(_listing(subject, ids, rng))
        if rng.random() < 0.15:
            listings.append(_listing(subject, ids[: rng.randint(1, len(ids))], rng))
    lost = rng.choice(listings)
    lost["main_image_id"] = "01NotInHere"
    del rng.choice([listing for listing in listings if listing is not lost])["main_image_id"]
    return listings


def _listing(subject: Subject, ids: list[str], rng: Random) -> dict[str, Any]:
    brand = rng.choice(_BRANDS)
    domain, country, home = rng.choice(_FOREIGN_MARKETS if rng.random() < 0.15 else _MARKETS)
    english = home if home.startswith("en_") else "en_GB"
    names = [{"language_tag": tag, "value": _title(subject, brand, tag, rng)} for tag in _languages(home, rng)]
    listing: dict[str, Any] = {
        "item_id": "B0" + "".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", k=8)),
        "domain_name": domain,
        "country": country,
        "marketplace": "Amazon",
        "brand": [{"language_tag": name["language_tag"], "value": brand} for name in names],
        "item_name": names,
        "product_type": [{"value": subject.product_type}],
        "color": _colors(subject, names),
        "item_keywords": _keywords(subject, english, rng),
        "main_image_id": ids[0],
    }
    if subject.pattern != "plain":
        listing["pattern"] = [{"language_tag": english, "value": subject.pattern.title()}]
    if len(ids) > 1:
        listing["other_image_id"] = ids[1:]
    return listing


def _languages(home: str, rng: Random) -> list[str]:
    """The market's own language first; then, of an English market, at times others, of another, at times English."""
    if not home.startswith("en_"):
        return [home, "en_GB"] if rng.random() < 0.2 else [home]
    return [home, *rng.sample(LANGUAGES, rng.randint(1, 3))] if rng.random() < 0.3 else [home]


def _title(subject: Subject, brand: str, tag: str, rng: Random) -> str:
    if tag.startswith("en_"):
        return title(subject, brand, rng)
    which = LANGUAGES.index(tag)
    return f"{brand} {PRODUCT_NAMES[subject.product_type][which]}, {COLOR_NAMES[subject.color][which]}"


def _colors(subject: Subject, names: list[dict[str, str]]) -> list[dict[str, Any]]:
    colors = []
    for name in names:
        tag = name["language_tag"]
        english = tag.startswith("en_")
        value = subject.color.title() if english else COLOR_NAMES[subject.color][LANGUAGES.index(tag)]
        color = {"language_tag": tag, "value": value, "standardized_values": [subject.color.title()]}
        colors.append(color)
    return colors


def _keywords(subject: Subject, tag: str, rng: Random) -> list[dict[str, str]]:
    product = PRODUCTS[subject.product_type]
    words = [*product.names, *product.variants[subject.variant], *product.material]
    words.append(f"{rng.choice(COLOR_WORDS[subject.color])} {product.names[0]}")
    if subject.pattern != "plain":
        words.append(f"{rng.choice(PATTERN_WORDS[subject.pattern])} {product.names[0]}")
    return [{"language_tag": tag, "value": word} for word in words]
