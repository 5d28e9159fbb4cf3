"""What results are made of, counted by Postgres and counted again here, one listing after the other."""

import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import make_url

from abo_pipeline import catalog, listings
from abo_pipeline.sampling import LAST_KEY, sample_key
from abo_pipeline.store import Store
from abo_pipeline.store.analytics import Count, Facet, Facets, facets, keywords
from abo_pipeline.store.database import open_engine
from abo_pipeline.store.embedded import EmbeddedServer
from abo_pipeline.store.nearest import Scope, nearest
from abo_pipeline.store.spaces import Embedded
from abo_pipeline_tests.conftest import fresh_database
from benchmarks.stores import NamedOnly

UNKNOWN = dict.fromkeys(listings.SCHEMA.names()) | {"domain_name": "amazon.com", "keywords": [], "image_ids": []}

Listing = dict[str, Any]


def listing(item: str, *images: str, shop: str = "amazon.com", **known: Any) -> Listing:
    return UNKNOWN | {"item_id": item, "domain_name": shop, "image_ids": list(images)} | known


def write(store: Store, products: Iterable[Listing]) -> Store:
    store.write_products(pl.DataFrame(list(products), schema=listings.SCHEMA))
    return store


def counts(*rows: tuple[str, int]) -> tuple[Count, ...]:
    return tuple(Count(value, count) for value, count in rows)


# --- Counted again ---


def folded(word: str) -> str:
    """In lower case, letter by letter."""
    return "".join("i" if letter == "İ" else letter.lower() for letter in word)


def describing(products: Iterable[Listing]) -> dict[str, Listing]:
    """The listing that describes each image."""
    shown = [
        (position, product["item_id"], product["domain_name"], image, product)
        for product in products
        for position, image in enumerate(product["image_ids"])
    ]
    shown.sort(key=lambda row: row[:3], reverse=True)
    return {image: product for *_, image, product in shown}


def spelled(spellings: Iterable[str]) -> str:
    """The most frequent one; of several, the smallest."""
    return min(Counter(spellings).items(), key=lambda item: (-item[1], item[0]))[0]


def ordered(rows: Iterable[Count]) -> list[Count]:
    return sorted(rows, key=lambda row: (-row.count, row.value))


def facets_again(products: Sequence[Listing], images: Iterable[str]) -> Facets:
    listed = describing(products)
    described = [listed.get(image, UNKNOWN) for image in set(images)]
    return Facets(*(_facet_again([product[name] for product in described]) for name in Facets.__annotations__))


def _facet_again(values: Sequence[str | None]) -> Facet:
    words: dict[str, list[str]] = {}
    for value in values:
        if value is not None:
            words.setdefault(folded(value), []).append(value)
    found = ordered(Count(spelled(spellings), len(spellings)) for spellings in words.values())
    return Facet(tuple(found), values.count(None))


def keywords_again(products: Sequence[Listing], images: Sequence[str], most: int) -> list[Count]:
    listed = describing(products)
    described = [listed[image] for image in images if image in listed]
    best = listed.get(images[0], UNKNOWN) if images else UNKNOWN
    found = []
    for word in {folded(keyword) for keyword in best["keywords"]}:
        said = {
            (product["item_id"], keyword)
            for product in described
            for keyword in product["keywords"]
            if folded(keyword) == word
        }
        found.append(Count(spelled(keyword for _, keyword in said), len({item for item, _ in said})))
    return ordered(found)[:most]


# --- Over random listings ---

# Letters that this Python's Unicode does not have yet may have a case in Postgres's.
LETTERS = st.sampled_from("aÄİßΣЖǅ𐐀") | st.characters(exclude_categories=("Cs", "Cn"), exclude_characters="\x00")


@st.composite
def catalogues(draw: st.DrawFn) -> list[Listing]:
    """Few words in many spellings, few items in several shops, few images of many products."""
    words = draw(st.lists(st.text(LETTERS, min_size=1, max_size=2), min_size=1, max_size=3))
    spellings = sorted({spelling for word in words for spelling in (word, word.upper(), word.lower(), word.title())})
    value, image = st.none() | st.sampled_from(spellings), st.sampled_from("abcdefgh")
    keyed = st.tuples(st.sampled_from("1234"), st.sampled_from(["amazon.com", "amazon.de"]))
    keys = draw(st.lists(keyed, max_size=12, unique=True))
    return [
        listing(
            item,
            *draw(st.lists(image, max_size=4, unique=True)),
            shop=shop,
            product_type=draw(value),
            color=draw(value),
            brand=draw(value),
            keywords=draw(st.lists(st.sampled_from(spellings), max_size=5, unique=True)),
        )
        for item, shop in keys
    ]


