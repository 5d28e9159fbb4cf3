"""The catalogue: rows of ``images.csv.gz`` that name a usable image, and why each other row was dropped.

Width and height in the csv are those of the original photograph; the file in the archive is a reduction of it, with its
longest side at most 256 pixels. So what is kept is decided from the csv and the tar's index alone: no picture is opened
here.
"""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import PurePosixPath

import polars as pl

from abo_pipeline.archive import Archive
from abo_pipeline.errors import ArchiveError, CatalogError
from abo_pipeline.sampling import sample_key

CSV_MEMBER = "images/metadata/images.csv.gz"
IMAGE_FOLDER = "images/small/"
CSV_COLUMNS = ("image_id", "height", "width", "path")
SUPPORTED_TYPES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")

SCHEMA = pl.Schema(
    {
        "image_id": pl.String,
        "path": pl.String,
        "width": pl.Int32,
        "height": pl.Int32,
        "sample_key": pl.Int64,
        "offset": pl.Int64,
        "size": pl.Int64,
        "digest": pl.String,
    }
)

COLUMN_MEANINGS = {
    "image_id": "ABO's name of the photograph",
    "path": "the file, below images/small/ in the archive",
    "width": "of the original photograph, in pixels",
    "height": "of the original photograph, in pixels",
    "sample_key": "place in the catalogue's order, from the id alone: in [0, 2**63)",
    "offset": "where the file's bytes begin in the tar",
    "size": "of the file, in bytes",
    "digest": "BLAKE2b-128 of the file's bytes, in hex",
}

MALFORMED = "malformed row"
DUPLICATE = "duplicate id"
UNSUPPORTED = "unsupported type"
TOO_SMALL = "too small"
NOT_IN_ARCHIVE = "not in the archive"
REASONS = (MALFORMED, DUPLICATE, UNSUPPORTED, TOO_SMALL, NOT_IN_ARCHIVE)
"""Why a row is dropped; a row to which several apply counts under the first."""


@dataclass(frozen=True)
class Catalogue:
    """The images that are kept, and how many rows were dropped for which reason.

    Attributes:
        kept: one row an image with the columns of ``SCHEMA``, ascending by sample_key.
        dropped: rows dropped, by reason; every reason is present, many with 0.
    """

    kept: pl.DataFrame
    dropped: dict[str, int]

    @property
    def rows(self) -> int:
        """Rows of the csv: ``len(kept)`` and all that was dropped."""
        return len(self.kept) + sum(self.dropped.values())


def read_catalogue(archive: Archive, *, min_side: int) -> Catalogue:
    """Decide for every row of the archive's csv whether its image is kept.

    Args:
        archive: an ABO image archive.
        min_side: pixels that both sides of the original must have at least.

    Raises:
        ArchiveError: the csv is not in the archive.
        CatalogError: the csv cannot be read, lacks a column or has no rows, or no row is kept.
    """
    rows = _read_csv(archive)
    judged = (
        _typed(rows)
        .join(_members(archive), on="path", how="left", maintain_order="left")
        .with_columns(reason=_reason(min_side))
    )
    counts = dict(judged["reason"].drop_nulls().value_counts().iter_rows())
    dropped = {reason: counts.get(reason, 0) for reason in REASONS}
    kept = judged.filter(pl.col("reason").is_null())
    if kept.is_empty():
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items() if count)
        raise CatalogError(
            f"None of the {len(rows):,} images in {archive.path.name} is kept ({reasons}). "
            f"Lower ABO_MIN_SIDE (now {min_side}), or use another archive."
        )
    keys = pl.Series([sample_key(image_id) for image_id in kept["image_id"]], dtype=pl.Int64)
    kept = kept.with_columns(sample_key=keys).sort("sample_key", "image_id")
    return Catalogue(kept.select(SCHEMA.names()).cast(SCHEMA), dropped)


