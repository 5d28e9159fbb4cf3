"""How a search is answered, as people are told: by which way, over how many rows, and with which true ranks."""

import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from abo_pipeline.filters import Filters
from abo_pipeline.hits import LikeQuery
from abo_pipeline.search import ExplainedHits, ImageSearch
from abo_pipeline.settings import Settings
from abo_pipeline.store import nearest as searching
from abo_pipeline.store.embedded import EmbeddedServer
from abo_pipeline.store.explain import Explanation, exact_ranks, explain, plan_of
from abo_pipeline.store.nearest import Ask, Scope, nearest, scope
from abo_pipeline_tests.library import Library, NamedEncoder, Vectors, clip, ids, stored_library

ROWS = 2_000
SIZES = (500, ROWS)
CHAIRS, LAMPS = Filters(product_type=("chair",)), Filters(product_type=("lamp",))


@pytest.fixture(scope="module")
def library(server: EmbeddedServer) -> Iterator[Library]:
    """Two thousand pictures, half of them chairs and ten of them lamps, a few of them equal. No test changes it."""
    vectors = clip().images(ROWS)
    vectors[-90:] = np.repeat(vectors[:30], 3, axis=0)
    with stored_library(server, vectors) as library:
        kinds = [("CHAIR", 2), ("LAMP", 200)]
        library.products(
            (f"{kind}{name}", "x", None, kind, None, None, None, [], [str(name)])
            for kind, step in kinds
            for name in library.ids[::step]
        )
        library.index(*SIZES)
        yield library


def query() -> Vectors:
    return clip().texts(3)[2]


def numbers_aside(explanation: Explanation) -> Explanation:
    """What does not change from one run to the next."""
    assert 0 < explanation.server_ms < 10_000
    return replace(explanation, server_ms=0.0)


def test_without_an_index_every_row_of_the_size_is_visited(library):
    exactly = replace(scope(library.space, 500), index_name=None)

    found = numbers_aside(explain(library.space, Ask(query(), 10, exactly)))

    assert found == Explanation(
        "exact", "this size has no index", None, 0, found.plan_line, visited=found.visited, server_ms=0.0
    )
    assert re.fullmatch(r"(Seq Scan|Bitmap Heap Scan|Index Scan embeddings_clip_\w+) embeddings_clip", found.plan_line)
    assert found.visited in (500, ROWS)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("k", [1, 100])
def test_by_the_index_as_many_rows_are_visited_as_are_ranked_again(library, size, k):
    within = replace(scope(library.space, size), efforts={10: 40, 100: 120})

    found = numbers_aside(explain(library.space, Ask(query(), k, within)))

    assert found == Explanation(
        "hnsw",
        "by the size's index",
        within.index_name,
        {1: 40, 100: 120}[k],
        f"Index Scan {within.index_name} embeddings_clip",
        visited={1: 21, 100: 150}[k],
        server_ms=0.0,
    )


def test_a_larger_k_than_an_index_gives_goes_without(library):
    found = explain(library.space, Ask(query(), 1_001, scope(library.space, ROWS)))

    assert (found.strategy, found.reason, found.index_name, found.effort, found.visited) == (
        "exact",
        "more than 1,000 hits are wanted",
        None,
        0,
        ROWS,
    )


def test_under_a_filter_of_few_images_only_those_are_visited(library):
    found = explain(library.space, Ask(query(), 10, scope(library.space, ROWS), filters=LAMPS))

    assert (found.strategy, found.index_name, found.effort) == ("exact", None, 0)
    assert found.reason == "about 0.5% pass the filter: few enough to compare with all of them"
    assert found.visited in (10, ROWS)


