"""The spaces of a catalogue side by side: which there are, what each holds, and which one searches use.

The default space is kept in the database, so that it is the same for everybody who searches there, and to switch it is
one statement. A run never does. The rows of one space are in ``spaces``.
"""

import shlex
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from sqlalchemy import Connection, Engine, Row, Table, delete, exists, func, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import DBAPIError

from abo_pipeline.errors import StoreError
from abo_pipeline.store.database import transaction
from abo_pipeline.store.indexes import without_index_work
from abo_pipeline.store.schema import Base, Failure, SearchDefault, SizeIndex, Space, embeddings_table
from abo_pipeline.store.spaces import EmbeddingSpace, accounts

_PATIENCE_SECONDS = 3.0
"""So long a drop waits for whoever is at work: enough for a process to be gone that was told to end."""


@dataclass(frozen=True)
class SpaceSummary:
    """One of the spaces of a catalogue.

    Attributes:
        model: as it was given when the space was made: a hub name, a folder, or small-clip.
        vectors: stored, also those of images that have changed or left the catalogue since.
        failures: recorded, likewise.
        kept: images of the catalogue.
        pending: of these, neither embedded nor failed with the bytes that they have now.
        table_bytes: of the vectors, on disk.
        index_bytes: of all indexes on them.
        sizes: that have a vector index, ascending.
        is_default: whether searches use it if none is named.
        is_previous: whether switching back would make it the default.
    """

    name: str
    model: str
    dimension: int
    fingerprint: str
    vectors: int
    failures: int
    kept: int
    pending: int
    table_bytes: int
    index_bytes: int
    sizes: tuple[int, ...]
    created_at: datetime
    changed_at: datetime
    is_default: bool
    is_previous: bool


def summaries(engine: Engine) -> list[SpaceSummary]:
    """Every space, in the order in which they were made."""
    with transaction(engine) as connection:
        rows = connection.execute(select(Space.__table__).order_by(Space.created_at, Space.name)).all()
        default = connection.execute(select(SearchDefault.space, SearchDefault.previous)).one_or_none()
    return [_summary(engine, row, *(default or (None, None))) for row in rows]


def _summary(engine: Engine, row: Row[Any], default: str | None, previous: str | None) -> SpaceSummary:
    table = embeddings_table(row.name, row.dimension)
    (account,) = accounts(engine, row.name, table.name, [0])
    failures = select(func.count()).where(Failure.space == row.name)
    sizes = select(SizeIndex.size).where(SizeIndex.space == row.name).order_by(SizeIndex.size)
    on_disk = text("SELECT pg_table_size(to_regclass(:table)), pg_indexes_size(to_regclass(:table))")
    with transaction(engine) as connection:
        table_bytes, index_bytes = connection.execute(on_disk, {"table": table.name}).one()
        return SpaceSummary(
            name=row.name,
            model=row.model,
            dimension=row.dimension,
            fingerprint=row.fingerprint,
            vectors=connection.execute(select(func.count()).select_from(table)).scalar_one(),
            failures=connection.execute(failures).scalar_one(),
            kept=account.kept,
            pending=account.pending,
            table_bytes=table_bytes,
            index_bytes=index_bytes,
            sizes=tuple(connection.scalars(sizes)),
            created_at=row.created_at,
            changed_at=row.changed_at,
            is_default=row.name == default,
            is_previous=row.name == previous,
        )


def has_vectors(connection: Connection, table: Table) -> bool:
    """Whether a space's table holds any."""
    return bool(connection.scalar(select(exists(select(table.c.image_id)))))


def default_space(engine: Engine) -> str | None:
    """The space that searches use if none is named; None before the first space is made."""
    with transaction(engine) as connection:
        return connection.scalar(select(SearchDefault.space))


def fill_vacancy(connection: Connection, name: str) -> None:
    """Make a space that is just being made the default, unless there is one in which searches find something."""
    current = select(Space.name, Space.dimension).join(SearchDefault, SearchDefault.space == Space.name)
    row = connection.execute(current).one_or_none()
    if row is None:
        # Of two that are made at once, one is the first.
        connection.execute(upsert(SearchDefault).values(space=name).on_conflict_do_nothing())
    elif not has_vectors(connection, embeddings_table(row.name, row.dimension)):
        connection.execute(update(SearchDefault).where(SearchDefault.space == row.name).values(space=name))


