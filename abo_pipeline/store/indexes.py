"""Vector indexes: one a size, built after its rows are there, replaced only by a valid one.

An index is named by what it is: the strategy, the space, and a digest of the cutoff and the parameters. So "is it
built?" is a look at the catalogue of Postgres, and building again what is there and valid does nothing: an index keeps
itself up to date with every row that is written. Sizes with the same cutoff, such as two that the catalogue does not
fill, share an index; a size of few rows has none, because comparing with all of them is quicker. What the strategies
are is in ``strategies``.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

from sqlalchemy import Connection, Engine, case, delete, func, literal, null, text
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import DBAPIError

from abo_pipeline.errors import StoreError
from abo_pipeline.machine import cores, memory_bytes
from abo_pipeline.sampling import LAST_KEY
from abo_pipeline.store.database import ensure_vectorscale, transaction, translated
from abo_pipeline.store.schema import Background, SizeIndex
from abo_pipeline.store.spaces import EmbeddingSpace, space_lock
from abo_pipeline.store.strategies import DISKANN, EXACT, HNSW, METHODS, STRATEGIES, Strategy, membership

_POLL_SECONDS = 1.0
_TOLERATED_CHANGE = 0.1
_LOCK_NAMESPACE = 0x41424F

Progress = Callable[[str], None]


@dataclass(frozen=True)
class IndexStatus:
    """How a size is searched, as Postgres reports it.

    Attributes:
        name: of the index; None where an exact scan is quicker.
        size, cutoff: what it serves: the images with ``sample_key <= cutoff``.
        rows: vectors that it covers.
        bytes: on disk.
        seconds: that building took; 0.0 if it was there.
        built: whether this call built it.
        strategy: by which the size is searched.
        reason: why, if it is not the strategy that was asked for.
    """

    name: str | None
    size: int
    cutoff: int
    rows: int
    bytes: int
    valid: bool
    ready: bool
    built: bool
    seconds: float
    strategy: str = HNSW
    reason: str = ""


def build_index(
    space: EmbeddingSpace,
    size: int,
    cutoff: int,
    *,
    memory_mb: int,
    strategy: str = HNSW,
    exact_below: int = 0,
    rebuild: bool = False,
    progress: Progress = lambda _: None,
) -> IndexStatus:
    """Build the index of a size, unless the very same one is there and valid; then drop the one it replaces.

    Searches and writes go on meanwhile, and the old index serves until the new one is valid.

    Args:
        space: whose vectors are indexed.
        size: MAX_IMAGES.
        cutoff: the last sample key of the size.
        memory_mb: at most so much for the build; less is used when the rows need less or the machine has less.
        strategy: one of ``strategies.NAMES``.
        exact_below: a size of fewer vectors gets no index.
        rebuild: build it anew even if it is there and looks valid.
        progress: told in words how far it is, about once a second.

    Raises:
        StoreError: the database does not answer, or the index came out invalid.
    """
    started = time.monotonic()
    with _maintenance(space, progress) as connection:
        rows = space.vectors(cutoff)
        chosen, reason = _choose(space.engine, connection, strategy, rows, exact_below)
        if reason:
            progress(f"size {size:,}: {reason}")
        name, built = None, False
        if chosen:
            name = _index_name(chosen, space, cutoff, rows)
            built = rebuild or not _is_valid(connection, space, name)
            if built:
                _build(connection, space, name, chosen, cutoff, rows, memory_mb, progress)
            if not _is_valid(connection, space, name):
                raise StoreError(
                    f"Index {name} is not valid after its build; the one before it still serves. Build it again."
                )
        elif not _is_analysed(connection, space):
            connection.execute(text(f"ANALYZE {space.table.name}"))
        _register(connection, space, size, cutoff, name, chosen, rows, anew=built)
        _drop_unused(connection, space, progress)
        # Before somebody else may come and replace it.
        status = IndexStatus(
            name,
            size,
            cutoff,
            space.vectors(cutoff),
            0,
            valid=True,
            ready=True,
            built=built,
            seconds=time.monotonic() - started if built else 0.0,
            strategy=chosen.name if chosen else EXACT,
            reason=reason,
        )
        return _as_reported(connection, space, status)


def drop_sizes_but(space: EmbeddingSpace, sizes: list[int], progress: Progress = lambda _: None) -> list[int]:
    """Forget sizes that are no longer asked for, and drop what served them alone: an index costs every write.

    Returns:
        Those that were forgotten.
    """
    with _maintenance(space, progress) as connection:
        connection.execute(delete(Background).where(Background.space == space.name, Background.size.not_in(sizes)))
        others = delete(SizeIndex).where(SizeIndex.space == space.name, SizeIndex.size.not_in(sizes))
        forgotten = sorted(connection.scalars(others.returning(SizeIndex.size)))
        _drop_unused(connection, space, progress)
    return forgotten


def drop_lost_indexes(space: EmbeddingSpace, progress: Progress = lambda _: None) -> None:
    """Drop the space's vector indexes whose files are gone, or empty as no index is.

    Postgres looks at the file of every index of a table that it plans a statement about: without it, not even exact
    searches are answered, and nothing could be built.
    """
    lost = _OURS + "AND pg_relation_size(c.oid) = 0"
    with _maintenance(space, progress) as connection:
        for name in connection.scalars(text(lost), _ours(space)).all():
            _drop(connection, name)
            progress(f"dropped {name}, whose file is gone")


def installed_extensions(connection: Connection) -> dict[str, str]:
    """The versions of the extensions that indexes come from, as installed in this database."""
    wanted = {strategy.extension for strategy in STRATEGIES.values()}
    found = text("SELECT extname, extversion FROM pg_extension WHERE extname = ANY (:wanted)")
    return {row.extname: row.extversion for row in connection.execute(found, {"wanted": sorted(wanted)})}


def _choose(
    engine: Engine, connection: Connection, wanted: str, rows: int, exact_below: int
) -> tuple[Strategy | None, str]:
    """The strategy for so many rows, None for an exact scan; and why, if it is not the one that is wanted."""
    if wanted == EXACT:
        return None, ""
    if rows < exact_below:
        return None, f"searched exactly, which is quicker below {exact_below:,} vectors (ABO_EXACT_BELOW)"
    strategy = STRATEGIES[wanted]
    if wanted == DISKANN:
        # Not on this connection, which has no transactions.
        with transaction(engine) as other:
            ensure_vectorscale(other)
    if strategy.extension not in installed_extensions(connection):
        reason = f"hnsw instead of {wanted}, because this database has no extension {strategy.extension}"
        return STRATEGIES[HNSW], reason
    return strategy, ""


def _index_name(strategy: Strategy, space: EmbeddingSpace, cutoff: int, rows: int) -> str:
    """At most 63 characters, all of them safe to stand in a statement: a space's name is a slug."""
    what = f"{strategy.definition(rows, space.dimension)} {cutoff}"
    return f"{strategy.name}_{space.name}_{blake2b(what.encode(), digest_size=4).hexdigest()}"


