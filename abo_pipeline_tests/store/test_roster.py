"""Several spaces side by side: which one searches use, what each holds, and how one goes."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
from sqlalchemy import event, make_url, select, text
from sqlalchemy.exc import IntegrityError

from abo_pipeline import catalog
from abo_pipeline.errors import StoreError
from abo_pipeline.queries import LikeQuery
from abo_pipeline.search import ImageSearch
from abo_pipeline.settings import Settings
from abo_pipeline.store import EmbeddingSpace, SpaceSummary, Store, indexes, roster
from abo_pipeline.store.database import open_engine, transaction
from abo_pipeline.store.golden import last_recording, record
from abo_pipeline.store.indexes import build_index
from abo_pipeline.store.measures import keep, now
from abo_pipeline.store.nearest import nearest, scope
from abo_pipeline.store.schema import Base, SearchDefault
from abo_pipeline.store.spaces import Embedded, Failed
from benchmarks.stores import NamedOnly

IMAGES = ("a", "b", "c", "d")


@dataclass(frozen=True)
class NamedEncoder(NamedOnly):
    """What opening a space asks of a model: who it is. Embedding is not tested here."""

    model: str
    fingerprint: str = "0011223344556677"
    dimension: int = 3
    device: str = "cpu"


@pytest.fixture
def catalogue(store: Store) -> Store:
    """A catalogue of four images, whose keys are 0 to 3."""
    rows = [(image, f"{image}.jpg", 1000, 1000, key, 0, 1, "d") for key, image in enumerate(IMAGES)]
    store.write_images(pl.DataFrame(rows, schema=catalog.SCHEMA, orient="row"))
    return store


def make_space(
    store: Store, name: str, embedded: Sequence[str] = IMAGES, failed: Sequence[str] = (), dimension: int = 3
) -> EmbeddingSpace:
    """A space of a model of its own, in which some images are embedded and some have failed."""
    space = store.open_space(name, NamedEncoder(f"model-{name}", f"{name:f<16}", dimension))
    vector = np.eye(dimension, dtype=np.float32)[0]
    space.write(
        [Embedded(image, IMAGES.index(image), "d", vector) for image in embedded],
        [Failed(image, IMAGES.index(image), "d", "decode", "OSError", "it is truncated") for image in failed],
    )
    return space


def traces(store: Store, name: str) -> dict[str, int]:
    """How many rows of each table belong to a space, and its relations."""
    found = {}
    with transaction(store.engine) as connection:
        for table in Base.metadata.sorted_tables:
            column = table.c.get("space", table.c.get("name"))
            if column is not None:
                found[table.name] = len(connection.execute(select(column).where(column == name)).all())
        relations = text("SELECT count(*) FROM pg_class WHERE relname ~ ('(embeddings|hnsw)_' || :name)")
        found["relations"] = connection.scalar(relations, {"name": name})
    return found


def count_of(store: Store, statement: str) -> int:
    with transaction(store.engine) as connection:
        return connection.scalar(text(statement))


# --- The default ---


def test_before_the_first_space_there_is_no_default(store):
    assert store.default_space() is None
    assert store.spaces() == []


def test_the_first_space_is_the_default_and_those_that_are_made_later_change_nothing(catalogue):
    make_space(catalogue, "first")
    make_space(catalogue, "second")
    make_space(catalogue, "first")

    assert catalogue.default_space() == "first"


def test_a_first_space_that_stayed_empty_gives_way_to_the_next(catalogue):
    make_space(catalogue, "abandoned", embedded=(), failed=("a",))
    make_space(catalogue, "second")
    make_space(catalogue, "third")

    assert catalogue.default_space() == "second"


def test_of_many_spaces_that_are_made_first_at_once_one_is_the_default(database_url):
    def make_first(number: int) -> None:
        own = Store(open_engine(make_url(database_url)))
        start.wait()
        own.open_space(f"space_{number}", NamedEncoder("m"))
        own.engine.dispose()

    start = threading.Barrier(4)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(make_first, range(4)))

    store = Store(open_engine(make_url(database_url)))
    assert store.default_space() in store.space_names()
    assert count_of(store, "SELECT count(*) FROM search_default") == 1
    store.engine.dispose()


def test_switching_says_what_was_before_and_back_goes_there_and_back_again(catalogue):
    for name in ("one", "two", "three"):
        make_space(catalogue, name)

    switched = [(catalogue.switch_default(name), catalogue.default_space()) for name in ("two", "three", "three")]
    back = [(catalogue.switch_back(), catalogue.default_space()) for _ in range(3)]

    assert switched == [("one", "two"), ("two", "three"), ("three", "three")]
    assert back == [("two", "two"), ("three", "three"), ("two", "two")]


def test_switching_and_switching_back_are_one_statement_each(catalogue):
    make_space(catalogue, "one")
    make_space(catalogue, "two")
    changes = []

    def note(connection, cursor, statement, *_):
        del connection, cursor
        if statement.split()[0] in ("INSERT", "UPDATE", "DELETE"):
            changes.append(statement.split()[0])

    event.listen(catalogue.engine, "before_cursor_execute", note)
    catalogue.switch_default("two")
    catalogue.switch_back()

    assert changes == ["INSERT", "UPDATE"]


def test_whoever_switches_at_the_same_time_no_half_of_a_switch_is_seen(catalogue):
    names = ("one", "two", "three")
    for name in names:
        make_space(catalogue, name)
    catalogue.switch_default("two")

    def switch(number: int) -> list[str]:
        befores = []
        for turn in range(30):
            befores.append(catalogue.switch_default(names[(number + turn) % 3]))
            catalogue.switch_back()
        return befores

    def look() -> set[tuple[str, str]]:
        seen = set()
        while not done.is_set():
            with transaction(catalogue.engine) as connection:
                seen.add(tuple(connection.execute(select(SearchDefault.space, SearchDefault.previous)).one()))
        return seen

    done = threading.Event()
    with ThreadPoolExecutor(4) as threads:
        looking = threads.submit(look)
        befores = list(threads.map(switch, range(3)))
        done.set()
        seen = looking.result()

    assert {before for thread in befores for before in thread} <= set(names)
    assert seen <= {(space, previous) for space in names for previous in names if space != previous}
    assert len(seen) > 1


@pytest.mark.parametrize("name", ["nope", "", "a\x00b", "\udcff", "größe", "'; DROP TABLE spaces; --", "x" * 10_000])
def test_a_space_that_is_not_there_is_not_switched_to(catalogue, name):
    make_space(catalogue, "one")
    make_space(catalogue, "two")

    with pytest.raises(StoreError) as refused:
        catalogue.switch_default(name)

    assert str(refused.value) == f"There is no embedding space {name!r}. This catalogue has one, two."
    assert catalogue.default_space() == "one"


def test_without_any_space_the_remedy_is_a_run(store):
    with pytest.raises(StoreError) as refused:
        store.switch_default("one")

    assert str(refused.value) == "There is no embedding space 'one'. Nothing has been embedded yet: `abo run`."


def test_an_empty_space_is_not_switched_to(catalogue):
    make_space(catalogue, "one")
    make_space(catalogue, "two", embedded=(), failed=("a",))

    with pytest.raises(StoreError) as refused:
        catalogue.switch_default("two")

    assert str(refused.value) == (
        "Space two holds no vectors yet, so searches cannot use it. Embed into it first: "
        "abo run --model model-two --space two"
    )
    assert catalogue.default_space() == "one"


def test_there_is_no_way_back_before_a_switch(catalogue):
    make_space(catalogue, "one")

    with pytest.raises(StoreError) as refused:
        catalogue.switch_back()

    assert str(refused.value) == (
        "There is no space to switch back to: none was the default before, or it has been dropped since. "
        "`abo spaces use NAME` switches to any that `abo spaces` lists."
    )


def test_each_catalogue_has_a_default_of_its_own(database_url, catalogue):
    other = Store(open_engine(make_url(database_url), "other"))
    make_space(catalogue, "one")
    make_space(other, "two")

    assert (catalogue.default_space(), other.default_space()) == ("one", "two")
    other.engine.dispose()


def test_the_database_itself_refuses_a_second_default_and_one_that_is_not_there(catalogue):
    make_space(catalogue, "one")

    for statement in (
        "INSERT INTO search_default (one, space) VALUES (false, 'one')",
        "INSERT INTO search_default (space) VALUES ('one')",
        "UPDATE search_default SET space = 'nope'",
        "UPDATE search_default SET previous = 'nope'",
        "DELETE FROM spaces",
    ):
        with pytest.raises(IntegrityError), transaction(catalogue.engine) as connection:
            connection.execute(text(statement))


# --- What each holds ---


def test_spaces_are_summed_up_in_the_order_in_which_they_were_made(catalogue):
    one = make_space(catalogue, "one", embedded=("a", "b"), failed=("c",))
    two = make_space(catalogue, "two", embedded=("a", "b", "c", "d"), dimension=4)
    for size in (4, 2):
        build_index(two, size, size - 1, memory_mb=64)
    catalogue.switch_default("two")

    found = catalogue.spaces()

    assert [space.name for space in found] == catalogue.space_names() == ["one", "two"]
    times = [(space.created_at, space.changed_at) for space in found]
    assert all(created < changed for created, changed in times)
    assert found == [
        SpaceSummary(
            **dict(name="one", model="model-one", dimension=3, fingerprint=f"{'one':f<16}"),
            **dict(vectors=2, failures=1, kept=4, pending=1, sizes=()),
            **on_disk(one),
            **dict(created_at=times[0][0], changed_at=times[0][1], is_default=False, is_previous=True),
        ),
        SpaceSummary(
            **dict(name="two", model="model-two", dimension=4, fingerprint=f"{'two':f<16}"),
            **dict(vectors=4, failures=0, kept=4, pending=0, sizes=(2, 4)),
            **on_disk(two),
            **dict(created_at=times[1][0], changed_at=times[1][1], is_default=True, is_previous=False),
        ),
    ]
    assert found[1].index_bytes > found[0].index_bytes > 0


def on_disk(space: EmbeddingSpace) -> dict[str, int]:
    """Bytes of the table with what lies beside it, and of its indexes, added up one by one."""
    with transaction(space.engine) as connection:
        names = connection.scalars(
            text("SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = to_regclass(:table)"),
            {"table": space.table.name},
        ).all()
        size = text("SELECT pg_total_relation_size(CAST(:name AS text)::regclass)")
        total = connection.scalar(size, {"name": space.table.name})
        of_indexes = sum(connection.scalar(size, {"name": name}) for name in names)
    return {"table_bytes": total - of_indexes, "index_bytes": of_indexes}


# --- Dropping ---


def test_a_dropped_space_leaves_no_trace_and_the_others_as_they_are(catalogue):
    for name in ("one", "two"):
        space = make_space(catalogue, name, embedded=("a", "b", "c"), failed=("d",))
        index = build_index(space, 2, 1, memory_mb=64)
        record(space, {(2, "red"): [("a", 0.9)]})
        keep(space, 2, index.name, rows=2, efforts={10: 40}, measures={}, background={"text": [0.3]}, as_of=now(space))
    before = traces(catalogue, "one")

    assert traces(catalogue, "two") == before | {"search_default": 0}
    catalogue.drop_space("two")

    assert set(traces(catalogue, "two").values()) == {0}
    assert traces(catalogue, "one") == before
    assert min(before.values()) > 0
    assert [space.name for space in catalogue.spaces()] == ["one"]


def test_every_table_with_rows_of_spaces_is_cleared():
    with_space = {name for name, table in Base.metadata.tables.items() if "space" in table.c}

    assert {table.name for table in roster._tables_by_space()} == with_space - {"search_default"}
    assert {"failures", "size_indexes", "golden_hits"} <= with_space


def test_a_space_of_the_same_name_can_be_made_again_with_another_model(catalogue):
    make_space(catalogue, "one")
    make_space(catalogue, "two")
    catalogue.drop_space("two")

    made = catalogue.open_space("two", NamedEncoder("another", "8899aabbccddeeff", 5))

    assert (made.model, made.dimension, made.account().pending) == ("another", 5, 4)
    assert last_recording(made) is None


def test_the_space_that_searches_use_is_not_dropped(catalogue):
    make_space(catalogue, "one")
    make_space(catalogue, "two")
    catalogue.switch_default("two")
    before = traces(catalogue, "two")

    with pytest.raises(StoreError) as refused:
        catalogue.drop_space("two")

    assert str(refused.value) == (
        "Space two is the one that searches use, and is not dropped. Have them use another one first: "
        "abo spaces use NAME"
    )
    assert traces(catalogue, "two") == before


def test_there_is_no_way_back_to_a_dropped_space(catalogue):
    make_space(catalogue, "one")
    make_space(catalogue, "two")
    catalogue.switch_default("two")
    catalogue.drop_space("one")

    with pytest.raises(StoreError, match="There is no space to switch back to"):
        catalogue.switch_back()

    assert catalogue.default_space() == "two"


def test_a_space_of_the_same_name_in_another_catalogue_stays(database_url, catalogue):
    other = Store(open_engine(make_url(database_url), "other"))
    for store in (catalogue, other):
        make_space(store, "one")
        make_space(store, "two")

    with other.find_space("two").being_written():
        catalogue.drop_space("two")

    assert (catalogue.find_space("two"), other.find_space("two").account().departed) == (None, 4)
    other.engine.dispose()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is at work will not have ended in so short a time."""
    monkeypatch.setattr(roster, "_PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(indexes, "_POLL_SECONDS", 0.05)


@pytest.mark.usefixtures("impatient")
def test_a_space_that_is_written_into_is_not_dropped_until_that_has_ended(catalogue):
    make_space(catalogue, "one")
    space = make_space(catalogue, "two")
    before = traces(catalogue, "two")

    with space.being_written(), catalogue.find_space("two").being_written():
        with pytest.raises(StoreError) as refused:
            catalogue.drop_space("two")
        assert traces(catalogue, "two") == before

    assert str(refused.value) == "A run is writing into space two. Try again when it has ended."
    catalogue.drop_space("two")
    assert catalogue.find_space("two") is None


@pytest.mark.usefixtures("impatient")
def test_a_space_that_is_being_indexed_is_not_dropped(catalogue):
    make_space(catalogue, "one")
    space = make_space(catalogue, "two")

    with indexes.without_index_work(space, 1), pytest.raises(StoreError) as refused:
        catalogue.drop_space("two")

    assert str(refused.value) == "An index of space two is being built or dropped. Try again when that is done."
    assert traces(catalogue, "two")["relations"] > 0


@pytest.mark.usefixtures("impatient")
def test_a_space_that_is_used_without_a_pause_is_not_dropped(catalogue):
    make_space(catalogue, "one")
    make_space(catalogue, "two", failed=())
    before = traces(catalogue, "two")

    with transaction(catalogue.engine) as connection:
        connection.execute(text("SELECT * FROM embeddings_two"))
        with pytest.raises(StoreError) as refused:
            catalogue.drop_space("two")

    assert str(refused.value) == ("Space two is being used, and was for 0 seconds without a pause. Try again later.")
    assert traces(catalogue, "two") == before


def test_a_writer_whose_server_goes_away_ends_with_its_own_error(catalogue):
    space = make_space(catalogue, "one")

    def write() -> None:
        with space.being_written():
            with transaction(catalogue.engine) as connection:
                others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                connection.execute(text(f"{others} AND datname = current_database()"))
            raise KeyError

    with pytest.raises(KeyError):
        write()

    assert catalogue.find_space("one").account().embedded == 4


def test_who_opened_a_space_before_it_was_dropped_is_told_so(catalogue):
    make_space(catalogue, "one")
    space = make_space(catalogue, "two")
    vector = np.eye(3, dtype=np.float32)[0]
    within = scope(space, None)
    catalogue.drop_space("two")

    with pytest.raises(StoreError) as lost:
        record(space, {(2, "red"): [("a", 0.9)]})
    gone = "Space two has been dropped meanwhile. `abo spaces` lists those that there are."
    for work in (
        lambda: nearest(space, vector, 3, within),
        lambda: space.write([Embedded("a", 0, "d", vector)], []),
        lambda: build_index(space, 2, 1, memory_mb=64),
        lambda: roster.switch_default(space),
    ):
        with pytest.raises(StoreError) as told:
            work()
        assert str(told.value) == gone
    assert str(lost.value) == "Space two has been dropped meanwhile. Run again to make it anew."
    assert set(traces(catalogue, "two").values()) == {0}


def test_a_space_that_is_made_anew_is_not_written_into_by_who_opened_the_old_one(catalogue):
    make_space(catalogue, "one")
    old = make_space(catalogue, "two")
    catalogue.drop_space("two")
    catalogue.open_space("two", NamedEncoder("another", "8899aabbccddeeff"))

    with pytest.raises(StoreError, match="Space two has been dropped meanwhile"), old.being_written():
        pass


@pytest.mark.parametrize("dimension", [3, 4])
def test_a_space_that_is_made_anew_is_not_searched_by_who_opened_the_old_one(catalogue, dimension):
    make_space(catalogue, "one")
    old = make_space(catalogue, "two")
    search = ImageSearch(catalogue, NamedEncoder(old.model, old.fingerprint), Settings.read(), space="two")
    assert search(LikeQuery("a"), 3).space == "two"
    catalogue.drop_space("two")
    other = catalogue.open_space("two", NamedEncoder("another", "8899aabbccddeeff", dimension))
    other.write([Embedded("a", 0, "d", np.eye(dimension, dtype=np.float32)[0])], [])

    for size in (None, 2):
        with pytest.raises(StoreError) as told:
            search(LikeQuery("a"), 3, size=size)
        assert str(told.value) == (
            "Space two has been dropped meanwhile, and made anew for vectors of fingerprint 8899aabbccddeeff instead "
            f"of {old.fingerprint}. Open it anew."
        )


def test_a_space_is_dropped_or_made_the_default_and_never_both(catalogue):
    make_space(catalogue, "one")

    def tried(work) -> bool:
        start.wait()
        try:
            work()
        except StoreError:
            return False
        return True

    for turn in range(25):
        make_space(catalogue, "two")
        if turn % 2:
            # Then the way back leads to it.
            catalogue.switch_default("two")
            catalogue.switch_default("one")
        start = threading.Barrier(2)
        switch = catalogue.switch_back if turn % 2 else lambda: catalogue.switch_default("two")

        with ThreadPoolExecutor(2) as threads:
            works = [threads.submit(tried, work) for work in (switch, lambda: catalogue.drop_space("two"))]
            switched, dropped = [work.result() for work in works]

        assert switched != dropped
        assert catalogue.default_space() == ("two" if switched else "one")
        assert (catalogue.find_space("two") is None) == dropped
        if switched:
            catalogue.switch_default("one")


def test_making_a_space_the_default_hides_no_change_of_it(catalogue):
    """Both lock the space's row, and who notes a change leaves a locked row to whoever has it."""
    make_space(catalogue, "one")
    space = make_space(catalogue, "two")
    before = space.changed_at()

    with transaction(catalogue.engine) as connection:
        connection.execute(text("UPDATE search_default SET space = 'two', previous = 'one'"))
        space.write([Embedded("a", 0, "other bytes", np.eye(3, dtype=np.float32)[1])], [])

    assert space.changed_at() > before
