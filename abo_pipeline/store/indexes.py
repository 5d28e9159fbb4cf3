"""Vector indexes: one a size, built after its rows are there, replaced only by a valid one.

An index is named by what it is: the space, and a digest of the cutoff and the parameters. So "is it built?" is a look
at the catalogue of Postgres, and building again what is there and valid does nothing: HNSW keeps itself up to date with
every row that is written. Sizes with the same cutoff, such as two that the catalogue does not fill, share an index.
"""

import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b

import psutil
from sqlalchemy import Connection, delete, func, text
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import DBAPIError

from abo_pipeline.errors import StoreError
from abo_pipeline.store.database import transaction, translated
from abo_pipeline.store.schema import SizeIndex
from abo_pipeline.store.spaces import EmbeddingSpace

HNSW_M = 24
HNSW_EF_CONSTRUCTION = 128
"""With half precision and exact re-ranking, the best of what was measured at 100,000 rows."""

_POLL_SECONDS = 1.0
_LOCK_NAMESPACE = 0x41424F

Progress = Callable[[str], None]


@dataclass(frozen=True)
class IndexStatus:
    """A size's index as Postgres reports it.

    Attributes:
        size, cutoff: what it serves: the images with ``sample_key <= cutoff``.
        rows: vectors that it covers.
        bytes: on disk.
        seconds: that building took; 0.0 if it was there.
        built: whether this call built it.
    """

    name: str
    size: int
    cutoff: int
    rows: int
    bytes: int
    valid: bool
    ready: bool
    built: bool
    seconds: float


def build_index(
    space: EmbeddingSpace, size: int, cutoff: int, *, memory_mb: int, progress: Progress = lambda _: None
) -> IndexStatus:
    """Build the HNSW index of a size, unless the very same one is there and valid; then drop the one it replaces.

    Searches and writes go on meanwhile, and the old index serves until the new one is valid.

    Args:
        space: whose vectors are indexed.
        size: MAX_IMAGES.
        cutoff: the last sample key of the size.
        memory_mb: at most so much for the build; less is used when the rows need less or the machine has less.
        progress: told in words how far it is, about once a second.

    Raises:
        StoreError: the database does not answer, or the index came out invalid.
    """
    name = _index_name(space.name, cutoff)
    started = time.monotonic()
    with _maintenance(space) as connection:
        built = not _is_valid(connection, space, name)
        if built:
            _build(connection, space, name, cutoff, memory_mb, progress)
        if not _is_valid(connection, space, name):
            raise StoreError(
                f"Index {name} is not valid after its build; the one before it still serves. Build it again."
            )
        _register(connection, space, size, cutoff, name)
        _drop_unused(connection, space, progress)
        seconds = time.monotonic() - started if built else 0.0
        # Before somebody else may come and replace it.
        return _status(space, size, cutoff, name, built=built, seconds=seconds)


def drop_sizes_but(space: EmbeddingSpace, sizes: list[int], progress: Progress = lambda _: None) -> None:
    """Forget sizes that are no longer asked for, and drop what served them alone: an index costs every write."""
    with _maintenance(space) as connection:
        connection.execute(delete(SizeIndex).where(SizeIndex.space == space.name, SizeIndex.size.not_in(sizes)))
        _drop_unused(connection, space, progress)


def _index_name(space: str, cutoff: int) -> str:
    """At most 63 characters, all of them safe to stand in a statement: a space's name is a slug."""
    what = f"hnsw halfvec {HNSW_M} {HNSW_EF_CONSTRUCTION} {cutoff}"
    return f"hnsw_{space}_{blake2b(what.encode(), digest_size=4).hexdigest()}"


@contextmanager
def without_index_work(space: EmbeddingSpace, patience_s: float) -> Iterator[None]:
    """Keep everybody else from building or dropping the space's indexes in the block.

    Raises:
        StoreError: somebody is at it, and still is after so many seconds.
    """
    with _maintenance(space, patience_s):
        yield


@contextmanager
def _maintenance(space: EmbeddingSpace, patience_s: float = math.inf) -> Iterator[Connection]:
    """A connection for index work: without a transaction round it, and the only one for this space.

    It is nobody else's before or after: settings, and the lock if the work is cut short, end with its session.
    """
    deadline = time.monotonic() + patience_s
    with translated(space.engine), space.engine.connect() as connection:
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.detach()
        lock = {"namespace": _LOCK_NAMESPACE, "space": space.name}
        # Asked for again and again: a session that waits inside pg_advisory_lock holds a snapshot, and a concurrent
        # build in the session that has the lock would wait for that snapshot for ever.
        while not connection.scalar(text("SELECT pg_try_advisory_lock(:namespace, hashtext(:space))"), lock):
            if time.monotonic() >= deadline:
                raise StoreError(
                    f"An index of space {space.name} is being built or dropped. Try again when that is done."
                )
            time.sleep(_POLL_SECONDS)
        yield connection
        connection.execute(text("SELECT pg_advisory_unlock(:namespace, hashtext(:space))"), lock)