@contextmanager
def without_index_work(space: EmbeddingSpace, patience_s: float) -> Iterator[None]:
    """Keep everybody else from building or dropping the space's indexes in the block.

    Raises:
        StoreError: somebody is at it, and still is after so many seconds.
    """
    with _maintenance(space, patience_s=patience_s):
        yield


@contextmanager
def _maintenance(
    space: EmbeddingSpace, progress: Progress = lambda _: None, *, patience_s: float = math.inf
) -> Iterator[Connection]:
    """A connection for index work: without a transaction round it, and the only one for this space.

    It is nobody else's before or after: settings, and the lock if the work is cut short, end with its session.
    """
    deadline, waits = time.monotonic() + patience_s, False
    with translated(space.engine), space.engine.connect() as connection:
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.detach()
        lock = {"namespace": _LOCK_NAMESPACE, "space": space.name}
        # Asked for again and again: a session that waits inside pg_advisory_lock holds a snapshot, and a concurrent
        # build in the session that has the lock would wait for that snapshot for ever.
        while not connection.scalar(space_lock("pg_try_advisory_lock"), lock):
            if time.monotonic() >= deadline:
                raise StoreError(
                    f"An index of space {space.name} is being built or dropped. Try again when that is done."
                )
            if not waits:
                progress(f"waiting for another process to be done with the indexes of space {space.name}")
                waits = True
            time.sleep(_POLL_SECONDS)
        yield connection
        connection.execute(space_lock("pg_advisory_unlock"), lock)


def _build(
    connection: Connection,
    space: EmbeddingSpace,
    name: str,
    strategy: Strategy,
    cutoff: int,
    rows: int,
    memory_mb: int,
    progress: Progress,
) -> None:
    # One that is there and serves is replaced in one step. What an interrupted build left behind would keep the name.
    in_place = _is_valid(connection, space, name)
    if not in_place:
        _drop(connection, name)
    means = provide_means(connection, rows, space.dimension, memory_mb)
    progress(f"building {name} over {rows:,} rows with {means}")
    statement = text(
        f"REINDEX INDEX CONCURRENTLY {_qualified(connection, name)}"
        if in_place
        else f"CREATE INDEX CONCURRENTLY {name} ON {space.table.name} "
        f"{strategy.definition(rows, space.dimension)} WHERE {membership(cutoff)}"
    )
    try:
        with watched(connection, space, progress):
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


