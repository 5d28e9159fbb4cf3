"""The way to a database that is fit, and what is said of one that is not. The servers here are real."""

import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import polars as pl
import psycopg
import pytest
from sqlalchemy import URL, make_url, text
from sqlalchemy.exc import DBAPIError

from abo_pipeline import catalog
from abo_pipeline.errors import StoreError
from abo_pipeline.settings import Settings
from abo_pipeline.store import Store, database, open_store
from abo_pipeline.store.database import database_url as url_of
from abo_pipeline.store.database import open_engine, transaction
from abo_pipeline.store.embedded import EmbeddedServer

TABLES = [
    *(
        "backgrounds",
        "failures",
        "golden_hits",
        "images",
        "product_images",
        "products",
        "schema_version",
        "search_default",
    ),
    *("size_indexes", "spaces"),
]
VERSION = 5
REMEDY = "Check that it runs (`abo doctor`) and that ABO_DATABASE_URL is right; unset it to use the embedded server."
NO_URL = "ABO_DATABASE_URL is no database URL. It looks like postgresql://USER:PASSWORD@HOST:5432/DATABASE."


def execute(url: URL, statement: str, *parameters: object) -> list[tuple]:
    with psycopg.connect(
        user=url.username, dbname=url.database, host=str(url.query["host"]), autocommit=True
    ) as connection:
        cursor = connection.execute(statement, parameters or None)
        return cursor.fetchall() if cursor.description else []


