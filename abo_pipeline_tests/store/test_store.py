"""The catalogue and the listings in Postgres, and the spaces that are opened there."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pytest
from sqlalchemy import make_url, select, text
from sqlalchemy.exc import DBAPIError

from abo_pipeline import catalog, listings
from abo_pipeline.errors import ModelError, StoreError
from abo_pipeline.sampling import partition_starts
from abo_pipeline.store import Merged, Store
from abo_pipeline.store.database import open_engine, transaction
from abo_pipeline.store.schema import Image, Product, ProductImage
from abo_pipeline.store.spaces import Account, Embedded, Failed
from benchmarks.stores import NamedOnly

IMAGES = [
    # image_id, path, width, height, sample_key, offset, size, digest
    ("81a0ee4c", "81/81a0ee4c.jpg", 2560, 1440, 0, 512, 9_001, "d1"),
    ("61b1f3ca", "61/61b1f3ca.jpg", 1000, 1000, 5, 10_240, 7, "d2"),
    ("7f00cafe", "7f/7f00cafe.png", 5000, 4999, 2**63 - 1, 20_480, 20_000_000, "d3"),
]
PRODUCTS = [
    # item_id, domain_name, title, product_type, color, brand, country, keywords, image_ids
    ("B01", "amazon.com", "A 'red' chair", "CHAIR", "red", "Rivet", "US", ["seat", "chaise"], ["81a0ee4c", "61b1f3ca"]),
    ("B01", "amazon.de", "Ein roter Stuhl", "CHAIR", None, None, "DE", [], ["61b1f3ca"]),
    ("B02", "amazon.com", None, None, None, None, None, ["größe"], []),
]


@dataclass(frozen=True)
class NamedEncoder(NamedOnly):
    """What opening a space asks of a model: who it is. Embedding is not tested here."""

    fingerprint: str = "0011223344556677"
    dimension: int = 3
    model: str = "clip-test"
    device: str = "cpu"


class AbsentEncoder:
    """A model that cannot be loaded."""

    model = "clip-absent"
    dimension = 3

    @property
    def fingerprint(self) -> str:
        raise ModelError("There is no model.")


def kept(rows: Sequence[tuple]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=catalog.SCHEMA, orient="row")


def products(rows: Sequence[tuple]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=listings.SCHEMA, orient="row")


def rows(store: Store, model: Any) -> set[tuple]:
    """All rows of a table; lists as tuples, for a set to hold."""
    with transaction(store.engine) as connection:
        found = connection.execute(select(model.__table__)).all()
    return {tuple(tuple(value) if isinstance(value, list) else value for value in row) for row in found}


def without(row: tuple, *places: int) -> tuple:
    return tuple(tuple(value) if isinstance(value, list) else value for at, value in enumerate(row) if at not in places)


# --- The catalogue ---


def test_the_catalogue_is_written_without_where_its_bytes_are(store):
    merged = store.write_images(kept(IMAGES))

    assert merged == Merged(added=3, changed=0, removed=0)
    assert rows(store, Image) == {without(row, 5, 6) for row in IMAGES}


def test_the_same_catalogue_again_changes_nothing(store):
    store.write_images(kept(IMAGES))

    merged = store.write_images(kept(IMAGES[::-1]))

    assert merged == Merged(added=0, changed=0, removed=0)
    assert rows(store, Image) == {without(row, 5, 6) for row in IMAGES}


def test_bytes_that_only_moved_in_the_archive_are_no_change(store):
    store.write_images(kept(IMAGES))

    merged = store.write_images(kept([(*row[:5], row[5] + 1024, *row[6:]) for row in IMAGES]))

    assert merged == Merged(added=0, changed=0, removed=0)


def test_the_catalogue_becomes_what_the_newest_one_says(store):
    store.write_images(kept(IMAGES))
    newest = [IMAGES[0], (*IMAGES[1][:7], "other bytes"), ("00000000", "00/00000000.jpg", 1200, 1300, 9, 0, 1, "d4")]

    merged = store.write_images(kept(newest))

    assert merged == Merged(added=1, changed=1, removed=1)
    assert rows(store, Image) == {without(row, 5, 6) for row in newest}


def test_an_empty_catalogue_empties_the_table(store):
    store.write_images(kept(IMAGES))

    merged = store.write_images(kept([]))

    assert merged == Merged(added=0, changed=0, removed=3)
    assert rows(store, Image) == set()


def thousand(first: int = 0) -> pl.DataFrame:
    """A catalogue of the images from that number up to the thousandth."""
    return kept([(f"{n:08x}", f"{n:08x}.jpg", 1000, 1000, n, 0, 1, "d") for n in range(first, 1_000)])


@pytest.fixture
def embedded_thousand(store: Store) -> Store:
    """A thousand images, of which one is embedded."""
    store.write_images(thousand())
    store.open_space("clip", NamedEncoder()).write([Embedded(f"{999:08x}", 999, "d", np.ones(3, np.float32))], [])
    return store


def test_a_catalogue_that_would_lose_more_than_can_be_meant_is_refused_and_nothing_changes(embedded_thousand):
    with pytest.raises(StoreError) as refused:
        embedded_thousand.write_images(thousand(first=101))

    assert str(refused.value) == (
        "101 of the catalogue's 1,000 images are not in this archive, or not kept any more, and their vectors would be "
        "removed. If this is another archive, give it a catalogue of its own with --catalogue NAME (ABO_CATALOGUE); "
        "if they are meant to go, use --allow-removal."
    )
    assert len(rows(embedded_thousand, Image)) == 1_000


def test_a_few_images_may_leave_without_a_question(embedded_thousand):
    merged = embedded_thousand.write_images(thousand(first=100))

    assert merged == Merged(added=0, changed=0, removed=100)


def test_all_images_may_leave_where_it_is_allowed(embedded_thousand):
    merged = embedded_thousand.write_images(kept([]), allow_removal=True)

    assert merged == Merged(added=0, changed=0, removed=1_000)


def test_all_images_may_leave_where_none_is_embedded(store):
    store.write_images(thousand())
    store.open_space("clip", NamedEncoder())

    merged = store.write_images(kept([]))

    assert merged == Merged(added=0, changed=0, removed=1_000)


# --- The listings ---


def test_listings_are_written_with_the_place_of_each_image(store):
    merged = store.write_products(products(PRODUCTS))

    assert merged == Merged(added=3, changed=0, removed=0)
    assert rows(store, Product) == {without(row, 8) for row in PRODUCTS}
    assert rows(store, ProductImage) == {
        ("81a0ee4c", 0, "B01", "amazon.com"),
        ("61b1f3ca", 1, "B01", "amazon.com"),
        ("61b1f3ca", 0, "B01", "amazon.de"),
    }


def test_the_same_listings_again_change_nothing(store):
    store.write_products(products(PRODUCTS))
    before = rows(store, ProductImage)

    merged = store.write_products(products(PRODUCTS[::-1]))

    assert merged == Merged(added=0, changed=0, removed=0)
    assert rows(store, ProductImage) == before


def test_listings_become_what_the_newest_say(store):
    store.write_products(products(PRODUCTS))
    # The first one's images have changed places, which is no change of the listing itself; the second one is gone.
    newest = [(*PRODUCTS[0][:8], ["61b1f3ca", "81a0ee4c"]), (*PRODUCTS[2][:2], "A title", *PRODUCTS[2][3:])]

    merged = store.write_products(products(newest))

    assert merged == Merged(added=0, changed=1, removed=1)
    assert rows(store, Product) == {without(row, 8) for row in newest}
    assert rows(store, ProductImage) == {
        ("61b1f3ca", 0, "B01", "amazon.com"),
        ("81a0ee4c", 1, "B01", "amazon.com"),
    }


def test_without_listings_there_are_no_products(store):
    store.write_products(products(PRODUCTS))

    merged = store.write_products(listings.no_listings().products)

    assert merged == Merged(added=0, changed=0, removed=3)
    assert (rows(store, Product), rows(store, ProductImage)) == (set(), set())


def test_a_listing_may_have_thousands_of_images(store):
    images = [f"{number:08x}" for number in range(5_000)]

    store.write_products(products([(*PRODUCTS[0][:8], images)]))

    assert rows(store, ProductImage) == {(image, at, "B01", "amazon.com") for at, image in enumerate(images)}


# --- Spaces ---


def described(space: Any) -> tuple:
    return (space.name, space.model, space.dimension, space.fingerprint, space.table.name)


def test_a_space_is_made_on_first_use_and_found_ever_after(store):
    assert store.find_space("clip") is None

    made = store.open_space("clip", NamedEncoder())
    opened = store.open_space("clip", NamedEncoder(model="another name for the same model"))
    found = store.find_space("clip")

    expected = ("clip", "clip-test", 3, "0011223344556677", "embeddings_clip")
    assert [described(space) for space in (made, opened, found)] == [expected] * 3
    with transaction(store.engine) as connection:
        assert connection.execute(text("SELECT name, model, dimension, fingerprint FROM spaces")).all() == [
            expected[:4]
        ]


@pytest.mark.parametrize("name", ["a", "order", "x" * 32, "clip_vit_b_32"])
def test_any_slug_names_a_space(store, name):
    space = store.open_space(name, NamedEncoder())

    space.write([Embedded("81a0ee4c", 0, "d1", np.ones(3, np.float32))], [])

    assert space.known(0, 0)[0].rows() == [("81a0ee4c", "d1")]


def test_a_space_that_many_open_first_at_once_is_made_once(database_url):
    def open_first(_: int) -> tuple:
        own = Store(open_engine(make_url(database_url)))
        start.wait()
        space = own.open_space("clip", NamedEncoder())
        own.engine.dispose()
        return described(space)

    start = threading.Barrier(4)

    with ThreadPoolExecutor(4) as threads:
        opened = list(threads.map(open_first, range(4)))

    assert opened == [("clip", "clip-test", 3, "0011223344556677", "embeddings_clip")] * 4


def test_two_models_that_come_first_at_once_do_not_share_a_space(database_url):
    def open_first(encoder: NamedEncoder) -> str:
        own = Store(open_engine(make_url(database_url)))
        start.wait()
        try:
            return own.open_space("clip", encoder).fingerprint
        except StoreError:
            return "refused"
        finally:
            own.engine.dispose()

    start = threading.Barrier(2)

    with ThreadPoolExecutor(2) as threads:
        opened = list(threads.map(open_first, [NamedEncoder("a" * 16), NamedEncoder("b" * 16, dimension=4)]))

    assert sorted(opened) in ([["a" * 16, "refused"], ["b" * 16, "refused"]])


def test_another_model_is_refused_by_both_names(store):
    store.open_space("clip", NamedEncoder())

    with pytest.raises(StoreError) as refused:
        store.open_space("clip", NamedEncoder("8899aabbccddeeff", model="clip-other"))

    assert str(refused.value) == (
        "Space clip holds vectors of clip-test (fingerprint 0011223344556677), and clip-other has fingerprint "
        "8899aabbccddeeff: they cannot be compared. Use that model, or name another space with --space (ABO_SPACE)."
    )


def test_as_long_as_nothing_is_embedded_a_model_may_change(store):
    store.open_space("clip", NamedEncoder())

    space = store.open_space("clip", NamedEncoder("8899aabbccddeeff"))

    assert store.settle_space("clip", NamedEncoder("8899aabbccddeeff"), {}).fingerprint == "8899aabbccddeeff"
    assert space.name == "clip"


def test_a_space_whose_encoder_is_chosen_is_opened_without_its_model(store):
    class Unloaded(NamedEncoder):
        @property
        def dimension(self):
            pytest.fail("the model was loaded")

        @dimension.setter
        def dimension(self, value):
            pass

    store.open_space("clip", NamedEncoder())
    store.settle_space("clip", NamedEncoder(), {})

    assert store.open_space("clip", Unloaded()).name == "clip"


def test_a_model_that_has_changed_since_is_refused_by_both_fingerprints(store):
    store.open_space("clip", NamedEncoder())
    store.settle_space("clip", NamedEncoder(), {})

    with pytest.raises(StoreError) as refused:
        store.open_space("clip", NamedEncoder("8899aabbccddeeff"))

    assert str(refused.value) == (
        "Space clip holds vectors of clip-test as it was with fingerprint 0011223344556677; now it has "
        "8899aabbccddeeff, because its files have changed, or the way to prepare pictures for it, or its precision: "
        "they cannot be compared. Put the model back as it was, unset ABO_PRECISION and ABO_PREPARATION, or embed into "
        "another space with --space (ABO_SPACE)."
    )


def test_vectors_of_another_length_are_refused_with_both_lengths(store):
    store.open_space("clip", NamedEncoder(dimension=512))

    with pytest.raises(StoreError) as refused:
        store.open_space("clip", NamedEncoder("8899aabbccddeeff", dimension=768, model="clip-other"))

    assert str(refused.value) == (
        "Space clip holds vectors of clip-test (fingerprint 0011223344556677), and clip-other has fingerprint "
        "8899aabbccddeeff, with 512 and 768 dimensions: they cannot be compared. Use that model, or name another "
        "space with --space (ABO_SPACE)."
    )


def test_a_refused_model_leaves_the_space_as_it_was(store):
    store.open_space("clip", NamedEncoder())

    with pytest.raises(StoreError):
        store.open_space("clip", NamedEncoder("8899aabbccddeeff", dimension=4))

    assert described(store.find_space("clip")) == ("clip", "clip-test", 3, "0011223344556677", "embeddings_clip")


def test_a_model_that_cannot_be_loaded_makes_no_space(store):
    with pytest.raises(ModelError, match="There is no model"):
        store.open_space("clip", AbsentEncoder())

    assert store.find_space("clip") is None


@pytest.mark.parametrize(
    ("vector", "reason"),
    [("[1,2]", "expected 3 dimensions, not 2"), ("[1,2,3,4]", "expected 3 dimensions, not 4"), ("[1,NaN,0]", "NaN")],
)
def test_the_table_itself_refuses_what_is_no_vector_of_the_space(store, vector, reason):
    store.open_space("clip", NamedEncoder())

    with pytest.raises(DBAPIError, match=reason), transaction(store.engine) as connection:
        connection.execute(text("INSERT INTO embeddings_clip VALUES ('a', 0, 'd', 'f', :vector)"), {"vector": vector})


def test_vectors_lie_in_the_row_and_not_beside_it(store):
    store.open_space("clip", NamedEncoder(dimension=512)).write(
        [Embedded(f"{n:08x}", n, "d", np.random.default_rng(n).normal(size=512).astype(np.float32)) for n in range(9)],
        [],
    )

    with transaction(store.engine) as connection:
        beside = connection.scalar(
            text("SELECT pg_relation_size(reltoastrelid) FROM pg_class WHERE relname = 'embeddings_clip'")
        )

    assert beside == 0


def test_a_space_that_does_not_exist_yet_has_everything_pending(store):
    store.write_images(kept(IMAGES))

    accounts = store.accounts("clip", partition_starts(4))

    assert accounts == [
        Account(kept=2, embedded=0, failed=0, pending=2, departed=0),
        Account(kept=0, embedded=0, failed=0, pending=0, departed=0),
        Account(kept=0, embedded=0, failed=0, pending=0, departed=0),
        Account(kept=1, embedded=0, failed=0, pending=1, departed=0),
    ]
    assert store.find_space("clip") is None


def test_each_space_has_an_account_of_its_own(store):
    store.write_images(kept(IMAGES))
    failure = Failed("61b1f3ca", 5, "d2", "decode", "OSError", "it is truncated")
    store.open_space("clip", NamedEncoder()).write([Embedded("81a0ee4c", 0, "d1", np.ones(3, np.float32))], [])
    store.open_space("other", NamedEncoder("8899aabbccddeeff", dimension=4)).write([], [failure])

    accounts = {name: store.accounts(name, [0]) for name in ("clip", "other", "none")}

    assert accounts == {
        "clip": [Account(kept=3, embedded=1, failed=0, pending=2, departed=0)],
        "other": [Account(kept=3, embedded=0, failed=1, pending=2, departed=0)],
        "none": [Account(kept=3, embedded=0, failed=0, pending=3, departed=0)],
    }