@pytest.fixture(scope="module")
def reused(server: EmbeddedServer) -> Iterator[Store]:
    """A store whose listings each example replaces."""
    with fresh_database(server) as url:
        store = Store(open_engine(make_url(url)))
        yield store
        store.engine.dispose()


# The machine that runs this is shared, so no example has a deadline.
@settings(deadline=None, database=None, max_examples=100)
@given(catalogues(), st.lists(st.sampled_from("abcdefghi"), max_size=14), st.integers(1, 7))
def test_random_listings_are_counted_as_they_are_here(reused, products, images, most):
    write(reused, products)

    assert facets(reused.engine, images) == facets_again(products, images)
    assert keywords(reused.engine, images, most) == keywords_again(products, images, most)


def test_five_thousand_images_are_counted_as_one_is(store):
    rng = np.random.default_rng(11)
    words = ["Red", "red", "RED", "Blau", "blau", "grün", "GRÜN", "sofa", "Sofa", "lamp"]
    images = [f"{number:05}" for number in range(5_500)]
    products = [
        listing(
            f"B{number:04}",
            *rng.choice(images, rng.integers(0, 6), replace=False).tolist(),
            product_type=str(rng.choice(words)),
            color=str(rng.choice(words)) if rng.random() < 0.7 else None,
            brand=str(number % 900),
            keywords=list(dict.fromkeys(rng.choice(words, 4).tolist())),
        )
        for number in range(2_500)
    ]
    write(store, products)
    shown = next(product["image_ids"][0] for product in products if product["image_ids"])
    asked = [shown, *rng.permutation(images)[:4_999].tolist()]

    for count in (1, 5_000):
        found = facets(store.engine, asked[:count])
        best = keywords(store.engine, asked[:count])

        assert found == facets_again(products, asked[:count])
        assert best == keywords_again(products, asked[:count], 5)
    assert sum(count.count for count in found.brand.counts) + found.brand.unknown == len(set(asked))


# --- Facets ---


def test_facets_count_images_by_what_their_products_say(store):
    write(
        store,
        [
            listing("B1", "a", "b", "c", product_type="CHAIR", color="red", brand="Rivet"),
            listing("B2", "d", "e", product_type="SOFA", color="red", brand="Umi"),
            listing("B3", "f", product_type="SOFA", color="blue"),
        ],
    )

    found = facets(store.engine, ["f", "e", "d", "c", "b", "no product", "f", "f"])

    assert found == Facets(
        product_type=Facet(counts(("SOFA", 3), ("CHAIR", 2)), unknown=1),
        color=Facet(counts(("red", 4), ("blue", 1)), unknown=1),
        brand=Facet(counts(("Rivet", 2), ("Umi", 2)), unknown=2),
    )


def test_of_no_images_there_is_nothing_to_tell(store):
    nothing = Facet((), unknown=0)

    assert facets(store.engine, []) == Facets(nothing, nothing, nothing)
    assert keywords(store.engine, []) == []


def test_spellings_that_differ_in_case_are_one_value_in_the_most_frequent_of_them(store):
    spellings = ["Grün", "GRÜN", "GRÜN", "grün", "Ёлка", "ёлка", "rot"]
    write(store, [listing(f"B{at}", f"{at}", color=color) for at, color in enumerate(spellings)])

    found = facets(store.engine, [f"{at}" for at in range(7)])

    # Of the two that are equally frequent, the capital comes first in Unicode.
    assert found.color == Facet(counts(("GRÜN", 4), ("Ёлка", 2), ("rot", 1)), unknown=0)


def test_values_come_in_the_order_of_their_code_points(store):
    colors = ["z", "Z", "a", "é", "B", "_", "🪑"]
    write(store, [listing(f"B{at}", f"{at}", color=f"{color}{at}") for at, color in enumerate(colors)])

    found = facets(store.engine, [f"{at}" for at in range(7)])

    values = [count.value for count in found.color.counts]
    assert values == sorted(values)
    assert len(values) == 7


def test_a_value_is_data_whatever_it_looks_like(store):
    awkward = ["it's", 'say "x"', "'; DROP TABLE products; --", ":ids %s %(most)s {0}", "\\", "\n", "𐐀🪑", "a" * 9_000]
    write(store, [listing(f"B{at}", f"'{at}", brand=text, keywords=awkward) for at, text in enumerate(awkward)])
    images = [f"'{at}" for at in range(8)]

    assert facets(store.engine, images).brand == Facet(counts(*((text, 1) for text in sorted(awkward))), unknown=0)
    assert keywords(store.engine, images, 99) == [Count(text, 8) for text in sorted(awkward)]


