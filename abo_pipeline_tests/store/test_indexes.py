"""Vector indexes on a real table: built, kept, replaced, and what is left of a build that fails."""

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
from sqlalchemy import create_engine, text

from abo_pipeline import catalog
from abo_pipeline.errors import StoreError
from abo_pipeline.sampling import LAST_KEY
from abo_pipeline.store import EmbeddingSpace, Store, indexes
from abo_pipeline.store.database import open_engine, transaction
from abo_pipeline.store.explain import plan_of
from abo_pipeline.store.indexes import IndexStatus, build_index, drop_sizes_but, without_index_work
from abo_pipeline.store.measures import keep, measured, now
from abo_pipeline.store.nearest import Ask, nearest, scope
from abo_pipeline.store.spaces import Embedded
from benchmarks.stores import NamedOnly

DIMENSION = 16
ROWS = 200
PATIENCE = 30


@dataclass(frozen=True)
class NamedEncoder(NamedOnly):
    """What opening a space asks of a model: who it is. Embedding is not tested here."""

    fingerprint: str = "0011223344556677"
    dimension: int = DIMENSION
    model: str = "clip-test"
    device: str = "cpu"


@pytest.fixture(autouse=True)
def frequent_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexes, "_POLL_SECONDS", 0.02)


def vector(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(size=DIMENSION).astype(np.float32)


def write(space: EmbeddingSpace, *numbers: int) -> None:
    space.write([Embedded(f"{number:06}", number, "d1", vector(number)) for number in numbers], [])


@pytest.fixture
def space(store: Store) -> EmbeddingSpace:
    """A space of pictures whose keys are 0, 1, 2 and so on."""
    rows = [(f"{number:06}", f"{number:06}.jpg", 1000, 1000, number, 0, 1, "d1") for number in range(2 * ROWS)]
    store.write_images(pl.DataFrame(rows, schema=catalog.SCHEMA, orient="row"))
    space = store.open_space("clip", NamedEncoder())
    write(space, *range(ROWS))
    return space


def build(space: EmbeddingSpace, size: int, cutoff: int | None = None, **options: object) -> IndexStatus:
    return build_index(space, size, size - 1 if cutoff is None else cutoff, memory_mb=64, **options)


def vector_indexes(space: EmbeddingSpace) -> dict[str, bool]:
    """Name and validity of each."""
    with transaction(space.engine) as connection:
        found = connection.execute(
            text(
                "SELECT c.relname, i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
                "JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'hnsw' AND i.indrelid = to_regclass(:table)"
            ),
            {"table": space.table.name},
        )
        return dict(found.all())


def registered(space: EmbeddingSpace) -> dict[int, tuple[int, str]]:
    """Cutoff and index of each size."""
    with transaction(space.engine) as connection:
        found = connection.execute(
            text("SELECT size, cutoff, index_name FROM size_indexes WHERE space = :space ORDER BY size"),
            {"space": space.name},
        )
        return {size: (cutoff, name) for size, cutoff, name in found}


def identity(space: EmbeddingSpace, name: str) -> tuple:
    """The same again unless the index was made anew or written about."""
    with transaction(space.engine) as connection:
        return tuple(
            connection.execute(
                text(
                    "SELECT to_regclass(:name)::oid, pg_relation_filenode(to_regclass(:name)), array_agg(s::text) "
                    "FROM size_indexes s"
                ),
                {"name": name},
            ).one()
        )


def answers(space: EmbeddingSpace, size: int) -> list[str]:
    return [hit.image_id for hit in nearest(space, vector(7), 10, scope(space, size))]


def exact_answers(numbers: range) -> list[str]:
    vectors = np.stack([vector(number) for number in numbers]).astype(np.float64)
    similarities = vectors @ vector(7) / np.linalg.norm(vectors, axis=1)
    return [f"{numbers[at]:06}" for at in np.argsort(-similarities)[:10]]


# --- Building ---


def test_an_index_that_is_built_is_valid_and_registered(space):
    status = build(space, 100)

    assert status == IndexStatus(
        name=status.name,
        size=100,
        cutoff=99,
        rows=100,
        bytes=status.bytes,
        valid=True,
        ready=True,
        built=True,
        seconds=status.seconds,
    )
    assert status.bytes > 0
    assert 0 < status.seconds < PATIENCE
    assert vector_indexes(space) == {status.name: True}
    assert registered(space) == {100: (99, status.name)}


def test_an_index_is_over_half_precision_and_over_its_size_only(space):
    name = build(space, 100).name

    with transaction(space.engine) as connection:
        definition = connection.scalar(text("SELECT pg_get_indexdef(to_regclass(:name))"), {"name": name})

    assert definition == (
        f"CREATE INDEX {name} ON abo.embeddings_clip USING hnsw (((embedding)::halfvec(16)) halfvec_cosine_ops) "
        "WITH (m='24', ef_construction='128') WHERE ((sample_key <= 99) AND (sample_key <> ('-1'::integer - 99)))"
    )


def test_searches_go_by_the_index_and_find_what_there_is(space):
    name = build(space, 100).name

    plan = plan_of(space, Ask(vector(7), 10, scope(space, 100)))

    assert f"Index Scan using {name} on embeddings_clip" in plan
    assert answers(space, 100) == exact_answers(range(100))


def test_building_again_what_is_there_does_nothing(space):
    first = build(space, 100)
    before = identity(space, first.name)
    words = []

    again = build(space, 100, progress=words.append)

    assert again == IndexStatus(first.name, 100, 99, 100, first.bytes, True, True, built=False, seconds=0.0)
    assert identity(space, first.name) == before
    assert words == []


def test_rows_that_came_later_are_no_reason_to_build_again(space):
    name = build(space, 300).name
    write(space, *range(ROWS, 300))

    again = build(space, 300)

    assert (again.name, again.rows, again.built) == (name, 300, False)
    assert answers(space, 300) == exact_answers(range(300))


def test_a_space_without_rows_can_be_indexed(store):
    space = store.open_space("clip", NamedEncoder())

    status = build(space, 100)

    assert (status.rows, status.valid, status.built) == (0, True, True)
    assert nearest(space, vector(7), 10, scope(space, 100)) == []


def test_each_size_has_an_index_of_its_own(space):
    small, large = build(space, 50), build(space, 150)

    assert vector_indexes(space) == {small.name: True, large.name: True}
    assert registered(space) == {50: (49, small.name), 150: (149, large.name)}
    assert f"using {small.name} " in plan_of(space, Ask(vector(7), 10, scope(space, 50)))
    assert f"using {large.name} " in plan_of(space, Ask(vector(7), 10, scope(space, 150)))


def test_sizes_that_see_the_same_images_share_an_index(space):
    first, second = build(space, 1_000, LAST_KEY), build(space, 2_000, LAST_KEY)

    assert (first.built, second.built) == (True, False)
    assert first.name == second.name
    assert registered(space) == {1_000: (LAST_KEY, first.name), 2_000: (LAST_KEY, first.name)}


def test_the_indexes_of_a_space_with_the_longest_name_have_names_of_their_own(store):
    space = store.open_space("x" * 32, NamedEncoder())

    names = {build(space, size).name for size in (1, 100_000_000)}

    assert set(vector_indexes(space)) == names
    assert max(map(len, names)) <= 63


def test_a_build_leaves_no_setting_and_no_lock_behind(space):
    build(space, 100)

    with space.engine.connect() as first, space.engine.connect() as second:
        for connection in (first, second):
            changed = connection.scalars(
                text("SELECT name FROM pg_settings WHERE source = 'session' AND name LIKE '%maintenance%'")
            ).all()
            assert changed == []
        assert first.scalar(text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")) == 0


# --- Replacing ---


@contextmanager
def waiting_build(
    space: EmbeddingSpace, size: int, cutoff: int, row: int = 9_999, **options: object
) -> Iterator[Future[IndexStatus]]:
    """A build in the background that waits for somebody's write, which is committed at the end of the block."""
    engine = create_engine(space.engine.url)
    words: queue.Queue[str] = queue.Queue()
    with ThreadPoolExecutor(1) as threads, engine.connect() as connection:
        connection.execute(
            text("INSERT INTO embeddings_clip VALUES (:image, :row, 'd1', 'f', CAST(:vector AS vector))"),
            {"image": f"{row:06}", "row": row, "vector": str(vector(row).tolist())},
        )
        building = threads.submit(build, space, size, cutoff, progress=words.put, **options)
        while words.get(timeout=PATIENCE) != "waiting for writers before build":
            pass
        yield building
        connection.commit()
    engine.dispose()


def test_the_old_index_serves_until_the_new_one_is_valid_and_is_dropped_then(space):
    old = build(space, 100, 99)

    with waiting_build(space, 100, 149) as building:
        assert registered(space) == {100: (99, old.name)}
        assert vector_indexes(space)[old.name]
        assert f"using {old.name} " in plan_of(space, Ask(vector(7), 10, scope(space, 100)))
        assert answers(space, 100) == exact_answers(range(100))
    new = building.result()

    assert (new.built, new.rows) == (True, 150)
    assert registered(space) == {100: (149, new.name)}
    assert vector_indexes(space) == {new.name: True}
    assert answers(space, 100) == exact_answers(range(150))


def test_what_a_build_says(space):
    old = build(space, 100, 99)
    seen = []

    new = build(space, 100, 149, progress=lambda words: seen.append((words, registered(space), vector_indexes(space))))

    assert seen[0] == (
        f"building {new.name} over 150 rows with 64 MB and {indexes.cores()} process(es)",
        {100: (99, old.name)},
        {old.name: True},
    )
    assert seen[-1] == (
        f"dropped {old.name}, which no size needs any more",
        {100: (149, new.name)},
        {new.name: True},
    )


def test_an_index_that_another_size_needs_is_not_dropped(space):
    shared = build(space, 100, LAST_KEY)
    build(space, 200, LAST_KEY)

    new = build(space, 100, 99)

    assert vector_indexes(space) == {shared.name: True, new.name: True}
    assert registered(space) == {100: (99, new.name), 200: (LAST_KEY, shared.name)}


def test_writes_during_a_build_succeed_and_are_found(space):
    with waiting_build(space, 300, 299, row=299) as building:
        write(space, *range(ROWS, 299))
    status = building.result()

    assert (status.rows, status.built, status.valid) == (300, True, True)
    assert answers(space, 300) == exact_answers(range(300))
    assert f"using {status.name} " in plan_of(space, Ask(vector(7), 10, scope(space, 300)))


def test_sizes_that_are_no_longer_asked_for_are_dropped(space):
    kept = {size: build(space, size).name for size in (50, 100, 150)}
    words = []

    drop_sizes_but(space, [50, 1_000], progress=words.append)

    assert registered(space) == {50: (49, kept[50])}
    assert vector_indexes(space) == {kept[50]: True}
    assert sorted(words) == sorted(f"dropped {kept[size]}, which no size needs any more" for size in (100, 150))
    assert answers(space, 100) == exact_answers(range(100))


def test_a_dropped_size_leaves_the_index_to_those_that_share_it(space):
    shared = build(space, 1_000, LAST_KEY)
    build(space, 2_000, LAST_KEY)

    drop_sizes_but(space, [2_000])

    assert registered(space) == {2_000: (LAST_KEY, shared.name)}
    assert vector_indexes(space) == {shared.name: True}


def test_the_indexes_of_another_space_are_let_alone(store, space):
    # Its name begins with the other's, and so do its indexes' names.
    other = store.open_space("clip_large", NamedEncoder("8899aabbccddeeff"))
    theirs, ours = build(other, 100), build(space, 100)

    drop_sizes_but(space, [])

    assert (vector_indexes(space), registered(space)) == ({}, {})
    assert vector_indexes(other) == {theirs.name: True}
    assert registered(other) == {100: (99, theirs.name)}
    assert ours.name != theirs.name


def test_the_indexes_of_another_catalogue_are_let_alone(space):
    ours = build(space, 1_000, LAST_KEY)
    # On the embedded server the first catalogue is named as the user is, so that its sessions look there too.
    other = Store(open_engine(space.engine.url, "other")).open_space("clip", NamedEncoder())
    write(other, *range(50))

    theirs = build(other, 1_000, LAST_KEY)
    plan = plan_of(other, Ask(vector(7), 10, scope(other, 1_000)))
    found = vector_indexes(other)
    drop_sizes_but(other, [])

    assert (theirs.rows, theirs.built, theirs.name) == (50, True, ours.name)
    assert f"using {theirs.name} " in plan
    assert found == {theirs.name: True}
    assert vector_indexes(other) == {}
    assert vector_indexes(space) == {ours.name: True}
    assert answers(space, 1_000) == exact_answers(range(ROWS))
    other.engine.dispose()


# --- At once ---


def test_two_builds_of_the_same_index_at_once_end_with_one(space):
    start = threading.Barrier(2)

    def together(_: int) -> IndexStatus:
        start.wait()
        return build(space, 100)

    with ThreadPoolExecutor(2) as threads:
        statuses = list(threads.map(together, range(2)))

    assert sorted(status.built for status in statuses) == [False, True]
    assert len({status.name for status in statuses}) == 1
    assert vector_indexes(space) == {statuses[0].name: True}


def test_a_build_says_that_it_waits_for_another(space):
    words: queue.Queue[str] = queue.Queue()

    with ThreadPoolExecutor(1) as threads, waiting_build(space, 100, 99) as first:
        second = threads.submit(build, space, 100, 99, progress=words.put)
        assert words.get(timeout=PATIENCE) == "waiting for another process to be done with the indexes of space clip"

    assert (first.result().built, second.result().built) == (True, False)


def test_builds_with_other_cutoffs_at_once_end_with_the_last(space):
    start = threading.Barrier(4)

    def together(cutoff: int) -> IndexStatus:
        start.wait()
        return build(space, 100, cutoff)

    with ThreadPoolExecutor(4) as threads:
        statuses = list(threads.map(together, (90, 100, 110, 120)))

    ((cutoff, name),) = registered(space).values()
    assert vector_indexes(space) == {name: True}
    assert [status.name for status in statuses if status.cutoff == cutoff] == [name]
    assert all(status.built and status.valid for status in statuses)


def test_spaces_are_built_side_by_side(store, space):
    other = store.open_space("other", NamedEncoder("8899aabbccddeeff"))

    with waiting_build(space, 100, 99) as building:
        status = build(other, 100)

        assert status.valid
        assert not building.done()

    assert building.result().valid


def test_so_are_spaces_of_the_same_name_in_two_catalogues(space):
    other = Store(open_engine(space.engine.url, "other")).open_space("clip", NamedEncoder())
    write(other, *range(50))

    with waiting_build(space, 100, 99) as building:
        with without_index_work(other, 0):
            assert not building.done()
        status = build(other, 10)
        assert not building.done()

    assert (status.valid, building.result().valid) == (True, True)
    other.engine.dispose()


# --- Builds that fail ---


def spoil(space: EmbeddingSpace, name: str) -> None:
    """Leave an index as a build does whose process was killed."""
    with transaction(space.engine) as connection:
        connection.execute(
            text("UPDATE pg_index SET indisvalid = false WHERE indexrelid = to_regclass(:name)"), {"name": name}
        )


def test_an_invalid_index_of_the_same_name_is_built_anew(space):
    name = build(space, 100).name
    before = identity(space, name)
    spoil(space, name)

    status = build(space, 100)

    assert (status.name, status.built, status.valid) == (name, True, True)
    assert vector_indexes(space) == {name: True}
    assert identity(space, name)[0] != before[0]


def test_a_rebuild_mends_an_invalid_index_too(space):
    name = build(space, 100).name
    spoil(space, name)

    status = build(space, 100, rebuild=True)

    assert (status.name, status.built, status.valid) == (name, True, True)
    assert vector_indexes(space) == {name: True}
    assert answers(space, 100) == exact_answers(range(100))


def test_searches_keep_the_effort_of_an_index_that_is_built_anew_until_it_is_measured(space):
    name = build(space, 100).name
    kept = dict(rows=100, efforts={10: 77}, measures={"size": 100}, background={}, as_of=now(space))
    assert keep(space, 100, name, **kept)

    build(space, 100, rebuild=True)
    again = scope(space, 100), measured(space, [100])[0].measures
    build(space, 100, 89)
    other = scope(space, 100), measured(space, [100])[0].measures

    assert [(within.index_name == name, within.efforts, measures) for within, measures in (again, other)] == [
        (True, {10: 77}, None),
        (False, {}, None),
    ]


@pytest.mark.parametrize("function", ["pg_cancel_backend", "pg_terminate_backend"])
def test_a_rebuild_that_is_ended_leaves_the_index_as_it_was(space, function):
    name = build(space, 100).name
    before = identity(space, name)

    with waiting_build(space, 100, 99, rebuild=True) as building:
        assert f"using {name} " in plan_of(space, Ask(vector(7), 10, scope(space, 100)))
        end_builder(space, function)
    with pytest.raises(StoreError, match=r"could not be built: .* The one before it, if any, still serves"):
        building.result()

    assert identity(space, name) == before
    assert vector_indexes(space) == {name: True}
    assert answers(space, 100) == exact_answers(range(100))
    assert build(space, 100, rebuild=True).built
    assert identity(space, name)[:2] != before[:2]


@pytest.mark.parametrize("is_registered", [False, True])
def test_an_invalid_index_that_another_build_left_goes_with_the_next(space, is_registered):
    left = build(space, 100, 99).name
    spoil(space, left)
    if not is_registered:
        with transaction(space.engine) as connection:
            connection.execute(text("DELETE FROM size_indexes"))

    status = build(space, 150)

    assert vector_indexes(space) == {status.name: True}
    assert answers(space, 100) == exact_answers(range(100))


def test_a_row_that_cannot_be_indexed_fails_the_build_and_the_old_index_serves(space):
    old = build(space, 100, 99)
    # Beyond what half precision can hold.
    space.write([Embedded("000150", 150, "d1", np.full(DIMENSION, 1e6, np.float32))], [])

    with pytest.raises(StoreError) as refused:
        build(space, 100, 199)

    said = str(refused.value)
    assert said.startswith("Index hnsw_clip_")
    assert said.endswith(
        ' could not be built: "1e+06" is out of range for type halfvec. The one before it, if any, still serves.'
    )
    assert registered(space) == {100: (99, old.name)}
    assert vector_indexes(space) == {old.name: True}
    assert answers(space, 100) == exact_answers(range(100))
    assert build(space, 100, 120).valid


def end_builder(space: EmbeddingSpace, function: str) -> None:
    with transaction(space.engine) as connection:
        connection.execute(text(f"SELECT {function}(pid) FROM pg_stat_progress_create_index"))


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("pg_cancel_backend", "canceling statement due to user request"),
        ("pg_terminate_backend", "terminating connection due to administrator command"),
    ],
)
def test_a_build_that_is_ended_while_it_waits_leaves_nothing_and_the_old_index_serves(space, function, reason):
    old = build(space, 100, 99)

    with waiting_build(space, 100, 149) as building:
        end_builder(space, function)
    with pytest.raises(StoreError) as refused:
        building.result()

    assert str(refused.value).endswith(f" could not be built: {reason}. The one before it, if any, still serves.")
    assert registered(space) == {100: (99, old.name)}
    assert vector_indexes(space) == {old.name: True}
    assert answers(space, 100) == exact_answers(range(100))
    assert build(space, 100, 149).built