def _read_csv(archive: Archive) -> pl.DataFrame:
    """All rows as text: what is no number is for ``_typed`` to find, one row at a time."""
    try:
        text = gzip.decompress(archive.read(CSV_MEMBER))
    except ArchiveError as error:
        raise ArchiveError(f"{error} An ABO image archive holds {CSV_MEMBER}.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise CatalogError(f"{CSV_MEMBER} in {archive.path.name} is no readable gzip file: {error}.") from None
    try:
        rows = pl.read_csv(text, infer_schema=False, encoding="utf8-lossy", quote_char=None, truncate_ragged_lines=True)
    except (pl.exceptions.NoDataError, pl.exceptions.ComputeError) as error:
        reason = str(error).splitlines()[0] if text.strip() else "it is empty"
        raise CatalogError(f"{CSV_MEMBER} in {archive.path.name} cannot be read: {reason}.") from None
    missing = [column for column in CSV_COLUMNS if column not in rows.columns]
    if missing:
        raise CatalogError(
            f"{CSV_MEMBER} in {archive.path.name} lacks the column(s) {', '.join(missing)}; "
            f"it has {', '.join(rows.columns)}. Is this an ABO image archive?"
        )
    if rows.is_empty():
        raise CatalogError(f"{CSV_MEMBER} in {archive.path.name} has a header but no rows.")
    return rows.select(CSV_COLUMNS)


def _typed(rows: pl.DataFrame) -> pl.DataFrame:
    """Text stripped and numbers as numbers; null where there is none."""
    text = pl.col("image_id", "path").str.strip_chars()
    return rows.with_columns(
        pl.when(text.str.len_chars() > 0).then(text).name.keep(),
        pl.col("height", "width").str.strip_chars().cast(pl.Int32, strict=False),
    )


def _members(archive: Archive) -> pl.DataFrame:
    """The archive's image files, named as the csv names them."""
    return archive.index.filter(pl.col("member").str.starts_with(IMAGE_FOLDER)).select(
        pl.col("member").str.strip_prefix(IMAGE_FOLDER).alias("path"), "offset", "size", "digest"
    )


def _reason(min_side: int) -> pl.Expr:
    """Why a row is dropped; null for one that is kept."""
    malformed = (
        pl.any_horizontal(pl.col(CSV_COLUMNS).is_null())
        | (pl.min_horizontal("width", "height") < 1)
        # U+FFFD stands for bytes that are no UTF-8: two such ids could look the same.
        | pl.col("image_id").str.contains(r"[\s\x00-\x1f\x{FFFD}]")
    )
    # Counted among well-formed rows only, so that a broken row never costs the good one with its id.
    repeated = pl.int_range(pl.len()).over("image_id", malformed) > 0
    extension = pl.col("path").str.to_lowercase().str.extract(r"\.([a-z0-9]+)$")
    return (
        pl.when(malformed)
        .then(pl.lit(MALFORMED))
        .when(repeated)
        .then(pl.lit(DUPLICATE))
        .when(~extension.is_in(SUPPORTED_TYPES).fill_null(False))
        .then(pl.lit(UNSUPPORTED))
        .when(pl.min_horizontal("width", "height") < min_side)
        .then(pl.lit(TOO_SMALL))
        .when(pl.col("offset").is_null())
        .then(pl.lit(NOT_IN_ARCHIVE))
    )


def member_name(path: str) -> str:
    """The archive member of a catalogue path."""
    return str(PurePosixPath(IMAGE_FOLDER) / path)


@dataclass(frozen=True)
class Audit:
    """A second look at a catalogue, counted without the code that made it.

    Attributes:
        rows: of the csv.
        too_small: rows of the csv with a side under the least; None of them may be kept.
        kept: images in the catalogue.
        smallest_side: of the kept images, in pixels; None without any.
        problems: in words; empty if all is well.
    """

    rows: int
    too_small: int
    kept: int
    smallest_side: int | None
    problems: tuple[str, ...]


def audit(kept: pl.DataFrame, archive: Archive, *, min_side: int) -> Audit:
    """Whether a catalogue can be the result of the filter: some were kept, and nothing that is too small.

    A filter that silently keeps everything is the classic mistake with this data set.
    """
    rows = _read_csv(archive)
    sides = [rows[side].str.strip_chars().cast(pl.Int64, strict=False) for side in ("width", "height")]
    too_small = int(((sides[0] < min_side) | (sides[1] < min_side)).sum())
    smallest = None if kept.is_empty() else int(kept.select(pl.min_horizontal("width", "height").min()).item())
    problems = []
    if kept.is_empty():
        problems.append(f"none of {len(rows):,} images was kept")
    if smallest is not None and smallest < min_side:
        problems.append(f"an image with a side of {smallest} was kept; at least {min_side} is asked for")
    if too_small and len(kept) >= len(rows):
        problems.append(f"all {len(rows):,} images were kept although {too_small:,} are too small")
    return Audit(len(rows), too_small, len(kept), smallest, tuple(problems))
