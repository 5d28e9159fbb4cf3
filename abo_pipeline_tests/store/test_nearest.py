"""Searching vectors that are spread as CLIP's are, compared with numpy, which looks at every one of them."""

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import numpy as np
import polars as pl
import pytest
from sqlalchemy import Engine, event, text

from abo_pipeline import catalog, listings
from abo_pipeline.sampling import LAST_KEY, sample_key
from abo_pipeline.store import Store
from abo_pipeline.store.database import open_engine, transaction
from abo_pipeline.store.embedded import EmbeddedServer
from abo_pipeline.store.explain import plan_of
from abo_pipeline.store.indexes import build_index
from abo_pipeline.store.nearest import (
    Ask,
    Neighbour,
    Scope,
    first_image,
    nearest,
    neighbour_chunks,
    scope,
    stored_vector,
    stored_with_digest,
    way_of,
)
from abo_pipeline.store.spaces import Embedded
from abo_pipeline_tests.library import DIMENSION, Library, NamedEncoder, Vectors, clip, ids, stored_library

ROWS = 3_000
SIZES = (300, 1_000, 3_000)
EVERYTHING = Scope(None, LAST_KEY, None)


def picture(name: str, similarity: float, *product: str) -> Neighbour:
    """A hit, with the product that describes it if there is one."""
    return Neighbour(name, f"{name}.jpg", pytest.approx(similarity, abs=1e-6), *(product or [None] * 5))


@pytest.fixture(scope="module")
def library(server: EmbeddedServer) -> Iterator[Library]:
    """Three thousand pictures with an index for each of three sizes. No test changes it."""
    vectors = clip().images(ROWS)
    # Some pictures are in it four times, byte by byte.
    vectors[-90:] = np.repeat(vectors[:30], 3, axis=0)
    with stored_library(server, vectors) as library:
        library.index(*SIZES)
        yield library


def queries(count: int) -> list[Vectors]:
    """So many that are like pictures, and as many that are like texts."""
    return [*clip().like_images(count), *clip().texts(count)]


# --- Exactly ---


@pytest.mark.parametrize("k", [1, 10, 60])
def test_an_exact_search_orders_as_numpy_does(library, k):
    asked = queries(10)

    answers = [nearest(library.space, query, k, EVERYTHING) for query in asked]

    assert [ids(answer) for answer in answers] == [library.expected(query, k) for query in asked]


@pytest.mark.parametrize("size", [None, 1_000, 3_000])
def test_equal_pictures_come_by_their_ids(library, size):
    within = scope(library.space, size)
    twins = {
        vector.tobytes(): [str(name) for name in sorted(library.ids[:size][(library.vectors[:size] == vector).all(1)])]
        for vector in library.vectors[:size]
    }
    groups = [(np.frombuffer(key, np.float32), names) for key, names in twins.items() if len(names) > 1]

    for fewer in (0, 1):
        answers = [ids(nearest(library.space, vector, len(names) - fewer, within)) for vector, names in groups]

        assert answers == [names[: len(names) - fewer] for _, names in groups]

    assert len(groups) >= 5


@pytest.mark.parametrize("within", [EVERYTHING, "indexed"])
def test_similarities_are_numpys(library, within):
    within = scope(library.space, ROWS) if within == "indexed" else within
    place = {str(name): at for at, name in enumerate(library.ids)}

    for query in queries(5):
        similarities = library.similarities(query)
        hits = nearest(library.space, query, 100, within)

        assert hits == [picture(name, similarities[place[name]]) for name in ids(hits)]


# --- By an index ---


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["image", "text"])
def test_an_index_finds_what_an_exact_search_finds(library, size, kind):
    asked = clip().like_images(40) if kind == "image" else clip().texts(40)
    within = scope(library.space, size)

    recall = library.recall(asked, 10, within)

    assert within.index_name
    assert recall >= 0.98


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("k", [1, 10, 300])
def test_the_index_of_the_size_is_what_the_planner_uses(library, size, k):
    within = scope(library.space, size)

    plan = plan_of(library.space, Ask(queries(1)[0], k, within))

    assert f"Index Scan using {within.index_name} on embeddings_clip" in plan
    assert "Seq Scan on embeddings_clip" not in plan


