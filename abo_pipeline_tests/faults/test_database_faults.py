"""The database dies, is away, or comes back: a sentence, no lost row, and the next run does the rest."""

import re
import signal
import threading
from contextlib import closing

import psycopg
import pytest

from abo_pipeline.errors import StoreError
from abo_pipeline.search import ImageSearch
from abo_pipeline.settings import Settings
from abo_pipeline.store import open_store
from abo_pipeline.store.database import embedded_server
from abo_pipeline_tests.faults.conftest import PASSWORD, SMALL_BATCHES, Abo, Ended, Ledger, end_postmaster, wait_for
from abo_pipeline_tests.holding import waiting_sessions

pytestmark = pytest.mark.slow

REMEDY = "Check that it runs (`abo doctor`) and that ABO_DATABASE_URL is right; unset it to use the embedded server."


def check_the_rest(ended: Ended, ledger: Ledger, before: dict, archive) -> None:
    """What was committed is as it was, the rest was done, and all of it is right."""
    after = ledger.vectors()
    assert before
    assert {image_id: after.get(image_id) for image_id in before} == before
    embedded, skipped = map(int, re.match(r"embedded (\d+), (\d+) were there already", ended.embeddings).groups())
    assert (skipped, embedded + skipped) == (len(before), len(after))
    assert skipped < len(after)
    ledger.check(archive)


def test_the_embedded_server_killed_in_the_middle_of_a_run(abo: Abo, words, archive, ledger_of):
    server = embedded_server(Settings.read())
    ledger = ledger_of(server.url())
    try:
        with ledger.held(archive) as engine:
            run = abo.start(*words, *SMALL_BATCHES)
            wait_for("the last batch", lambda: waiting_sessions(engine) or run.poll() is not None)
            before = ledger.vectors()
            end_postmaster(server.data_dir / "cluster", signal.SIGKILL)

        assert abo.ended(run).sentence.startswith("Postgres does not answer at postgresql+psycopg://abo@/abo?host=")
        assert not server.status().running
        check_the_rest(abo(*words), ledger_of(server.url()), before, archive)
    finally:
        server.stop()


def test_a_server_on_tcp_killed_in_the_middle_of_a_run(
    abo: Abo, words, archive, ledger_of, tcp_server, tcp_database, monkeypatch
):
    monkeypatch.setenv("ABO_DATABASE_URL", tcp_server.url(tcp_database))
    ledger = ledger_of(tcp_server.url(tcp_database))
    with ledger.held(archive) as engine:
        run = abo.start(*words, *SMALL_BATCHES)
        wait_for("the last batch", lambda: waiting_sessions(engine) or run.poll() is not None)
        before = ledger.vectors()
        tcp_server.end(signal.SIGKILL)

    ended = abo.ended(run)
    still_away = abo(*words)
    tcp_server.start()

    for sentence in (ended.sentence, still_away.sentence):
        assert sentence.startswith(f"Postgres does not answer at {tcp_server.shown(tcp_database)}: ")
        assert sentence.endswith(REMEDY)
    assert PASSWORD not in ended.out + ended.err + still_away.out + still_away.err
    check_the_rest(abo(*words), ledger, before, archive)


@pytest.fixture
def held_build(abo: Abo, words, ledger_of, tcp_server, tcp_database, monkeypatch):
    """A run that is at work on an index: another session's open transaction lets the build go no further."""
    monkeypatch.setenv("ABO_DATABASE_URL", tcp_server.url(tcp_database))
    ledger = ledger_of(tcp_server.url(tcp_database))
    assert abo(*words, "--sizes", "10").code == 0
    # Its end is no commit: by then the server may have died.
    with closing(psycopg.connect(tcp_server.url(tcp_database))) as holder:
        holder.execute("LOCK TABLE abo.embeddings_small_clip IN ROW EXCLUSIVE MODE")
        run = abo.start(*words)
        wait_for("an unfinished index", lambda: (0, False) in ledger.indexes() or run.poll() is not None)
        assert (10, True) in ledger.indexes()
        yield run, ledger, holder


