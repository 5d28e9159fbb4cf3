"""The storage ladder's scratch table: a space's vectors once more, stored and indexed in some other way.

It is there for as long as a ladder is measured, one at a time in a database, and for as long as one way to store the
vectors is looked at. The space's own table is only read. What to measure is for the domain's ``ladder``.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from pgvector import HalfVector
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from abo_pipeline.errors import StoreError
from abo_pipeline.sampling import LAST_KEY
from abo_pipeline.store.database import ensure_vectorscale, transaction, translated
from abo_pipeline.store.indexes import Progress, installed_extensions, provide_means, watched
from abo_pipeline.store.nearest import Ask, Scope, Way, searching
from abo_pipeline.store.spaces import EmbeddingSpace, as_array
from abo_pipeline.store.strategies import DISKANN, Strategy

TABLE = "ladder_scratch"
_INDEX = "ladder_scratch_index"
_LOCK = {"namespace": 0x41424F, "what": "storage ladder"}
_PATIENCE_MS = 10_000

_EVERYTHING = Scope(None, LAST_KEY, None)

Vector = NDArray[np.float32]


class Storage(StrEnum):
    """How vectors are stored.

    FULL: four bytes a dimension, as the space does. HALF: two. PROJECTED: in half precision along fewer dimensions, to
    be found by, and the full vectors beside them, to be ordered by.
    """

    FULL = "vector"
    HALF = "halfvec"
    PROJECTED = "projected"


class NotIndexableError(StoreError):
    """An index that vectors like these cannot have."""


@dataclass(frozen=True)
class Row:
    """A row of a table of projected vectors: (d,) and (dimension,)."""

    image_id: str
    projected: Vector
    vector: Vector


@dataclass(frozen=True)
class BuiltIndex:
    """An index of the scratch table: seconds that building took, and bytes on disk."""

    seconds: float
    bytes: int


def lacks_extension(space: EmbeddingSpace, strategy: Strategy) -> bool:
    """Whether the database cannot build such an index; an extension that it can have, it has from now on."""
    with transaction(space.engine) as connection:
        if strategy.name == DISKANN:
            return ensure_vectorscale(connection) is None
        return strategy.extension not in installed_extensions(connection)


def stored_vectors(space: EmbeddingSpace, image_ids: Iterable[str]) -> dict[str, Vector]:
    """The space's own vectors of some images; of those that it has."""
    found = text(
        f"SELECT image_id, embedding FROM {space.table.name} WHERE image_id = ANY (CAST(:image_ids AS text[]))"
    )
    with transaction(space.engine) as connection:
        rows = connection.execute(found, {"image_ids": list(image_ids)})
        return {row.image_id: as_array(row.embedding) for row in rows}


@contextmanager
def scratch(space: EmbeddingSpace, progress: Progress = lambda _: None) -> Iterator["Scratch"]:
    """A scratch table for the block; afterwards there is none, however the block ends.

    What a process that was killed left behind goes as well, when the next one begins.

    Raises:
        StoreError: another ladder is being measured in this database, or the database does not answer.
    """
    with translated(space.engine), space.engine.connect() as connection:
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        # Nobody else's before or after: its settings and the lock end with its session.
        connection.detach()
        if not _is_alone(connection):
            raise StoreError(
                "Another storage ladder is being measured in this database, and two would disturb each other. "
                "Wait for it, and try again."
            )
        session = connection.execute(_SESSION).one()
        _drop(connection)
        try:
            yield Scratch(space, connection, progress)
        except BaseException:
            with suppress(DBAPIError):
                if connection.invalidated:
                    _clean_up_after(space.engine, session.pid, session.began)
                else:
                    _leave(connection)
            raise
        _leave(connection)