def test_an_exact_search_of_a_small_size_reads_no_more_than_that(library):
    small = replace(scope(library.space, min(SIZES)), index_name=None)

    plan = plan_of(library.space, Ask(queries(1)[0], 10, small))

    assert plan.count(f"(sample_key <= '{small.cutoff}'::bigint)") == 2, plan


def test_an_exact_search_uses_no_vector_index(library):
    plan = plan_of(library.space, Ask(queries(1)[0], 10, EVERYTHING))

    assert "hnsw" not in plan


def test_the_hundredth_search_goes_by_the_index_as_the_first_did(library):
    """A statement that comes often is prepared, and may get another plan."""
    # An engine of its own has one connection to search with, which counts what it has done when it is closed.
    store = Store(open_engine(library.store.engine.url))
    space = store.open_space("clip", NamedEncoder())
    within = scope(space, 1_000)
    scans = text("SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = :name")

    def counted() -> int:
        with transaction(library.store.engine) as connection:
            return int(connection.scalar(scans, {"name": within.index_name}))

    before = counted()

    for query in queries(50):
        nearest(space, query, 10, within)
    store.engine.dispose()

    deadline = time.monotonic() + 30
    while counted() < before + 100 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert counted() == before + 100


@pytest.mark.parametrize("strategy", ["hnsw", "ivfflat", "bit"])
def test_a_size_is_searched_by_its_own_index_although_a_larger_ones_would_be_cheaper(store, strategy):
    library = Library(store, clip().images(1_500))
    # Of inverted lists, the smaller size has one, and the larger two that are half as long.
    for size in (1_400, 1_450):
        build_index(library.space, size, library.cutoff(size), memory_mb=64, strategy=strategy)

    plans = {
        size: plan_of(library.space, Ask(clip().texts(1)[0], 10, scope(library.space, size), effort=1))
        for size in (1_400, 1_450)
    }

    used = {size: f"using {scope(library.space, size).index_name} " in plan for size, plan in plans.items()}
    assert used == {1_400: True, 1_450: True}


@pytest.mark.parametrize(("k", "left_out"), [(10, 0), (10, 250), (100, 0), (333, 0)])
def test_what_the_index_answers_in_full_is_not_searched_exactly_as_well(library, k, left_out):
    searches = []

    def note(connection, cursor, statement, *_: object) -> None:  # noqa: ARG001 - SQLAlchemy gives them
        searches.extend(name for name in ("WITH candidates", "WITH hits") if name in statement)

    event.listen(Engine, "before_cursor_execute", note)
    for query in queries(5):
        exclude = library.expected(query, left_out)
        nearest(library.space, query, k, scope(library.space, ROWS), exclude=exclude)
    event.remove(Engine, "before_cursor_execute", note)

    assert searches == ["WITH candidates"] * 10


@pytest.mark.parametrize("k", [41, 100, 500, 1_000, 1_001, 5_000])
@pytest.mark.parametrize("size", SIZES)
def test_k_hits_are_k_hits_or_all_there_are(library, size, k):
    within = scope(library.space, size)

    hits = [nearest(library.space, query, k, within) for query in queries(1)]

    assert [len(set(ids(found))) for found in hits] == [min(k, size)] * 2
    assert library.recall(queries(2), k, within) >= 0.98


@pytest.mark.parametrize("within", [EVERYTHING, *SIZES])
def test_hits_come_from_the_most_similar_to_the_least(library, within):
    within = within if isinstance(within, Scope) else scope(library.space, within)

    for query in queries(10):
        hits = nearest(library.space, query, 120, within)

        assert [(hit.similarity, hit.image_id) for hit in hits] == sorted(
            [(hit.similarity, hit.image_id) for hit in hits], key=lambda hit: (-hit[0], hit[1])
        )


def test_a_size_sees_its_own_images_only(library):
    members = {size: set(library.ids[:size]) for size in SIZES}

    for query in queries(10):
        found = {size: set(ids(nearest(library.space, query, 200, scope(library.space, size)))) for size in SIZES}

        assert [size for size in SIZES if not found[size] <= members[size]] == []