@pytest.fixture
def make_blank(server: EmbeddedServer) -> Iterator[Callable[[], URL]]:
    """Databases that nobody has used yet: no extension, no tables."""
    administration = make_url(server.url("postgres"))
    made = []

    def make() -> URL:
        name = f"blank_{uuid.uuid4().hex[:12]}"
        execute(administration, f"CREATE DATABASE {name}")
        made.append(name)
        return make_url(server.url(name))

    yield make
    for name in made:
        execute(administration, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def blank(make_blank: Callable[[], URL]) -> URL:
    return make_blank()


@pytest.fixture
def stranger(server: EmbeddedServer) -> Iterator[str]:
    """A role without any right of its own."""
    administration = make_url(server.url("postgres"))
    name = f"stranger_{uuid.uuid4().hex[:12]}"
    execute(administration, f"CREATE ROLE {name} LOGIN")
    yield name
    for (database_name,) in execute(administration, "SELECT datname FROM pg_database WHERE datallowconn"):
        execute(make_url(server.url(database_name)), f"DROP OWNED BY {name}")
    execute(administration, f"DROP ROLE {name}")


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def refusal(url: URL | str) -> str:
    with pytest.raises(StoreError) as refused:
        open_engine(make_url(url))
    return str(refused.value)


def shown(url: URL) -> str:
    return url.render_as_string(hide_password=True)


def tables(url: URL) -> list[str]:
    return [name for (name,) in execute(url, "SELECT tablename FROM pg_tables WHERE schemaname = 'abo' ORDER BY 1")]


def normalised(given: str) -> str:
    return url_of(Settings.read(database_url=given)).render_as_string(hide_password=False)


# --- A database that is fit ---


def test_a_blank_database_gets_the_extension_and_the_tables(blank):
    store = Store(open_engine(blank))

    server_version, pgvector_version = store.versions()

    assert tables(blank) == TABLES
    assert execute(blank, "SELECT version FROM abo.schema_version") == [(VERSION,)]
    assert execute(blank, "SHOW server_version") == [(server_version,)]
    assert execute(blank, "SELECT extversion FROM pg_extension WHERE extname = 'vector'") == [(pgvector_version,)]
    store.engine.dispose()


def test_coming_again_changes_nothing(blank):
    open_engine(blank).dispose()
    before = execute(blank, "SELECT oid, relname, relfilenode FROM pg_class ORDER BY oid")
    versions = execute(blank, "SELECT ctid, xmin, version FROM abo.schema_version")

    open_engine(blank).dispose()

    assert execute(blank, "SELECT oid, relname, relfilenode FROM pg_class ORDER BY oid") == before
    assert execute(blank, "SELECT ctid, xmin, version FROM abo.schema_version") == versions


def columns(url: URL) -> list[tuple]:
    return execute(
        url,
        "SELECT table_name, column_name, data_type, is_nullable, column_default FROM information_schema.columns "
        "WHERE table_schema = 'abo' AND table_name <> 'schema_version' ORDER BY table_name, column_name",
    )


def constraints(url: URL) -> list[tuple]:
    """Keys and checks; Postgres 18 also counts what is not null among them, under names of its own."""
    return execute(
        url,
        "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint "
        "WHERE connamespace = 'abo'::regnamespace AND contype <> 'n' ORDER BY 1, 2",
    )


def test_a_database_of_the_first_version_is_brought_to_what_a_fresh_one_has(make_blank):
    fresh, old = make_blank(), make_blank()
    open_engine(fresh).dispose()
    open_engine(old).dispose()
    execute(old, "DROP TABLE abo.golden_hits, abo.search_default, abo.backgrounds")
    execute(old, "DROP INDEX abo.product_images_by_product, abo.images_by_digest")
    for column in ("strategy", "rows", "extension", "efforts", "measured", "measured_at"):
        execute(old, f"ALTER TABLE abo.size_indexes DROP COLUMN {column}")
    execute(old, "ALTER TABLE abo.size_indexes ALTER COLUMN index_name SET NOT NULL")
    execute(old, "ALTER TABLE abo.spaces DROP COLUMN changed_at, DROP COLUMN fidelity")
    execute(old, "INSERT INTO abo.spaces (name, model, dimension, fingerprint) VALUES ('old', 'm', 3, 'f')")
    execute(old, "UPDATE abo.schema_version SET version = 1")

    open_engine(old).dispose()

    assert columns(old) == columns(fresh)
    assert constraints(old) == constraints(fresh)
    assert execute(old, "SELECT version FROM abo.schema_version") == [(VERSION,)]
    assert execute(old, "SELECT name, changed_at <= now() FROM abo.spaces") == [("old", True)]


def test_a_database_of_the_third_version_has_searches_use_the_space_that_changed_last(make_blank):
    old, empty = make_blank(), make_blank()
    for url in (old, empty):
        open_engine(url).dispose()
        execute(url, "DROP TABLE abo.search_default")
        execute(url, "ALTER TABLE abo.spaces DROP COLUMN fidelity")
        execute(url, "UPDATE abo.schema_version SET version = 3")
    execute(
        old,
        "INSERT INTO abo.spaces (name, model, dimension, fingerprint, changed_at) "
        "VALUES ('a', 'm', 3, 'f', '2026-01-01'), ('b', 'm', 3, 'f', '2026-01-03'), ('c', 'm', 3, 'f', '2026-01-02')",
    )

    for url in (old, empty):
        open_engine(url).dispose()

    assert execute(old, "SELECT * FROM abo.search_default") == [(True, "b", None)]
    assert execute(empty, "SELECT * FROM abo.search_default") == []


def test_four_that_come_first_at_once_all_find_it_fit(make_blank):
    def come(url: URL, start: threading.Barrier) -> list[str]:
        start.wait()
        engine = open_engine(url)
        with transaction(engine) as connection:
            found = connection.scalars(text("SELECT version FROM abo.schema_version")).all()
        engine.dispose()
        return list(found)

    for _ in range(3):
        url, start = make_blank(), threading.Barrier(4)

        with ThreadPoolExecutor(4) as threads:
            found = [visit.result() for visit in [threads.submit(come, url, start) for _ in range(4)]]

        assert found == [[VERSION]] * 4
        assert tables(url) == TABLES


def test_vectors_come_back_as_vectors_on_every_connection(store):
    with transaction(store.engine) as first, transaction(store.engine) as second:
        read = [connection.scalar(text("SELECT '[1,2]'::vector")).to_list() for connection in (first, second)]

    assert read == [[1.0, 2.0], [1.0, 2.0]]


def test_the_extension_goes_where_every_catalogue_finds_it_even_if_the_first_ones_schema_is_there(blank):
    execute(blank, "CREATE SCHEMA abo")

    for catalogue in ("abo", "other"):
        open_engine(blank, catalogue).dispose()

    found = execute(blank, "SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'vector'")
    assert found == [("public",)]


def test_a_user_who_may_not_create_anything_can_use_what_the_owner_made_ready(blank, stranger):
    open_engine(blank).dispose()
    execute(blank, f"GRANT USAGE ON SCHEMA abo TO {stranger}")
    execute(blank, f"GRANT SELECT ON ALL TABLES IN SCHEMA abo TO {stranger}")

    store = Store(open_engine(blank.set(username=stranger)))

    assert store.find_space("clip") is None
    store.engine.dispose()


def test_a_block_that_raises_leaves_nothing(store):
    def write_and_raise() -> None:
        with transaction(store.engine) as connection:
            connection.execute(text("INSERT INTO spaces VALUES ('clip', 'a model', 512, 'abc')"))
            raise KeyError

    with pytest.raises(KeyError):
        write_and_raise()

    assert store.find_space("clip") is None


# --- The URL ---


@pytest.mark.parametrize(
    "given",
    [
        "postgresql://u:pw@db.example:5433/abo?sslmode=require",
        "postgres://u:pw@db.example:5433/abo?sslmode=require",
        "postgresql+psycopg://u:pw@db.example:5433/abo?sslmode=require",
        "postgresql+psycopg2://u:pw@db.example:5433/abo?sslmode=require",
        "postgresql+asyncpg://u:pw@db.example:5433/abo?sslmode=require",
    ],
)
def test_whatever_the_driver_it_becomes_psycopg_3(given):
    assert normalised(given) == "postgresql+psycopg://u:pw@db.example:5433/abo?sslmode=require"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", NO_URL),
        ("hello", NO_URL),
        ("host=localhost password=s3cret", NO_URL),
        ("postgresql://u:s3cret@localhost:port/abo", NO_URL),
        ("mysql://u:s3cret@h/db", "ABO_DATABASE_URL names a mysql database; only postgresql:// will do."),
        ("sqlite:///abo.db", "ABO_DATABASE_URL names a sqlite database; only postgresql:// will do."),
    ],
)
def test_what_names_no_postgres_is_refused_without_repeating_it(given, message):
    with pytest.raises(StoreError) as refused:
        url_of(Settings.read(database_url=given))

    assert str(refused.value) == message
    assert refused.value.__cause__ is None


