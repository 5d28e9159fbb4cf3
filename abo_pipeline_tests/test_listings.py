"""Listings archives written here: what becomes of each attribute, what is counted, and what is refused."""

import gzip
import json
import os
import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from abo_pipeline.archive import Archive
from abo_pipeline.errors import ListingsError
from abo_pipeline.listings import COLUMN_MEANINGS, SCHEMA, Listings, no_listings, read_listings
from abo_pipeline_tests.archives import write_tar

# Read before the tests' fixture clears the variables.
SLICE = os.environ.get("ABO_TEST_SLICE", "")

MEMBER = "listings/metadata/listings_0.json.gz"


def open_archive(folder: Path, members: dict[str, bytes]) -> Archive:
    return Archive.open(write_tar(folder / "abo-listings.tar", members))


def packed(*lines: dict[str, Any] | bytes) -> bytes:
    """One file of listings."""
    return gzip.compress(b"".join((line if isinstance(line, bytes) else as_json(line)) + b"\n" for line in lines))


def as_json(listing: dict[str, Any]) -> bytes:
    return json.dumps(listing).encode()


def read(folder: Path, *lines: dict[str, Any] | bytes) -> Listings:
    with open_archive(folder, {MEMBER: packed(*lines)}) as archive:
        return read_listings(archive)


def product(item_id: str, **known: Any) -> dict[str, Any]:
    """A row of which nothing is known but what is given."""
    nothing = dict.fromkeys(SCHEMA.names()) | {"domain_name": "", "keywords": [], "image_ids": []}
    return nothing | {"item_id": item_id} | known