def test_what_a_larger_size_finds_among_the_images_of_a_smaller_one_that_one_finds_too(library):
    exactly = {size: replace(scope(library.space, size), index_name=None) for size in SIZES}

    for query in queries(10):
        found = {size: set(ids(nearest(library.space, query, 50, exactly[size]))) for size in SIZES}

        assert found[3_000] & set(library.ids[:1_000]) <= found[1_000]
        assert found[1_000] & set(library.ids[:300]) <= found[300]


# --- Leaving images out ---


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 5, 250])
def test_images_left_out_make_room_for_the_next(library, size, count):
    indexed = scope(library.space, size)
    exactly = replace(indexed, index_name=None)
    found = []

    for query in queries(10):
        left_out = library.expected(query, count, size=size)
        expected = library.expected(query, 10, size=size, without=left_out)
        hits = ids(nearest(library.space, query, 10, indexed, exclude=left_out))

        assert ids(nearest(library.space, query, 10, exactly, exclude=left_out)) == expected
        assert len(set(hits) - set(left_out)) == 10
        found.append(len(set(hits) & set(expected)) / 10)

    assert np.mean(found) >= 0.98


def test_leaving_out_all_but_three_leaves_three(library):
    query, within = queries(1)[0], scope(library.space, ROWS)
    rest = [str(library.ids[at]) for at in (7, 500, 2_999)]

    hits = nearest(library.space, query, 10, within, exclude=sorted(set(map(str, library.ids)) - set(rest)))

    assert sorted(ids(hits)) == sorted(rest)


def test_leaving_out_an_image_that_is_not_there_changes_nothing(library):
    query, within = queries(1)[0], scope(library.space, ROWS)

    hits = nearest(library.space, query, 10, within, exclude=["never seen", "it's"])

    assert hits == nearest(library.space, query, 10, within)


# --- What a size means ---


def test_an_indexed_size_is_what_was_indexed(library):
    found = [scope(library.space, size) for size in SIZES]

    assert [(within.size, within.cutoff) for within in found] == [
        (300, int(library.keys[299])),
        (1_000, int(library.keys[999])),
        (3_000, int(library.keys[2_999])),
    ]
    assert len({within.index_name for within in found}) == 3


def test_no_size_is_the_largest_that_is_indexed(library):
    assert scope(library.space, None) == scope(library.space, 3_000)


def test_a_size_that_was_never_indexed_is_searched_exactly(library):
    within = scope(library.space, 700)

    assert within == Scope(700, int(library.keys[699]), None)
    for query in queries(3):
        assert ids(nearest(library.space, query, 20, within)) == library.expected(query, 20, size=700)


def test_a_size_beyond_the_catalogue_is_all_of_it(library):
    within = scope(library.space, 100_000)

    assert within == Scope(100_000, LAST_KEY, None)
    assert len(nearest(library.space, queries(1)[0], 5_000, within)) == ROWS


def test_without_any_index_no_size_is_every_image(store):
    space = store.open_space("clip", NamedEncoder())

    assert scope(space, None) == EVERYTHING


def test_the_smallest_key_there_can_be_is_a_cutoff_too(store):
    space = store.open_space("clip", NamedEncoder())
    rows = [("a", "a.jpg", 1000, 1000, 0, 0, 1, "d1"), ("b", "b.jpg", 1000, 1000, 1, 0, 1, "d1")]
    store.write_images(pl.DataFrame(rows, schema=catalog.SCHEMA, orient="row"), allow_removal=True)

    assert scope(space, 1) == Scope(1, 0, None)


# --- Rows that come and go ---


@pytest.fixture
def small(store: Store) -> Library:
    """Eight hundred pictures, all of them indexed; a test's own to change."""
    library = Library(store, clip(seed=5).images(800))
    library.index(800)
    return library


def both(library: Library) -> list[Scope]:
    """The same images by an index and exactly."""
    indexed = scope(library.space, None)
    assert indexed.index_name
    return [indexed, replace(indexed, index_name=None)]