def _is_analysed(connection: Connection, space: EmbeddingSpace) -> bool:
    """Whether the planner knows about how many vectors there are. Else it starts processes to look at a thousand."""
    known = "SELECT reltuples FROM pg_class WHERE oid = CAST(:table AS regclass)"
    estimate = connection.scalar(text(known), {"table": space.table.name}) or 0.0
    vectors = space.vectors(LAST_KEY)
    return bool(abs(estimate - vectors) <= _TOLERATED_CHANGE * vectors)


def provide_means(connection: Connection, rows: int, dimension: int, memory_mb: int) -> str:
    """Let a session use memory and processes for building an index over so many vectors; says in words how much."""
    memory = _memory_mb(rows, dimension, memory_mb)
    workers = max(0, min(cores() - 1, 7))
    connection.execute(text(f"SET maintenance_work_mem = '{memory}MB'"))
    connection.execute(text(f"SET max_parallel_maintenance_workers = {workers}"))
    return f"{memory} MB and {workers + 1} process(es)"


def _memory_mb(rows: int, dimension: int, limit_mb: int) -> int:
    """Enough for the whole graph, because a build that does not fit takes twice as long.

    pgvector needs about 4 bytes a dimension and 500 a row. Within the limit and a quarter of this machine, and at
    least Postgres's own default.
    """
    needed = rows * (4 * dimension + 500) // 2**20 + 16
    return max(64, min(needed, limit_mb, memory_bytes() // 2**20 // 4))


@contextmanager
def watched(connection: Connection, space: EmbeddingSpace, progress: Progress) -> Iterator[None]:
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


def _qualified(connection: Connection, name: str) -> str:
    """The name of an index of this catalogue, and for want of one not another catalogue's."""
    return f"{connection.scalar(text('SELECT quote_ident(current_schema())'))}.{name}"


def _drop(connection: Connection, name: str) -> None:
    connection.execute(text(f"DROP INDEX CONCURRENTLY IF EXISTS {_qualified(connection, name)}"))


def _register(
    connection: Connection,
    space: EmbeddingSpace,
    size: int,
    cutoff: int,
    name: str | None,
    strategy: Strategy | None,
    rows: int,
    *,
    anew: bool,
) -> None:
    """From here on searches use it. What was measured of the one before does not hold for this one.

    But of the same index, built anew, its effort is the best guess until it has been measured.
    """
    values: dict[str, Any] = {
        "cutoff": cutoff,
        "index_name": name,
        "built_at": func.now(),
        "strategy": strategy.name if strategy else EXACT,
        "rows": rows,
        "extension": _extension(connection, strategy),
        "efforts": null(),
        "measured": null(),
        "measured_at": null(),
    }
    statement = upsert(SizeIndex).values(space=space.name, size=size, **values)
    differs = SizeIndex.index_name.is_distinct_from(name) | (SizeIndex.cutoff != cutoff)
    values["efforts"] = case((differs, null()), else_=SizeIndex.efforts)
    key = [SizeIndex.space, SizeIndex.size]
    connection.execute(statement.on_conflict_do_update(index_elements=key, set_=values, where=differs | literal(anew)))


def _extension(connection: Connection, strategy: Strategy | None) -> str | None:
    """The extension and its version that a strategy's indexes are made by."""
    return f"{strategy.extension} {installed_extensions(connection)[strategy.extension]}" if strategy else None


def _drop_unused(connection: Connection, space: EmbeddingSpace, progress: Progress) -> None:
    """Drop the space's vector indexes that no size is served by: unknown ones, and what an unfinished build left."""
    unused = _OURS + (
        "AND (NOT i.indisvalid OR c.relname NOT IN (SELECT index_name FROM size_indexes "
        "WHERE space = :space AND index_name IS NOT NULL))"
    )
    for name in connection.scalars(text(unused), _ours(space) | {"space": space.name}).all():
        _drop(connection, name)
        progress(f"dropped {name}, which no size needs any more")


_OURS = (
    "SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam "
    "WHERE i.indrelid = to_regclass(:table) AND a.amname = ANY (:methods) "
)
"""The vector indexes of a space."""


def _ours(space: EmbeddingSpace) -> dict[str, Any]:
    return {"table": space.table.name, "methods": list(METHODS)}


def _as_reported(connection: Connection, space: EmbeddingSpace, status: IndexStatus) -> IndexStatus:
    if status.name is None:
        return status
    valid, ready, size_bytes = connection.execute(_VALIDITY, {"table": space.table.name, "name": status.name}).one()
    return replace(status, valid=valid, ready=ready, bytes=size_bytes)