class Scratch:
    """A table that is filled, indexed and searched in one way after another; made by ``scratch``."""

    def __init__(self, space: EmbeddingSpace, connection: Connection, progress: Progress) -> None:
        self._space = space
        self._connection = connection
        self._progress = progress
        self._table = _qualified(connection)
        self._rows = 0
        self._storage = Storage.FULL
        self._dimension = space.dimension

    def fill(self, storage: Storage, cutoff: int) -> int:
        """Hold the vectors of the catalogue's images up to a sample key, in full or in half precision; how many."""
        kind = f"{storage}({self._space.dimension})"
        self._begin(storage, self._space.dimension)
        self._connection.execute(
            text(
                f"CREATE UNLOGGED TABLE {self._table} {_INLINE} AS "
                f"SELECT e.image_id, CAST(e.embedding AS {kind}) AS embedding "
                f"FROM {self._space.table.name} e JOIN images USING (image_id) "
                f"WHERE e.sample_key <= {cutoff} ORDER BY e.sample_key, e.image_id"
            )
        )
        return self._settle()

    def fill_projected(self, rows: Iterable[Row], d: int) -> int:
        """Hold projected vectors of d dimensions beside the full ones; how many."""
        self._begin(Storage.PROJECTED, d)
        self._connection.execute(
            text(
                f"CREATE UNLOGGED TABLE {self._table} "
                f"(image_id text, embedding halfvec({d}), original vector({self._space.dimension})) {_INLINE}"
            )
        )
        driver: Any = self._connection.connection.dbapi_connection
        with (
            driver.cursor() as cursor,
            cursor.copy(f"COPY {self._table} (image_id, embedding, original) FROM STDIN (FORMAT BINARY)") as copy,
        ):
            copy.set_types(["text", "halfvec", "vector"])
            for row in rows:
                copy.write_row((row.image_id, HalfVector(row.projected), row.vector))
        return self._settle()

    def vector_bytes(self) -> int:
        """What the columns of vectors hold."""
        size = " + ".join(f"pg_column_size({column})" for column in dict.fromkeys(("embedding", self._ordered_by)))
        return int(self._connection.scalar(text(f"SELECT coalesce(sum({size}), 0) FROM {self._table}")))

    def index(self, strategy: Strategy, memory_mb: int) -> BuiltIndex:
        """Build an index over all rows, in place of the one before; nobody else waits for it.

        Raises:
            NotIndexableError: these vectors have too many dimensions for it.
        """
        self._connection.execute(text(f"DROP INDEX IF EXISTS {_qualified(self._connection, _INDEX)}"))
        if strategy.name == DISKANN:
            # It cannot be over a table that is not logged.
            self._connection.execute(text(f"ALTER TABLE {self._table} SET LOGGED"))
            self._settle()
        means = provide_means(self._connection, self._rows, self._dimension, memory_mb)
        self._progress(f"building {strategy.method} over {self._rows:,} rows with {means}")
        definition = strategy.definition(self._rows, self._dimension)
        started = time.perf_counter()
        try:
            with watched(self._connection, self._space, self._progress):
                self._connection.execute(text(f"CREATE INDEX {_INDEX} ON {self._table} {definition}"))
        except DBAPIError as error:
            if isinstance(error.orig, psycopg.errors.ProgramLimitExceeded):
                raise NotIndexableError(str(error.orig).splitlines()[0]) from error
            raise
        seconds = time.perf_counter() - started
        size = text("SELECT pg_relation_size(CAST(:index AS regclass))")
        return BuiltIndex(seconds, int(self._connection.scalar(size, {"index": _qualified(self._connection, _INDEX)})))

    def search(
        self,
        vector: Vector,
        k: int,
        exclude: Sequence[str] = (),
        strategy: Strategy | None = None,
        effort: int = 0,
        *,
        projected: Vector | None = None,
    ) -> list[str]:
        """The k nearest rows as this way to store and index them finds them, under the settings of ``nearest``.

        Args:
            vector: (dimension,), of length 1.
            k: hits wanted.
            exclude: image_ids to leave out.
            strategy: of the index to go by; None to compare with every row.
            effort: of the index.
            projected: the same vector as the index sees it, where that is not the vector itself.
        """
        values: dict[str, Any] = {
            "whole": vector,
            "query": vector if projected is None else projected,
            "exclude": list(exclude),
            "k": k,
        }
        if strategy:
            values["candidates"] = strategy.candidates(k, effort)
        with searching(self._space, Ask(vector, k, _EVERYTHING), Way(strategy, "", effort)) as connection:
            return list(connection.scalars(text(self._statement(strategy)), values))

    @property
    def _ordered_by(self) -> str:
        """The column by which hits are ordered in the end."""
        return "original" if self._storage is Storage.PROJECTED else "embedding"

    def _statement(self, strategy: Strategy | None) -> str:
        """By the index and then by the most precise vectors that are stored; or by comparing with every row."""
        kind = f"halfvec({self._space.dimension})" if self._storage is Storage.HALF else "vector"
        distance = f"{self._ordered_by} <=> CAST(CAST(:whole AS vector) AS {kind})"
        rest = "image_id <> ALL (CAST(:exclude AS text[]))"
        if strategy is None:
            return (
                f"SELECT image_id FROM (SELECT image_id, ({distance}) + 0 AS distance FROM {self._table} "
                f"WHERE {rest} ORDER BY distance, image_id LIMIT :k) hits"
            )
        return (
            f"WITH candidates AS MATERIALIZED (SELECT image_id, {self._ordered_by} FROM {self._table} WHERE {rest} "
            f"ORDER BY {strategy.ordering(self._dimension)} LIMIT :candidates) "
            f"SELECT image_id FROM candidates ORDER BY {distance}, image_id LIMIT :k"
        )

    def _begin(self, storage: Storage, dimension: int) -> None:
        _drop(self._connection)
        self._storage, self._dimension = storage, dimension

    def _settle(self) -> int:
        """Leave nothing for the first searches to do that later ones need not."""
        self._connection.execute(text(f"VACUUM ANALYZE {self._table}"))
        self._rows = self._connection.scalar(text(f"SELECT count(*) FROM {self._table}")) or 0
        return self._rows