def test_a_server_stopped_at_once_while_an_index_is_built(held_build, abo: Abo, words, archive, tcp_server):
    run, ledger, _ = held_build
    before = ledger.vectors()

    tcp_server.end(signal.SIGQUIT)
    ended = abo.ended(run)
    tcp_server.start()

    assert "Postgres does not answer at " in ended.sentence
    assert PASSWORD not in ended.out + ended.err
    assert (10, True) in ledger.indexes()
    assert abo(*words).embeddings.startswith(f"nothing to embed, {len(before)} were there already")
    assert ledger.vectors() == before
    ledger.check(archive)


def test_a_run_killed_while_an_index_is_built(held_build, abo: Abo, words, archive):
    """The server goes on with what the killed run asked for, and the next run waits for its lock."""
    run, ledger, holder = held_build
    before = ledger.vectors()

    abo.kill(run)
    later = threading.Timer(1.0, holder.rollback)
    later.start()
    ended = abo(*words)
    later.join()

    assert ended.embeddings.startswith(f"nothing to embed, {len(before)} were there already")
    assert ledger.vectors() == before
    ledger.check(archive)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"port": 9}, "Connection refused."),
        ({"password": "wr0ng"}, 'FATAL:  password authentication failed for user "abo".'),
        ({"database": "nowhere"}, 'FATAL:  database "nowhere" does not exist.'),
    ],
)
def test_a_database_that_is_away_at_the_start_costs_nothing(
    abo: Abo, words, archive, ledger_of, tcp_server, tcp_database, monkeypatch, tmp_path, wrong, reason
):
    at = {"password": PASSWORD, "port": tcp_server.port, "database": tcp_database} | wrong
    monkeypatch.setenv("ABO_DATABASE_URL", "postgresql://abo:{password}@127.0.0.1:{port}/{database}".format(**at))

    ended = abo(*words)

    shown = "postgresql+psycopg://abo:***@127.0.0.1:{port}/{database}".format(**at)
    assert ended.sentence.startswith(f"Postgres does not answer at {shown}: connection failed: ")
    assert ended.sentence.endswith(f"{reason} {REMEDY}")
    assert at["password"] not in ended.out + ended.err
    assert not (tmp_path / "state" / "settings.json").exists()

    monkeypatch.setenv("ABO_DATABASE_URL", tcp_server.url(tcp_database))
    assert abo(*words).embeddings.startswith("embedded 141, 0 were there already, failed 2")
    ledger_of(tcp_server.url(tcp_database)).check(archive)


def test_a_search_in_a_process_that_goes_on_works_again_when_the_database_is_back(
    abo: Abo, words, tcp_server, tcp_database, monkeypatch, encoder
):
    monkeypatch.setenv("ABO_DATABASE_URL", tcp_server.url(tcp_database))
    assert abo(*words).code == 0
    settings = Settings.last()
    store = open_store(settings)
    search = ImageSearch(store, encoder, settings)
    before = search("a red chair", k=5)

    tcp_server.end(signal.SIGKILL)
    with pytest.raises(StoreError) as refused:
        search("a red chair", k=5)
    tcp_server.start()
    after = search("a red chair", k=5)

    assert str(refused.value).startswith(f"Postgres does not answer at {tcp_server.shown(tcp_database)}: ")
    assert len(before) == 5
    assert after == before
    store.engine.dispose()


def test_texts_of_a_database_in_no_encoding_are_texts(abo: Abo, words, archive, ledger_of, tcp_server, monkeypatch):
    """``SQL_ASCII`` is what initdb chooses where no locale is set."""
    with psycopg.connect(tcp_server.url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE plain ENCODING 'SQL_ASCII' TEMPLATE template0")
    monkeypatch.setenv("ABO_DATABASE_URL", tcp_server.url("plain"))

    assert abo(*words).code == 0

    ledger_of(tcp_server.url("plain") + "?client_encoding=utf8").check(archive)