def test_an_image_that_left_the_catalogue_is_not_found_and_takes_nobodys_place(small):
    query = clip(seed=5).like_images(1)[0]
    departed = small.expected(query, 300)[::2]
    small.catalogue(sorted(set(small.ids) - set(departed)))

    for within in both(small):
        for k in (1, 10, 100, 650, 800):
            hits = ids(nearest(small.space, query, k, within))

            assert hits == small.expected(query, k, without=departed)


def test_with_half_of_the_rows_deleted_the_other_half_is_found(small):
    asked = [*clip(seed=5).like_images(8), *clip(seed=5).texts(8)]
    gone = [str(name) for name in small.ids[::2]]
    small.catalogue(small.ids[1::2])
    small.space.remove(gone)

    for within in both(small):
        for k in (10, 100, 400, 500):
            assert small.recall(asked, k, within, without=gone) >= 0.98


def test_a_row_written_after_the_index_is_found_by_it(small):
    query = clip(seed=6).texts(1)[0]
    small.catalogue([*small.ids, "new"])
    small.index(801)

    small.space.write([Embedded("new", sample_key("new"), "d1", query)], [])

    for within in both(small):
        assert nearest(small.space, query, 1, within) == [picture("new", 1.0)]


def test_a_vector_that_is_replaced_is_found_where_it_is_now(small):
    query = clip(seed=6).texts(1)[0]
    name = str(small.ids[17])

    small.space.write([Embedded(name, sample_key(name), "d2", query)], [])

    for within in both(small):
        hits = ids(nearest(small.space, query, 800, within))
        assert (hits[0], len(hits), len(set(hits))) == (name, 800, 800)


@pytest.mark.parametrize("k", [500, 501, 700, 1_500])
def test_five_hundred_equal_pictures_are_all_found(store, k):
    vectors = clip(seed=5).images(1_200)
    vectors[100:600] = vectors[100]
    library = Library(store, vectors)
    library.index(1_200)
    equals = sorted(str(name) for name in library.ids[(library.vectors == vectors[100]).all(1)])

    for within in both(library):
        hits = ids(nearest(library.space, vectors[100], k, within))

        assert len(hits) == len(set(hits)) == min(k, 1_200)
        assert hits[:500] == equals


def test_of_more_equals_than_are_asked_for_as_many_are_given_in_the_order_of_their_ids(store):
    vectors = clip(seed=5).images(600)
    vectors[100:600] = vectors[100]
    library = Library(store, vectors)
    library.index(600)
    equals = {str(name) for name in library.ids[(library.vectors == vectors[100]).all(1)]}

    for within in both(library):
        hits = ids(nearest(library.space, vectors[100], 10, within))

        assert hits == sorted(equals & set(hits))
        assert len(hits) == 10


def test_a_space_of_equal_pictures_only_is_found_whole(store):
    library = Library(store, np.repeat(clip(seed=5).images(1), 700, axis=0))
    library.index(700)

    for within in both(library):
        for k in (1, 10, 500, 700, 800):
            assert len(nearest(library.space, library.vectors[0], k, within)) == min(k, 700)


def test_an_empty_space_answers_with_nothing(store):
    library = Library(store, np.empty((0, DIMENSION), np.float32))
    library.index(10)

    for within in both(library):
        assert nearest(library.space, queries(1)[0], 10, within) == []
    assert first_image(library.space) is None


# --- What is known of a hit ---