_INLINE = "WITH (toast_tuple_target = 8160)"
"""As the space's table is: vectors out of line would make an exact search several times slower."""

_SESSION = text("SELECT pid, backend_start AS began FROM pg_stat_activity WHERE pid = pg_backend_pid()")


def _is_alone(connection: Connection) -> bool:
    return bool(connection.scalar(text("SELECT pg_try_advisory_lock(:namespace, hashtext(:what))"), _LOCK))


def _qualified(connection: Connection, name: str = TABLE) -> str:
    """The name in this catalogue: further along the search path another catalogue may have the same."""
    return f"{connection.scalar(text('SELECT quote_ident(current_schema())'))}.{name}"


def _drop(connection: Connection) -> None:
    connection.execute(text(f"DROP TABLE IF EXISTS {_qualified(connection)}"))


def _leave(connection: Connection) -> None:
    """For the next one; a lock that ends with its session may outlast the call that closes it."""
    _drop(connection)
    connection.execute(text("SELECT pg_advisory_unlock(:namespace, hashtext(:what))"), _LOCK)


def _clean_up_after(engine: Engine, pid: int, began: object) -> None:
    """End a session that was given up in the middle of a statement, and drop its table."""
    with engine.connect() as connection:
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.detach()
        # Postgres would otherwise go on with the statement, and keep table and lock until it is done.
        end = text(
            "SELECT pg_terminate_backend(pid, :patience) FROM pg_stat_activity WHERE pid = :pid "
            "AND backend_start = :began"
        )
        connection.execute(end, {"patience": _PATIENCE_MS, "pid": pid, "began": began})
        # Whoever else is measuring by now has dropped it.
        if _is_alone(connection):
            _leave(connection)