def frame(*products: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame(list(products), schema=SCHEMA)


def said(value: object, language: str | None = None) -> dict[str, object]:
    return {"value": value} | ({"language_tag": language} if language else {})


def refusal(archive: Archive) -> str:
    with pytest.raises(ListingsError) as caught:
        read_listings(archive)
    return str(caught.value)


# --- A whole listing ---


def test_a_listing_as_abo_has_it_becomes_one_row(tmp_path):
    listing = {
        "brand": [said("Rivet", "en_US")],
        "bullet_point": [said("Solid wood", "en_US")],
        "color": [said("Grau", "de_DE"), said("Grey", "en_US") | {"standardized_values": ["Gray"]}],
        "item_id": "B075X4QMX3",
        "item_name": [said("Sessel", "de_DE"), said("Rivet Chair", "en_US")],
        "item_keywords": [said("chair", "en_US"), said("lounge", "en_US"), said("chair", "en_US")],
        "product_type": [said("CHAIR")],
        "main_image_id": "41++65Gq75L",
        "other_image_id": ["010-mllS7JL", "41++65Gq75L", "51abcDEF-+L"],
        "item_weight": [{"normalized_value": {"unit": "pounds", "value": 35.0}}],
        "country": "US",
        "marketplace": "Amazon",
        "domain_name": "amazon.com",
        "node": [{"node_id": 1, "node_name": "/Home"}],
    }

    listings = read(tmp_path, listing)

    assert_frame_equal(
        listings.products,
        frame(
            {
                "item_id": "B075X4QMX3",
                "domain_name": "amazon.com",
                "title": "Rivet Chair",
                "product_type": "CHAIR",
                "color": "Grey",
                "brand": "Rivet",
                "country": "US",
                "keywords": ["chair", "lounge"],
                "image_ids": ["41++65Gq75L", "010-mllS7JL", "51abcDEF-+L"],
            }
        ),
    )
    assert (listings.malformed, listings.duplicates) == (0, 0)


def test_a_listing_needs_nothing_but_its_id(tmp_path):
    listings = read(tmp_path, {"item_id": "A"})

    assert_frame_equal(listings.products, frame(product("A")))
    assert (listings.malformed, listings.duplicates) == (0, 0)


@pytest.mark.parametrize("odd", [None, 5, "text", [], {}, ["text"], [None], [{}], [said(None)], [said(5)], [said(" ")]])
def test_an_attribute_of_another_shape_counts_as_missing(tmp_path, odd):
    odd_listing = dict.fromkeys(["item_name", "product_type", "color", "brand", "item_keywords"], odd)

    listings = read(tmp_path, odd_listing | {"item_id": "A"})

    assert_frame_equal(listings.products, frame(product("A")))
    assert listings.malformed == 0


@pytest.mark.parametrize("odd", [None, 5, [], {}, ["US"], " ", "\0"])
def test_a_domain_or_country_that_is_no_text_counts_as_missing(tmp_path, odd):
    listings = read(tmp_path, {"item_id": "A", "domain_name": odd, "country": odd})

    assert_frame_equal(listings.products, frame(product("A")))


def test_each_column_has_a_meaning():
    assert list(COLUMN_MEANINGS) == SCHEMA.names()


# --- Languages ---


@pytest.mark.parametrize(
    ("names", "title"),
    [
        ([said("Stuhl", "de_DE"), said("Chair, UK", "en_GB"), said("Chair", "en_US")], "Chair"),
        ([said("Stuhl", "de_DE"), said("Chair, IN", "en_IN"), said("Chair, UK", "en_GB")], "Chair, IN"),
        ([said("Stuhl", "de_DE"), said("Silla", "es_MX")], "Stuhl"),
        ([said("No language"), said("Stuhl", "de_DE")], "No language"),
        ([said("No language"), said("Chair", "en_US")], "Chair"),
        ([said("  ", "en_US"), said("Stuhl", "de_DE")], "Stuhl"),
        ([said("First", "en_US"), said("Second", "en_US")], "First"),
        ([said("椅子", "ja_JP")], "椅子"),
    ],
)
def test_american_english_is_preferred_then_any_english_then_the_first(tmp_path, names, title):
    listings = read(tmp_path, {"item_id": "A", "item_name": names})

    assert_frame_equal(listings.products, frame(product("A", title=title)))


def test_keywords_are_those_of_one_language_distinct_in_the_order_given(tmp_path):
    words = [("stuhl", "de_DE"), ("seat", "en_US"), ("chair", "en_US"), ("sessel", "de_DE"), (" seat ", "en_US")]

    listings = read(tmp_path, {"item_id": "A", "item_keywords": [said(*word) for word in words]})

    assert_frame_equal(listings.products, frame(product("A", keywords=["seat", "chair"])))


# --- Images ---


@pytest.mark.parametrize(
    ("images", "image_ids"),
    [
        ({"main_image_id": "m", "other_image_id": ["b", "a"]}, ["m", "b", "a"]),
        ({"main_image_id": "m", "other_image_id": ["a", "m", "a"]}, ["m", "a"]),
        ({"main_image_id": "m"}, ["m"]),
        ({"other_image_id": ["b", "a"]}, ["b", "a"]),
        ({"main_image_id": None, "other_image_id": None}, []),
        ({"main_image_id": 5, "other_image_id": ["a", 5, None, ["b"], ""]}, ["a"]),
        ({"main_image_id": ["m"], "other_image_id": "a"}, []),
    ],
)
def test_the_main_image_comes_first_and_each_image_once(tmp_path, images, image_ids):
    listings = read(tmp_path, {"item_id": "A"} | images)

    assert_frame_equal(listings.products, frame(product("A", image_ids=image_ids)))


def test_an_image_may_show_many_products(tmp_path):
    listings = read(
        tmp_path,
        {"item_id": "A", "main_image_id": "shared", "other_image_id": ["a"]},
        {"item_id": "B", "main_image_id": "b", "other_image_id": ["shared"]},
    )

    assert_frame_equal(
        listings.products,
        frame(product("A", image_ids=["shared", "a"]), product("B", image_ids=["b", "shared"])),
    )


# --- What is counted ---


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"not json",
        b"[]",
        b"null",
        b"5",
        b'"item_id"',
        b"{}",
        b'{"item_id": null}',
        b'{"item_id": 5}',
        b'{"item_id": ""}',
        b'{"item_id": "  "}',
        b'{"item_id": "\\u0000"}',
        b'{"item_id": "A"} {"item_id": "B"}',
        b'{"item_id": "\xff"}',
        b'{"item_id": "A", "deep": ' + b"[" * 100_000,
        b'{"item_id": "A", "long": ' + b"9" * 5_000 + b"}",
    ],
    ids=lambda line: line[:30].decode(errors="replace"),
)
def test_a_line_that_is_no_listing_is_counted_and_costs_no_other(tmp_path, line):
    listings = read(tmp_path, {"item_id": "before"}, line, {"item_id": "later"})

    assert_frame_equal(listings.products, frame(product("before"), product("later")))
    assert (listings.malformed, listings.duplicates) == (1, 0)


def test_blank_lines_are_nothing(tmp_path):
    listings = read(tmp_path, b"", {"item_id": "A"}, b"  ", b"\r", {"item_id": "B"})

    assert_frame_equal(listings.products, frame(product("A"), product("B")))
    assert (listings.malformed, listings.duplicates) == (0, 0)


def test_of_two_listings_with_the_same_id_in_the_same_shop_the_first_counts(tmp_path):
    listings = read(
        tmp_path,
        {"item_id": "A", "domain_name": "amazon.com", "country": "US"},
        {"item_id": "A", "domain_name": "amazon.in", "country": "IN"},
        {"item_id": "A", "domain_name": "amazon.com", "country": "CA"},
        {"item_id": "A", "domain_name": "amazon.com", "country": "MX"},
        {"item_id": "A"},
    )

    assert_frame_equal(
        listings.products,
        frame(
            product("A"),
            product("A", domain_name="amazon.com", country="US"),
            product("A", domain_name="amazon.in", country="IN"),
        ),
    )
    assert (listings.malformed, listings.duplicates) == (0, 2)


def test_products_are_ordered_whatever_the_order_of_the_lines(tmp_path):
    keys = [(f"item{n % 20}", f"amazon.{n % 3}") for n in range(60)]
    random.Random(1).shuffle(keys)  # noqa: S311 - no secret

    listings = read(tmp_path, *({"item_id": item_id, "domain_name": domain} for item_id, domain in keys))

    assert listings.products.select("item_id", "domain_name").rows() == sorted(keys)


# --- What Postgres cannot hold ---