def test_without_a_url_the_embedded_server_is_started(tmp_path):
    settings = Settings.read(state_dir=tmp_path / "state")
    server = database.embedded_server(settings)

    store = open_store(settings)

    assert store.engine.url == make_url(server.url())
    assert server.status().running
    store.engine.dispose()
    server.stop()


# --- A server that does not answer ---


def chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        yield from chain(getattr(error, "orig", None))
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize(
    ("credentials", "options", "shown_credentials"),
    [
        ("abo:s3cret", "", "abo:***"),
        ("abo:s3cret%40home", "", "abo:***"),
        ("abo", "?password=s3cret", "abo"),
        ("abo", "?sslpassword=s3cret&application_name=x", "abo"),
    ],
)
def test_a_server_that_does_not_answer_is_named_without_its_password(
    credentials, options, shown_credentials, closed_port
):
    url = make_url(f"postgresql+psycopg://{credentials}@127.0.0.1:{closed_port}/abo{options}")

    with pytest.raises(StoreError) as refused:
        open_engine(url)

    kept = "?application_name=x" if "application_name" in options else ""
    assert str(refused.value) == (
        f"Postgres does not answer at postgresql+psycopg://{shown_credentials}@127.0.0.1:{closed_port}/abo{kept}: "
        f'connection failed: connection to server at "127.0.0.1", port {closed_port} failed: Connection refused. '
        f"{REMEDY}"
    )
    told = [words for error in chain(refused.value) for words in (str(error), repr(error))]
    assert len(told) >= 6
    assert not [words for words in told if "s3cret" in words]


def test_a_server_that_accepts_and_is_silent_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(database, "_CONNECT_TIMEOUT", 1)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"postgresql+psycopg://127.0.0.1:{listener.getsockname()[1]}/abo"

        said = refusal(url)

    assert said == f"Postgres does not answer at {url}: connection timeout expired. {REMEDY}"


def test_a_database_that_does_not_exist_is_told_apart(server):
    url = make_url(server.url("nowhere"))

    said = refusal(url)

    assert said == (
        f"Postgres does not answer at {shown(url)}: connection failed: connection to server on socket "
        f'"{url.query["host"]}/.s.PGSQL.5432" failed: FATAL:  database "nowhere" does not exist. {REMEDY}'
    )


def test_an_option_that_libpq_does_not_know_is_an_error_of_the_url():
    url = "postgresql+psycopg://abo:***@127.0.0.1/abo?pgbouncer=true"

    said = refusal(url)

    assert said == f'Postgres does not answer at {url}: invalid connection option "pgbouncer". {REMEDY}'