def test_a_hit_is_counted_as_the_product_that_describes_it_in_a_search(store):
    rng = np.random.default_rng(4)
    images = [f"{number:02}" for number in range(40)]
    rows = [(name, f"{name}.jpg", 1000, 1000, sample_key(name), 0, 1, "d1") for name in images]
    store.write_images(pl.DataFrame(rows, schema=catalog.SCHEMA, orient="row"))
    space = store.open_space("clip", NamedEncoder())
    vectors = rng.normal(size=(40, 3)).astype(np.float32)
    space.write(
        [Embedded(name, sample_key(name), "d1", vector) for name, vector in zip(images, vectors, strict=True)], []
    )
    write(
        store,
        [
            listing(
                f"B{number % 20}",
                *rng.choice(images, 4, replace=False).tolist(),
                shop=f"shop {number // 20}",
                product_type=f"type {number % 7}",
                color=f"color {number}",
                brand=None if number % 3 else "Umi",
            )
            for number in range(60)
        ],
    )

    hits = nearest(space, vectors[0], 30, Scope(None, LAST_KEY, None))

    found = facets(space.engine, [hit.image_id for hit in hits])
    for name in ("product_type", "color", "brand"):
        said = Counter(getattr(hit, name) for hit in hits)
        unknown = said.pop(None, 0)
        assert getattr(found, name) == Facet(tuple(ordered(Count(*item) for item in said.items())), unknown)


class NamedEncoder(NamedOnly):
    """What opening a space asks of a model: who it is. Embedding is not tested here."""

    fingerprint = "0011223344556677"
    dimension = 3
    model = "clip-test"
    device = "cpu"


# --- Keywords ---


def test_keywords_of_the_best_product_are_counted_over_the_products_of_all(store):
    write(
        store,
        [
            listing("B1", "a", "b", keywords=["seat", "Chaise", "sitting room", "oak", "rare"]),
            listing("B2", "c", keywords=["chaise", "oak", "sofa", "sofa bed"]),
            listing("B3", "d", keywords=["chaise", "sofa"]),
            listing("B4", "e", keywords=["oak", "seat", "rare", "sitting room"]),
        ],
    )

    found = keywords(store.engine, ["b", "a", "d", "c", "b", "c", "no product"])

    assert found == [
        Count("chaise", 3),
        Count("oak", 2),
        Count("rare", 1),
        Count("seat", 1),
        Count("sitting room", 1),
    ]
    assert keywords(store.engine, ["b", "d", "c"], most=2) == found[:2]


def test_only_the_first_image_has_a_say_in_which_keywords_there_are(store):
    write(store, [listing("B1", "a", keywords=["oak"]), listing("B2", "b", keywords=["oak", "bed"])])

    assert keywords(store.engine, ["a", "b"]) == [Count("oak", 2)]
    assert keywords(store.engine, ["b", "a", "b"]) == [Count("oak", 2), Count("bed", 1)]


def test_an_item_in_several_shops_is_one_product(store):
    write(
        store,
        [
            listing("B1", "a", keywords=["oak", "OAK"]),
            listing("B2", "b", shop="amazon.com", keywords=["oak"]),
            listing("B2", "c", shop="amazon.de", keywords=["Oak"]),
        ],
    )

    assert keywords(store.engine, ["a", "b", "c"]) == [Count("oak", 2)]


def test_without_a_product_or_its_keywords_there_are_none(store):
    write(store, [listing("B1", "a"), listing("B2", "b", keywords=["oak"])])

    assert keywords(store.engine, ["a", "b"]) == []
    assert keywords(store.engine, ["no product", "b"]) == []


def test_a_database_in_no_encoding_counts_too(server):
    address = make_url(server.url("postgres"))
    name = f"plain_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(
        user=address.username, dbname="postgres", host=str(address.query["host"]), autocommit=True
    ) as administration:
        administration.execute(f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' TEMPLATE template0")
        store = Store(open_engine(make_url(server.url(name))))
        write(store, [listing("B1", "a", color="Red", keywords=["größe"]), listing("B2", "b", color="red")])

        assert facets(store.engine, ["a", "b"]).color == Facet(counts(("Red", 2)), unknown=0)
        assert keywords(store.engine, ["a", "b"]) == [Count("größe", 1)]

        store.engine.dispose()
        administration.execute(f"DROP DATABASE {name} WITH (FORCE)")