def test_nul_characters_are_left_out_of_every_column(tmp_path):
    texts = ["item_id", "domain_name", "country", "main_image_id"]
    attributes = ["item_name", "product_type", "color", "brand", "item_keywords"]
    listing = {name: f"\0{name}\0" for name in texts} | {name: [said(f"{name}\0")] for name in attributes}

    listings = read(tmp_path, listing | {"other_image_id": ["other\0", "\0"]})

    assert_frame_equal(
        listings.products,
        frame(
            {
                "item_id": "item_id",
                "domain_name": "domain_name",
                "title": "item_name",
                "product_type": "product_type",
                "color": "color",
                "brand": "brand",
                "country": "country",
                "keywords": ["item_keywords"],
                "image_ids": ["main_image_id", "other"],
            }
        ),
    )


def test_half_a_surrogate_pair_is_left_out_and_a_whole_one_is_a_character(tmp_path):
    line = rb'{"item_id": "A\ud83d", "item_name": [{"value": "chair \ud83e\ude91"}], "main_image_id": "\udfff"}'

    listings = read(tmp_path, line)

    assert_frame_equal(listings.products, frame(product("A", title="chair 🪑")))
    assert listings.malformed == 0


# --- The archive ---


def test_every_file_of_listings_is_read(tmp_path):
    names = [f"listings/metadata/listings_{digit}.json.gz" for digit in "0123456789abcdef"]

    with open_archive(tmp_path, {name: packed({"item_id": name[-9]}) for name in names}) as archive:
        listings = read_listings(archive)

    assert listings.products["item_id"].to_list() == list("0123456789abcdef")


def test_of_two_files_with_one_listing_the_first_by_name_counts(tmp_path):
    members = {
        "listings/metadata/listings_1.json.gz": packed({"item_id": "A", "country": "FR"}),
        "listings/metadata/listings_0.json.gz": packed({"item_id": "A", "country": "DE"}),
    }

    with open_archive(tmp_path, members) as archive:
        listings = read_listings(archive)

    assert_frame_equal(listings.products, frame(product("A", country="DE")))
    assert listings.duplicates == 1


def test_other_files_are_not_looked_at(tmp_path):
    others = ["listings/README.md", "listings/metadata/listings_0.json", "old/listings/metadata/listings_1.json.gz"]
    members = {MEMBER: packed({"item_id": "A"})} | dict.fromkeys(others, b"not a listing")

    with open_archive(tmp_path, members) as archive:
        assert_frame_equal(read_listings(archive).products, frame(product("A")))


def test_files_without_a_line_give_no_product(tmp_path):
    listings = read(tmp_path)

    assert_frame_equal(listings.products, no_listings().products)
    assert (listings.malformed, listings.duplicates) == (0, 0)


def test_without_listings_there_is_an_empty_frame_of_the_same_columns():
    listings = no_listings()

    assert listings.products.schema == SCHEMA
    assert (len(listings.products), listings.malformed, listings.duplicates) == (0, 0, 0)


@pytest.mark.parametrize("members", [{}, {"images/metadata/images.csv.gz": b""}], ids=["empty", "the images"])
def test_an_archive_without_listings_is_refused_with_the_remedy(tmp_path, members):
    with open_archive(tmp_path, members) as archive:
        message = refusal(archive)

    assert message == (
        "abo-listings.tar has no listings/metadata/listings_*.json.gz. "
        "Is this abo-listings.tar? Set ABO_LISTINGS=none to go on without listings."
    )


WHOLE = packed(*({"item_id": str(number)} for number in range(99)))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (WHOLE[:-20], "Compressed file ended before the end-of-stream marker was reached"),
        (WHOLE[:5], "Compressed file ended before the end-of-stream marker was reached"),
        (WHOLE[:-8] + bytes(8), "CRC check failed"),
        (WHOLE[:10] + b"\xff" + WHOLE[11:], "Error -3 while decompressing data: invalid block type"),
        (b'{"item_id": "A"}\n', "Not a gzipped file (b'{\"')"),
    ],
    ids=["cut", "cut in the header", "wrong checksum", "damaged", "not compressed"],
)
def test_a_file_of_listings_that_cannot_be_unpacked_is_refused_by_name(tmp_path, content, reason):
    members = {MEMBER: packed({"item_id": "A"}), "listings/metadata/listings_7.json.gz": content}

    with open_archive(tmp_path, members) as archive:
        message = refusal(archive)

    assert message == f"listings/metadata/listings_7.json.gz in abo-listings.tar is no readable gzip file: {reason}."


@pytest.mark.skipif(not SLICE, reason="ABO_TEST_SLICE does not name a folder with a slice of the real archives")
def test_a_slice_of_the_real_archive(tmp_path):
    path = next(Path(SLICE).glob("abo-listings*.tar"))

    with Archive.open(path, tmp_path) as archive:
        listings = read_listings(archive)

    assert (len(listings.products), listings.malformed, listings.duplicates) == (5_008, 0, 0)
    assert listings.products["title"].null_count() == 0
    assert listings.products["product_type"].n_unique() == 261
    assert listings.products["image_ids"].list.len().min() == 1
