"""Listings: ``listings_*.json.gz`` → one row a product, with the ids of its images.

A value in several languages is reduced to one: American English, else any English, else the first given.
Which image shows which product is kept as ABO says it; choosing one product for a picture is for the store's queries.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import polars as pl

from abo_pipeline.archive import Archive
from abo_pipeline.errors import ListingsError

_MEMBER = re.compile(r"^listings/metadata/listings_[0-9a-z]+\.json\.gz$")

SCHEMA = pl.Schema(
    {
        "item_id": pl.String(),
        "domain_name": pl.String(),
        "title": pl.String(),
        "product_type": pl.String(),
        "color": pl.String(),
        "brand": pl.String(),
        "country": pl.String(),
        "keywords": pl.List(pl.String()),
        "image_ids": pl.List(pl.String()),
    }
)

COLUMN_MEANINGS = {
    "item_id": "Amazon's name of the product",
    "domain_name": "the shop that lists it; with item_id it names the listing",
    "title": "item_name, in English where there is one",
    "product_type": "such as CHAIR or CELLULAR_PHONE_CASE",
    "color": "in the seller's words",
    "brand": "in the seller's words",
    "country": "of the shop, ISO 3166-1 alpha-2",
    "keywords": "distinct, in the order given",
    "image_ids": "the main image first",
}


@dataclass(frozen=True)
class Listings:
    """The products, and what could not be used.

    Attributes:
        products: one row a listing with the columns of ``SCHEMA``, by item_id and domain_name.
        malformed: lines that are no JSON object with an item_id.
        duplicates: listings whose item_id and domain_name came before.
    """

    products: pl.DataFrame
    malformed: int
    duplicates: int


def no_listings() -> Listings:
    """What there is to know without a listings archive."""
    return Listings(pl.DataFrame(schema=SCHEMA), malformed=0, duplicates=0)


def read_listings(archive: Archive) -> Listings:
    """Read every listing of an ABO listings archive.

    Raises:
        ListingsError: the archive has no listings, or a file of them cannot be read.
    """
    members = sorted(name for name in archive.index["member"] if _MEMBER.match(name))
    if not members:
        raise ListingsError(
            f"{archive.path.name} has no listings/metadata/listings_*.json.gz. "
            "Is this abo-listings.tar? Set ABO_LISTINGS=none to go on without listings."
        )
    lines = [line for member in members for line in _lines(archive, member)]
    parsed = [_product(line) for line in lines]
    found = pl.DataFrame([product for product in parsed if product], schema=SCHEMA, orient="row")
    products = found.unique(["item_id", "domain_name"], keep="first", maintain_order=True)
    return Listings(
        products.sort("item_id", "domain_name"),
        malformed=len(lines) - len(found),
        duplicates=len(found) - len(products),
    )


def _lines(archive: Archive, member: str) -> Iterator[bytes]:
    try:
        text = gzip.decompress(archive.read(member))
    except (OSError, EOFError, zlib.error) as error:
        raise ListingsError(f"{member} in {archive.path.name} is no readable gzip file: {error}.") from None
    return (line for line in text.splitlines() if line.strip())


def _product(line: bytes) -> tuple[Any, ...] | None:
    """One listing as a row of ``SCHEMA``; None if the line is not one."""
    try:
        listing = json.loads(line)
        item_id = _text(listing["item_id"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if item_id is None:
        return None
    images = [listing.get("main_image_id"), *_list(listing.get("other_image_id"))]
    return (
        item_id,
        _text(listing.get("domain_name")) or "",
        _preferred(listing.get("item_name")),
        _preferred(listing.get("product_type")),
        _preferred(listing.get("color")),
        _preferred(listing.get("brand")),
        _text(listing.get("country")),
        _distinct(_values(listing.get("item_keywords"))),
        _distinct(image for image in map(_text, images) if image),
    )


def _preferred(entries: object) -> str | None:
    return next(iter(_values(entries)), None)


def _values(entries: object) -> list[str]:
    """The values of the best language there is; ABO repeats an attribute once a language."""
    by_language: dict[str, list[str]] = {}
    for entry in _list(entries):
        if isinstance(entry, dict) and (value := _text(entry.get("value"))):
            by_language.setdefault(_text(entry.get("language_tag")) or "", []).append(value)
    english = (values for language, values in by_language.items() if language.startswith("en"))
    return by_language.get("en_US") or next(english, None) or next(iter(by_language.values()), [])


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: object) -> str | None:
    """Text without NUL and halves of surrogate pairs: JSON may spell them, Postgres cannot hold them."""
    if not isinstance(value, str):
        return None
    return value.encode(errors="ignore").decode().replace("\x00", "").strip() or None


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