def switch_default(space: EmbeddingSpace) -> str | None:
    """Make a space the default.

    One statement sets it and what was before, so that of two who switch at once neither undoes half of the other's.

    Returns:
        The default before, which may be the space itself; None if there was none.

    Raises:
        StoreError: the space holds no vectors, or has been dropped.
    """
    switch = text(
        f"""
        INSERT INTO search_default AS d (space) SELECT :name WHERE EXISTS (SELECT FROM {space.table.name})
        ON CONFLICT (one) DO UPDATE SET space = excluded.space, previous = d.space WHERE d.space <> excluded.space
        RETURNING previous
        """
    )
    with transaction(space.engine) as connection:
        switched = connection.execute(switch, {"name": space.name}).one_or_none()
        if switched:
            return None if switched.previous is None else str(switched.previous)
        if connection.scalar(select(SearchDefault.space)) == space.name:
            return space.name
    raise StoreError(
        f"Space {space.name} holds no vectors yet, so searches cannot use it. Embed into it first: "
        f"abo run --model {shlex.quote(space.model)} --space {space.name}"
    )


def switch_back(engine: Engine) -> str:
    """Make the space the default that was it before the last switch; doing so twice changes nothing.

    Returns:
        The default now.

    Raises:
        StoreError: there was no other before, or it has been dropped since.
    """
    back = text(
        "UPDATE search_default SET space = previous, previous = space WHERE previous IS NOT NULL RETURNING space"
    )
    with transaction(engine) as connection:
        now = connection.scalar(back)
    if now is None:
        raise StoreError(
            "There is no space to switch back to: none was the default before, or it has been dropped since. "
            "`abo spaces use NAME` switches to any that `abo spaces` lists."
        )
    return str(now)


def drop(space: EmbeddingSpace) -> None:
    """Remove a space and all that is kept of it in the database.

    Raises:
        StoreError: searches use it by default, or somebody writes, indexes or searches it just now; nothing is changed.
    """
    if default_space(space.engine) == space.name:
        raise _is_default(space.name)
    with (
        space.without_writers(_PATIENCE_SECONDS),
        without_index_work(space, _PATIENCE_SECONDS),
        transaction(space.engine) as connection,
    ):
        try:
            _drop(connection, space)
        except DBAPIError as error:
            if isinstance(error.orig, psycopg.errors.LockNotAvailable):
                raise StoreError(
                    f"Space {space.name} is being used, and was for {_PATIENCE_SECONDS:.0f} seconds without a pause. "
                    "Try again later."
                ) from error
            raise


def _drop(connection: Connection, space: EmbeddingSpace) -> None:
    schema = connection.scalar(text("SELECT quote_ident(current_schema())"))
    # Whoever waits for the table makes everybody wait who comes later.
    connection.execute(text(f"SET LOCAL lock_timeout = '{_PATIENCE_SECONDS}s'"))
    # Its indexes go with it. By its schema: for want of one, another catalogue's would be found.
    connection.execute(text(f"DROP TABLE IF EXISTS {schema}.{space.table.name}"))
    # Again, now that nobody can make it the default any more. After the table, as a switch does: no deadlock.
    if connection.scalar(select(SearchDefault.space).with_for_update()) == space.name:
        raise _is_default(space.name)
    for table in _tables_by_space():
        connection.execute(delete(table).where(table.c.space == space.name))
    connection.execute(delete(Space).where(Space.name == space.name))


def _tables_by_space() -> list[Table]:
    """Every table that holds rows of spaces, whatever they are. The default is no row of its space, and never goes."""
    tables = Base.metadata.sorted_tables
    return [table for table in tables if "space" in table.c and table.name != SearchDefault.__tablename__]


def _is_default(name: str) -> StoreError:
    return StoreError(
        f"Space {name} is the one that searches use, and is not dropped. Have them use another one first: "
        "abo spaces use NAME"
    )
