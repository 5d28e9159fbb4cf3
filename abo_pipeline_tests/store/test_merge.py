"""Merging into real tables: what is counted, what is left alone, and what an error leaves behind."""

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from pgvector.sqlalchemy import Vector
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Integer,
    MetaData,
    SmallInteger,
    Table,
    Text,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.exc import ProgrammingError

from abo_pipeline.errors import StoreError
from abo_pipeline.store import Store
from abo_pipeline.store.database import transaction
from abo_pipeline.store.merge import Merged, merge

NOTES = Table(
    "notes",
    MetaData(),
    Column("shelf", Text, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("text", Text),
    Column("stars", SmallInteger, nullable=False, server_default="3"),
)
THINGS = Table(
    # A capital, a space and a keyword: names that have to be quoted.
    "Odd things",
    MetaData(),
    Column("order", BigInteger, primary_key=True),
    Column("Tags", ARRAY(Text)),
    Column("embedding", Vector(3)),
)
LINKS = Table("links", MetaData(), Column("a", Text, primary_key=True), Column("b", Text, primary_key=True))
COLUMNS = ("shelf", "number", "text")
FIRST = [("a", 1, "one"), ("a", 2, "two"), ("b", 1, "three")]


@pytest.fixture
def connection(store: Store) -> Iterator[Connection]:
    """In a transaction that holds the tables, and is undone in the end."""
    with store.engine.connect() as connection:
        for table in (NOTES, THINGS, LINKS):
            table.create(connection)
        yield connection


def notes(connection: Connection) -> list[tuple]:
    return [tuple(row) for row in connection.execute(select(NOTES).order_by(NOTES.c.shelf, NOTES.c.number))]


def versions(connection: Connection) -> dict[tuple, tuple]:
    """Where each row lies and which transaction wrote it: the same again if nobody touched it."""
    rows = connection.execute(text("SELECT shelf, number, ctid, xmin FROM notes"))
    return {(shelf, number): (ctid, xmin) for shelf, number, ctid, xmin in rows}


# --- What is counted ---


def test_rows_into_an_empty_table_are_added(connection):
    merged = merge(connection, NOTES, COLUMNS, FIRST)

    assert merged == Merged(added=3, changed=0, removed=0)
    assert notes(connection) == [("a", 1, "one", 3), ("a", 2, "two", 3), ("b", 1, "three", 3)]


def test_the_same_rows_again_are_left_alone(connection):
    merge(connection, NOTES, COLUMNS, FIRST)
    before = versions(connection)

    merged = merge(connection, NOTES, COLUMNS, reversed(FIRST), replace=True)

    assert merged == Merged(added=0, changed=0, removed=0)
    assert versions(connection) == before


def test_only_the_rows_that_differ_are_written(connection):
    merge(connection, NOTES, COLUMNS, FIRST)
    before = versions(connection)

    merged = merge(connection, NOTES, COLUMNS, [("a", 1, "one"), ("a", 2, "TWO"), ("c", 9, "four")])

    assert merged == Merged(added=1, changed=1, removed=0)
    assert notes(connection) == [("a", 1, "one", 3), ("a", 2, "TWO", 3), ("b", 1, "three", 3), ("c", 9, "four", 3)]
    after = versions(connection)
    assert [key for key in before if after[key] == before[key]] == [("a", 1), ("b", 1)]


def test_replacing_removes_what_is_not_among_the_rows(connection):
    merge(connection, NOTES, COLUMNS, FIRST)

    merged = merge(connection, NOTES, COLUMNS, [("a", 2, "two"), ("b", 1, "drei"), ("c", 1, None)], replace=True)

    assert merged == Merged(added=1, changed=1, removed=1)
    assert notes(connection) == [("a", 2, "two", 3), ("b", 1, "drei", 3), ("c", 1, None, 3)]


def test_no_rows_do_nothing(connection):
    merge(connection, NOTES, COLUMNS, FIRST)

    merged = merge(connection, NOTES, COLUMNS, [])

    assert merged == Merged(added=0, changed=0, removed=0)
    assert len(notes(connection)) == 3


def test_no_rows_in_replacement_empty_the_table(connection):
    merge(connection, NOTES, COLUMNS, FIRST)

    merged = merge(connection, NOTES, COLUMNS, [], replace=True)

    assert merged == Merged(added=0, changed=0, removed=3)
    assert notes(connection) == []


def test_a_column_that_is_not_listed_gets_its_default_and_then_keeps_its_value(connection):
    merge(connection, NOTES, COLUMNS, FIRST)
    connection.execute(update(NOTES).where(NOTES.c.shelf == "a").values(stars=5))

    merge(connection, NOTES, COLUMNS, [("a", 1, "one"), ("a", 2, "TWO"), ("b", 2, "new")])

    assert notes(connection) == [("a", 1, "one", 5), ("a", 2, "TWO", 5), ("b", 1, "three", 3), ("b", 2, "new", 3)]


def test_the_order_of_the_columns_is_the_callers(connection):
    merged = merge(connection, NOTES, ("stars", "text", "number", "shelf"), [(1, "one", 7, "z")])

    assert merged == Merged(added=1, changed=0, removed=0)
    assert notes(connection) == [("z", 7, "one", 1)]


def test_a_table_that_is_all_key_only_gains_and_loses_rows(connection):
    merge(connection, LINKS, ("a", "b"), [("x", "1"), ("x", "2")])

    merged = merge(connection, LINKS, ("a", "b"), [("x", "2"), ("y", "1")], replace=True)

    assert merged == Merged(added=1, changed=0, removed=1)
    assert set(connection.execute(select(LINKS)).all()) == {("x", "2"), ("y", "1")}


# --- What values survive ---


def test_null_is_a_value_like_any_other(connection):
    merge(connection, NOTES, COLUMNS, [("a", 1, None), ("a", 2, ""), ("a", 3, None)])

    merged = merge(connection, NOTES, COLUMNS, [("a", 1, None), ("a", 2, None), ("a", 3, "")])

    assert merged == Merged(added=0, changed=2, removed=0)
    assert notes(connection) == [("a", 1, None, 3), ("a", 2, None, 3), ("a", 3, "", 3)]


def test_any_text_comes_back_as_it_was(connection):
    texts = [
        'it\'s "quoted"; DROP TABLE notes; --',
        "two\nlines\r\nand a\ttab",
        "\\N and \\. and a trailing \\",
        "Größe, 椅子, كرسي, 🪑, e\u0301, \u202eright to left",
        "{1,2}",
        "%s %(name)s :name",
        "\x01\x7f",
        "x" * 100_000,
    ]
    rows = [(f"shelf {words[:9]}", number, words) for number, words in enumerate(texts)]

    merged = merge(connection, NOTES, COLUMNS, rows)

    assert merged == Merged(added=8, changed=0, removed=0)
    assert sorted(notes(connection), key=lambda note: note[1]) == [(*row, 3) for row in rows]
    assert merge(connection, NOTES, COLUMNS, rows) == Merged(added=0, changed=0, removed=0)


def test_arrays_and_vectors_and_names_that_need_quotes(connection):
    def rows(*tags: list[str] | None) -> list[tuple]:
        return [(2**62 + n, tag, np.array([n, -0.5, 1e-7], np.float32)) for n, tag in enumerate(tags)]

    first = rows(["red", 'a "chair", {folding}', "", "NULL"], [], None)
    merged = merge(connection, THINGS, ("order", "Tags", "embedding"), first)
    again = merge(connection, THINGS, ("order", "Tags", "embedding"), first, replace=True)
    changed = merge(connection, THINGS, ("order", "Tags", "embedding"), rows(["red"], [], []), replace=True)

    assert merged == Merged(added=3, changed=0, removed=0)
    assert again == Merged(added=0, changed=0, removed=0)
    assert changed == Merged(added=0, changed=2, removed=0)
    stored = connection.execute(select(THINGS).order_by(THINGS.c.order)).all()
    assert [(order, tags, list(vector)) for order, tags, vector in stored] == [
        (order, tags, vector.tolist()) for order, tags, vector in rows(["red"], [], [])
    ]


def test_a_vector_that_differs_in_its_last_bit_is_a_change(connection):
    vector = np.array([0.1, 0.2, 0.3], np.float32)
    merge(connection, THINGS, ("order", "embedding"), [(1, vector)])

    merged = merge(connection, THINGS, ("order", "embedding"), [(1, np.nextafter(vector, np.float32(1)))])

    assert merged == Merged(added=0, changed=1, removed=0)


# --- What an error leaves behind ---


def failing(rows: Iterable[Sequence[Any]]) -> Iterator[Sequence[Any]]:
    yield from rows
    raise OSError("the source of the rows went away")


@pytest.fixture
def committed(store: Store) -> Store:
    """The store with the notes for all connections to see."""
    with transaction(store.engine) as connection:
        NOTES.create(connection)
        merge(connection, NOTES, COLUMNS, FIRST)
    return store


def temporary_tables(store: Store) -> list[str]:
    with transaction(store.engine) as connection:
        return list(connection.scalars(text("SELECT relname FROM pg_class WHERE relpersistence = 't'")))


def test_a_key_that_comes_twice_is_refused_and_changes_nothing(committed):
    with (
        pytest.raises(ProgrammingError, match="cannot affect row a second time"),
        transaction(committed.engine) as connection,
    ):
        merge(connection, NOTES, COLUMNS, [("c", 1, "first"), ("c", 1, "second")], replace=True)

    with transaction(committed.engine) as connection:
        assert notes(connection) == [(*row, 3) for row in FIRST]
    assert temporary_tables(committed) == []


def test_rows_that_fail_to_come_leave_the_table_and_the_connection_as_they_were(committed):
    with pytest.raises(OSError, match="went away"), transaction(committed.engine) as connection:
        merge(connection, NOTES, COLUMNS, failing([("c", 1, "first")]), replace=True)

    with transaction(committed.engine) as connection:
        assert notes(connection) == [(*row, 3) for row in FIRST]
        assert merge(connection, NOTES, COLUMNS, FIRST) == Merged(added=0, changed=0, removed=0)
    assert temporary_tables(committed) == []


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("pg_cancel_backend(:session)", "canceling statement due to user request. "),
        ("pg_terminate_backend(:session, 5000)", ""),
    ],
)
def test_a_server_that_fails_among_the_rows_is_told_as_such(committed, function, reason):
    def failing_midway(session: int) -> Iterator[Sequence[Any]]:
        yield ("c", 1, "first")
        with transaction(committed.engine) as other:
            other.execute(text(f"SELECT {function}"), {"session": session})
        yield from (("c", number, "x" * 10_000) for number in range(2, 1000))

    def merge_until_it_fails() -> None:
        with transaction(committed.engine) as connection:
            session = connection.scalar(text("SELECT pg_backend_pid()"))
            merge(connection, NOTES, COLUMNS, failing_midway(session), replace=True)

    with pytest.raises(StoreError) as refused:
        merge_until_it_fails()

    where = committed.engine.url.render_as_string(hide_password=True)
    assert str(refused.value).startswith(f"Postgres does not answer at {where}: {reason}")
    with transaction(committed.engine) as connection:
        assert notes(connection) == [(*row, 3) for row in FIRST]


def test_what_is_rolled_back_leaves_nothing(committed):
    with committed.engine.connect() as connection:
        merge(connection, NOTES, COLUMNS, [("c", 1, "new")], replace=True)
        connection.rollback()

        assert notes(connection) == [(*row, 3) for row in FIRST]

    assert temporary_tables(committed) == []


def test_several_merges_fit_into_one_transaction(committed):
    with transaction(committed.engine) as connection:
        merged = [merge(connection, NOTES, COLUMNS, [("c", 1, word)]) for word in ("one", "one", "two")]

    assert merged == [Merged(1, 0, 0), Merged(0, 0, 0), Merged(0, 1, 0)]
    assert temporary_tables(committed) == []


# --- How long it takes ---


def test_twenty_thousand_rows_are_a_matter_of_seconds(connection):
    rows = [("shelf", number, f"note {number}") for number in range(20_000)]
    started = time.monotonic()

    merged = [merge(connection, NOTES, COLUMNS, rows, replace=True) for _ in range(2)]

    assert merged == [Merged(20_000, 0, 0), Merged(0, 0, 0)]
    assert time.monotonic() - started < 5