def test_a_hit_is_described_by_the_product_that_it_is_the_main_image_of(store):
    library = Library(store, clip(seed=5).images(3))
    main, shared, unlisted = sorted(map(str, library.ids))
    rows = [
        # item_id, domain_name, title, product_type, color, brand, country, keywords, image_ids
        ("B00", "amazon.com", "shows it among others", "CHAIR", "red", "Rivet", "US", [], [shared, main]),
        ("B07", "amazon.com", "a later item", "CHAIR", "blue", None, "US", [], [main]),
        ("B05", "amazon.de", "same item, later domain", "STUHL", None, None, "DE", [], [main, shared]),
        ("B05", "amazon.com", "its own", "CHAIR", "green", "Umi", "US", [], [main]),
    ]
    store.write_products(pl.DataFrame(rows, schema=listings.SCHEMA, orient="row"))
    library.index(3)
    query = library.vectors[list(library.ids).index(main)]

    similarities = dict(zip(library.ids, library.similarities(query), strict=True))

    for within in both(library):
        hits = nearest(library.space, query, 3, within)

        assert sorted(hits, key=lambda hit: hit.image_id) == [
            picture(main, similarities[main], "B05", "its own", "CHAIR", "green", "Umi"),
            picture(shared, similarities[shared], "B00", "shows it among others", "CHAIR", "red", "Rivet"),
            picture(unlisted, similarities[unlisted]),
        ]


def test_a_picture_of_thousands_of_products_is_one_hit(store):
    library = Library(store, clip(seed=5).images(2))
    rows = [(f"B{n:05}", "amazon.com", "a", "b", "c", "d", "US", [], list(library.ids)) for n in range(3_000)]
    store.write_products(pl.DataFrame(rows[::-1], schema=listings.SCHEMA, orient="row"))
    library.index(2)

    for within in both(library):
        hits = nearest(library.space, library.vectors[0], 10, within)

        assert [(hit.image_id, hit.item_id) for hit in hits] == [(str(name), "B00000") for name in library.ids]


def test_a_stored_vector_comes_back_as_it_was(library: Library):
    found = stored_vector(library.space, str(library.ids[5]))

    assert found is not None
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, library.vectors[5])
    assert stored_vector(library.space, "never seen") is None


def test_the_first_image_is_a_member_of_every_size(library: Library):
    assert first_image(library.space) == library.ids[0]


def test_images_are_found_by_what_their_files_hold(library: Library):
    same = sorted(map(str, library.ids[[5, 7, 700]]))
    with transaction(library.space.engine) as connection:
        connection.execute(text("UPDATE images SET digest = 'shared' WHERE image_id = ANY (:ids)"), {"ids": same})

    assert stored_with_digest(library.space, "shared") == same
    assert stored_with_digest(library.space, "unknown") == []


@pytest.mark.parametrize("kind", ["image", "text"])
def test_a_walk_finds_in_few_searches_what_one_long_answer_finds(library, kind):
    queries = clip().like_images(5) if kind == "image" else clip().texts(5)
    within = scope(library.space, ROWS)
    found = []

    for query in queries:
        asked: list[Ask] = []
        chunks = list(islice(neighbour_chunks(library.space, query, 20, within, asked=asked), 6))
        hits = [hit for chunk in chunks for hit in chunk]

        assert [len(chunk) for chunk in chunks] == [20, 20, 40, 80, 160, 320]
        assert [(ask.seen, ask.k) for ask in asked] == [(0, 20), (20, 20), (40, 40), (80, 80), (160, 160), (320, 320)]
        assert len({hit.image_id for hit in hits}) == 640
        assert hits == sorted(hits, key=lambda hit: (hit.distance, hit.image_id))
        found += [len(set(ids(hits[:k])) & set(library.expected(query, k))) / k for k in (100, 400)]

    assert np.mean(found) >= 0.98


def test_a_walk_holds_so_many_at_once_and_no_more_unless_they_are_asked_for(library, monkeypatch):
    monkeypatch.setattr("abo_pipeline.store.nearest.MOST_AT_ONCE", 50)

    within = Scope(None, library.cutoff(200), None)

    lengths = {
        chunk: [len(found) for found in neighbour_chunks(library.space, library.vectors[0], chunk, within)]
        for chunk in (20, 70)
    }

    assert lengths == {20: [20, 20, 40, 50, 50, 20], 70: [70, 70, 60]}


def test_pages_beyond_what_an_index_gives_are_searched_exactly(library):
    within = scope(library.space, ROWS)

    assert way_of(library.space, Ask(clip().texts(1)[0], 20, within, seen=980)).strategy
    assert way_of(library.space, Ask(clip().texts(1)[0], 20, within, seen=981)).strategy is None