def _build(
    connection: Connection, space: EmbeddingSpace, name: str, cutoff: int, memory_mb: int, progress: Progress
) -> None:
    # What an interrupted build left behind is invalid, and would keep the name.
    _drop(connection, name)
    rows = space.vectors(cutoff)
    memory = _memory_mb(rows, space.dimension, memory_mb)
    workers = max(0, min(_cores() - 1, 7))
    progress(f"building {name} over {rows:,} rows with {memory} MB and {workers + 1} process(es)")
    statement = text(
        f"CREATE INDEX CONCURRENTLY {name} ON {space.table.name} "
        f"USING hnsw (CAST(embedding AS halfvec({space.dimension})) halfvec_cosine_ops) "
        f"WITH (m = {HNSW_M}, ef_construction = {HNSW_EF_CONSTRUCTION}) WHERE sample_key <= {cutoff}"
    )
    connection.execute(text(f"SET maintenance_work_mem = '{memory}MB'"))
    connection.execute(text(f"SET max_parallel_maintenance_workers = {workers}"))
    try:
        with _watched(connection, space, progress):
            connection.execute(statement)
    except DBAPIError as error:
        # The session may have died of it, and its lock is needed: clean up in another.
        connection.close()
        with _maintenance(space) as other:
            _drop_unused(other, space, progress)
        raise StoreError(
            f"Index {name} could not be built: {str(error.orig).splitlines()[0]}. "
            "The one before it, if any, still serves."
        ) from error
    connection.execute(text(f"ANALYZE {space.table.name}"))


def _memory_mb(rows: int, dimension: int, limit_mb: int) -> int:
    """Enough for the whole graph, because a build that does not fit takes twice as long.

    pgvector needs about 4 bytes a dimension and 500 a row. Within the limit and a quarter of this machine, and at
    least Postgres's own default.
    """
    needed = rows * (4 * dimension + 500) // 2**20 + 16
    machine = int(psutil.virtual_memory().total) // 2**20 // 4
    return max(64, min(needed, limit_mb, machine))


def _cores() -> int:
    """Cores this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _watched(connection: Connection, space: EmbeddingSpace, progress: Progress) -> Iterator[None]:
    """Report a build's progress from a second connection, about once a second, until the block ends."""
    pid = connection.scalar(text("SELECT pg_backend_pid()"))
    done = threading.Event()

    def watch() -> None:
        last = ""
        with space.engine.connect() as other:
            other = other.execution_options(isolation_level="AUTOCOMMIT")
            while not done.wait(_POLL_SECONDS):
                row = other.execute(_PROGRESS, {"pid": pid}).one_or_none()
                words = f"{row.phase}: {row.percent:.0f} %" if row and row.percent is not None else row and row.phase
                if words and words != last:
                    progress(words)
                    last = words

    watcher = threading.Thread(target=watch, name="index-progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


_PROGRESS = text(
    """
    SELECT phase, 100.0 * coalesce(nullif(tuples_done, 0)::float / nullif(tuples_total, 0),
                                   nullif(blocks_done, 0)::float / nullif(blocks_total, 0)) AS percent
    FROM pg_stat_progress_create_index WHERE pid = :pid
    """
)

_VALIDITY = text(
    """
    SELECT indisvalid, indisready, pg_relation_size(indexrelid)
    FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
    WHERE indrelid = to_regclass(:table) AND relname = :name
    """
)
"""By the table, and not by the name alone: another catalogue, further along the search path, may have an index of the
same name."""


def _is_valid(connection: Connection, space: EmbeddingSpace, name: str) -> bool:
    row = connection.execute(_VALIDITY, {"table": space.table.name, "name": name}).one_or_none()
    return row is not None and row[0] and row[1]


def _drop(connection: Connection, name: str) -> None:
    """Drop this catalogue's index of that name, and for want of one not another catalogue's."""
    schema = connection.scalar(text("SELECT quote_ident(current_schema())"))
    connection.execute(text(f"DROP INDEX CONCURRENTLY IF EXISTS {schema}.{name}"))


def _register(connection: Connection, space: EmbeddingSpace, size: int, cutoff: int, name: str) -> None:
    """From here on searches use it."""
    values = {"cutoff": cutoff, "index_name": name, "built_at": func.now()}
    statement = upsert(SizeIndex).values(space=space.name, size=size, **values)
    differs = (SizeIndex.index_name != name) | (SizeIndex.cutoff != cutoff)
    connection.execute(
        statement.on_conflict_do_update(index_elements=[SizeIndex.space, SizeIndex.size], set_=values, where=differs)
    )


def _drop_unused(connection: Connection, space: EmbeddingSpace, progress: Progress) -> None:
    """Drop the space's vector indexes that no size is served by: unknown ones, and what an unfinished build left."""
    unused = text(
        "SELECT relname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid "
        "WHERE indrelid = to_regclass(:table) AND starts_with(relname, :prefix) "
        "AND (NOT indisvalid OR relname NOT IN (SELECT index_name FROM size_indexes WHERE space = :space))"
    )
    ours = {"table": space.table.name, "prefix": f"hnsw_{space.name}_", "space": space.name}
    for name in connection.scalars(unused, ours).all():
        _drop(connection, name)
        progress(f"dropped {name}, which no size needs any more")


def _status(space: EmbeddingSpace, size: int, cutoff: int, name: str, *, built: bool, seconds: float) -> IndexStatus:
    rows = space.vectors(cutoff)
    with transaction(space.engine) as connection:
        valid, ready, size_bytes = connection.execute(_VALIDITY, {"table": space.table.name, "name": name}).one()
    return IndexStatus(name, size, cutoff, rows, size_bytes, valid, ready, built, seconds)