def test_a_connection_that_dies_in_the_middle_is_a_server_that_does_not_answer(store):
    with pytest.raises(StoreError) as refused, transaction(store.engine) as connection:
        connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    assert str(refused.value) == (
        f"Postgres does not answer at {shown(store.engine.url)}: "
        f"terminating connection due to administrator command. {REMEDY}"
    )
    assert store.find_space("clip") is None


def test_what_is_wrong_with_a_statement_is_not_blamed_on_the_server(store):
    with pytest.raises(DBAPIError, match='relation "nothing" does not exist'), transaction(store.engine) as connection:
        connection.execute(text("SELECT * FROM nothing"))


# --- A database that is not fit ---


def test_tables_of_a_newer_version_are_left_alone(blank):
    open_engine(blank).dispose()
    execute(blank, "UPDATE abo.schema_version SET version = 7")

    said = refusal(blank)

    assert said == (
        "The database has schema version 7, made by a newer abo_pipeline; this one knows "
        f"{VERSION}. "
        "Upgrade abo_pipeline, or use another database."
    )
    assert execute(blank, "SELECT version FROM abo.schema_version") == [(7,)]


def test_a_server_without_pgvector_is_told_where_to_get_it(blank):
    execute(blank, f"ALTER DATABASE {blank.database} SET extension_control_path = '/nonexistent'")

    said = refusal(blank)

    assert said == (
        f"The server at {shown(blank)} has no pgvector. Install it there (Debian: apt install "
        "postgresql-<version>-pgvector; Docker: the image pgvector/pgvector), or unset ABO_DATABASE_URL to use "
        "the embedded server, which has it."
    )
    assert tables(blank) == []


def test_a_user_who_may_not_create_the_extension_is_told_who_may(blank, stranger):
    url = blank.set(username=stranger)

    said = refusal(url)

    assert said == (
        f"The database at {shown(url)} has no vector extension, and this user may not create it. "
        "Run as a superuser there: CREATE EXTENSION vector;"
    )
    assert tables(blank) == []


def test_a_user_who_may_not_create_tables_is_told_what_is_refused(blank, stranger):
    execute(blank, "CREATE EXTENSION vector")
    url = blank.set(username=stranger)

    said = refusal(url)

    assert said == (
        f"The database at {shown(url)} does not let this user do that: permission denied for database "
        f"{url.database}. "
        "Have its owner grant it, or name another user in ABO_DATABASE_URL."
    )


@pytest.mark.parametrize("version", ["0.7.4", "0.5.0"])
def test_a_pgvector_that_is_too_old_is_named_with_the_version_needed(blank, version):
    execute(blank, "CREATE EXTENSION vector")
    execute(blank, "UPDATE pg_extension SET extversion = %s WHERE extname = 'vector'", version)

    said = refusal(blank)

    assert said == (
        f"The database at {shown(blank)} has pgvector {version}; 0.8 is needed. "
        "Install a newer one there, then run: ALTER EXTENSION vector UPDATE;"
    )
    assert tables(blank) == []


@pytest.mark.parametrize("version", ["0.8.0", "0.10.1", "1.0"])
def test_a_pgvector_that_is_new_enough_will_do(blank, version):
    execute(blank, "CREATE EXTENSION vector")
    execute(blank, "UPDATE pg_extension SET extversion = %s WHERE extname = 'vector'", version)

    store = Store(open_engine(blank))

    assert store.versions()[1] == version
    store.engine.dispose()


# --- Catalogues ---


def test_two_catalogues_in_one_database_know_nothing_of_each_other(blank):
    ours, theirs = Store(open_engine(blank)), Store(open_engine(blank, "other"))
    kept = pl.DataFrame([("a", "aa/a.jpg", 1000, 1000, 7, 0, 1, "d")], schema=catalog.SCHEMA, orient="row")

    ours.write_images(kept)

    assert ours.accounts("clip", [0])[0].kept == 1
    assert theirs.accounts("clip", [0])[0].kept == 0
    for store in (ours, theirs):
        store.engine.dispose()


def test_tables_of_the_same_names_that_are_somebody_elses_are_left_alone(blank):
    execute(blank, "CREATE TABLE images (theirs int)")
    execute(blank, "CREATE TABLE schema_version (version int)")
    execute(blank, "INSERT INTO schema_version VALUES (99)")

    open_engine(blank).dispose()

    assert tables(blank) == TABLES
    assert execute(blank, "SELECT version FROM public.schema_version") == [(99,)]