def test_by_the_index_under_a_filter_the_rows_it_turns_away_are_counted(library, monkeypatch):
    monkeypatch.setattr(searching, "FEW_MATCHES", 0)
    within = scope(library.space, ROWS)

    found = numbers_aside(explain(library.space, Ask(query(), 10, within, filters=CHAIRS)))

    reason = "about 50.0% pass the filter: by the size's index"
    line = f"Index Scan {within.index_name} embeddings_clip"
    assert found == Explanation("hnsw", reason, within.index_name, 200, line, found.visited, 0.0)
    # Thirty that match are ranked again.
    assert 40 <= found.visited <= 120


@pytest.mark.parametrize("filters", [Filters(), CHAIRS, LAMPS])
@pytest.mark.parametrize("takes_index", [True, False])
def test_the_plan_is_that_of_the_way_that_is_explained(library, monkeypatch, filters, takes_index):
    monkeypatch.setattr(searching, "FEW_MATCHES", 0 if takes_index else 10**6)
    within = scope(library.space, ROWS)
    ask = Ask(query(), 10, within, ["a"], filters, (0.5, "b"))

    found, plan = explain(library.space, ask), plan_of(library.space, ask)

    goes_by_index = takes_index or not filters
    assert (found.strategy, found.index_name) == (("hnsw", within.index_name) if goes_by_index else ("exact", None))
    assert (f"Index Scan using {within.index_name} on embeddings_clip" in plan) == goes_by_index


@pytest.mark.parametrize("filters", [Filters(), CHAIRS])
@pytest.mark.parametrize("by_index", [True, False])
def test_ranks_are_places_in_the_exact_order_under_the_same_filter(library, filters, by_index):
    within = scope(library.space, ROWS)
    within = within if by_index else replace(within, index_name=None)
    chairs = set(map(str, library.ids[::2])) if filters else None
    exclude = library.expected(query(), 3, among=chairs)
    ask = Ask(query(), 50, within, exclude, filters, after=(0.1, "x"), with_vectors=True)
    expected = library.expected(query(), ROWS, without=exclude, among=chairs)
    asked = [*expected[::7], exclude[0], "never seen"]

    assert exact_ranks(library.space, ask, asked) == {name: expected.index(name) + 1 for name in expected[::7]}
    assert exact_ranks(library.space, ask, []) == {}


def test_equals_have_ranks_by_their_ids(library):
    twin = next(vector for vector in library.vectors if (library.vectors == vector).all(1).sum() == 4)
    equals = sorted(map(str, library.ids[(library.vectors == twin).all(1)]))

    ranks = exact_ranks(library.space, Ask(twin, 4, scope(library.space, ROWS)), equals[::-1])

    assert ranks == {name: rank for rank, name in enumerate(equals, start=1)}


def test_a_search_explained_as_people_ask_for_it(library):
    search = ImageSearch(library.store, NamedEncoder(), Settings.read(space="clip"))
    like = str(library.ids[3])
    hits = search(LikeQuery(like), 10, filters=CHAIRS, page=2)

    found = search.explain(LikeQuery(like), 10, filters=CHAIRS, hits=hits)
    first = search.explain(LikeQuery(like), 10, filters=CHAIRS)

    chairs = set(map(str, library.ids[::2]))
    expected = library.expected(library.vectors[3], 20, among=chairs, without=[like])
    assert found.exact_ranks == {name: rank for rank, name in enumerate(expected[10:], start=11)}
    assert first.exact_ranks == {name: rank for rank, name in enumerate(expected[:10], start=1)}
    assert isinstance(found, ExplainedHits)
    assert found.explanation.reason == "about 50.0% pass the filter: few enough to compare with all of them"
    assert min(found.encode_ms, found.sql_ms, found.fetch_ms) >= 0
    assert found.sql_ms <= found.explanation.server_ms


def test_an_empty_space_can_be_explained(store):
    empty = Library(store, np.empty((0, 64), np.float32))
    empty.index(10)

    for within in (scope(empty.space, 10), Scope(None, 5, None)):
        found = explain(empty.space, Ask(query(), 10, within))

        assert (found.visited, found.index_name) == (0, within.index_name)
        assert ids(nearest(empty.space, query(), 10, within)) == []