def test_a_build_whose_session_is_killed_at_work_leaves_nothing_and_the_old_index_serves(space):
    old = build(space, 100, 99)
    rng = np.random.default_rng(1)
    many = rng.normal(size=(20_000, DIMENSION)).astype(np.float32)
    space.write([Embedded(f"many {n}", 1_000 + n, "d1", row) for n, row in enumerate(many)], [])
    ended = []

    def end_at_work(words: str) -> None:
        if words.startswith("building index") and not ended:
            ended.append(words)
            end_builder(space, "pg_terminate_backend")

    with pytest.raises(StoreError, match="could not be built: terminating connection due to administrator command"):
        build(space, 100, LAST_KEY, progress=end_at_work)

    assert len(ended) == 1
    assert registered(space) == {100: (99, old.name)}
    assert vector_indexes(space) == {old.name: True}
    assert answers(space, 100) == exact_answers(range(100))


def test_a_build_without_a_database_to_build_in_says_so(space):
    name = space.engine.url.database
    elsewhere = create_engine(space.engine.url.set(database="postgres"), isolation_level="AUTOCOMMIT")
    with elsewhere.connect() as administration:
        administration.execute(text(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false"))
    elsewhere.dispose()
    space.engine.dispose()

    with pytest.raises(StoreError, match=f'database "{name}" is not currently accepting connections'):
        build(space, 100)


def test_a_size_without_an_index_is_known_to_the_planner_too(space):
    """It would take the vectors for so many that it starts other processes to look at a few."""
    with space.engine.connect() as connection:
        known = text("SELECT reltuples FROM pg_class WHERE relname = 'embeddings_clip'")
        before = connection.scalar(known)
        build_index(space, ROWS, ROWS - 1, memory_mb=64, strategy="exact")
        connection.rollback()
        after = connection.scalar(known)

    assert (before, after) == (-1, space.vectors(2**62))
