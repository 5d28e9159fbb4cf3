"""What the tests of faults share: the command line as a process that can be killed, a server that can, a small disk.

How one part behaves when something is wrong is tested beside that part. Here a whole run meets the fault, and
afterwards the account must be right: ``Ledger.check`` compares every row with the archive.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
import psutil
import psycopg
import pytest
from numpy.typing import NDArray
from sqlalchemy import Engine, make_url

from abo_pipeline import cli
from abo_pipeline.archive import Archive
from abo_pipeline.catalog import read_catalogue
from abo_pipeline.decoding import decode
from abo_pipeline.encoder import ClipEncoder
from abo_pipeline.errors import ImageError
from abo_pipeline.settings import Settings
from abo_pipeline.store import opened_store
from abo_pipeline.store.embedded import EmbeddedServer
from abo_pipeline.store.server_programs import PIXELTABLE
from abo_pipeline_tests.holding import held_vector

ABO = Path(sys.executable).with_name("abo")
PROGRESS = re.compile("(fetching|indexing|embedding|building) ")
PASSWORD = "s3cret"  # noqa: S105 - of a server that lives as long as a test


def wait_for(what: str, condition: Callable[[], object], seconds: float = 90.0) -> None:
    """Wait until a condition holds.

    Raises:
        AssertionError: it does not in that time; says what was waited for.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain for {what}"
        time.sleep(0.01)


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The error of a command that ended as commands do when something is wrong: one line, exit code 2."""
        # On a slow machine a run says now and then how far it is.
        lines = [line for line in self.err.splitlines() if not PROGRESS.match(line)]
        assert (self.code, [line[:7] for line in lines]) == (2, ["error: "]), self
        assert "this is a bug" not in self.err
        return lines[0].removeprefix("error: ")

    @property
    def embeddings(self) -> str:
        """What a run that succeeded says of its embeddings."""
        assert self.code == 0, self
        return next(line for line in self.out.splitlines() if line.startswith("embeddings")).split(maxsplit=1)[1]


@dataclass
class Abo:
    """The command line: called in this process, which is quicker; started as one of its own, which can be killed."""

    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]
    started: list[subprocess.Popen] = field(default_factory=list)

    def __call__(self, *words: object) -> Ended:
        self.monkeypatch.setattr(sys, "argv", ["abo", *map(str, words)])
        with pytest.raises(SystemExit) as exited:
            cli.main()
        return Ended(int(exited.value.code or 0), *self.capsys.readouterr())

    def start(self, *words: object, **variables: object) -> subprocess.Popen:
        return self.start_as([str(ABO)], *words, **variables)

    def start_as(self, program: list[str], *words: object, **variables: object) -> subprocess.Popen:
        process = subprocess.Popen(
            [*program, *map(str, words)],
            env=os.environ | {name: str(value) for name, value in variables.items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def ended(self, process: subprocess.Popen) -> Ended:
        out, err = process.communicate(timeout=120)
        return Ended(process.returncode, out, err)

    def kill(self, process: subprocess.Popen) -> None:
        """End it at once; it must not have ended by itself before."""
        assert process.poll() is None, self.ended(process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Several processes share few cores here, and threads of a pool that wait for one another waste them."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def abo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Abo]:
    """The command line with the small model, one query in the report, and an index for each size."""
    variables = {"MODEL": "small-clip", "DEVICE": "cpu", "QUERIES": "a red chair", "REPORT_K": "2", "EXACT_BELOW": "0"}
    for name, value in variables.items():
        monkeypatch.setenv(f"ABO_{name}", value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    abo = Abo(monkeypatch, capsys)
    yield abo
    for process in abo.started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)


@pytest.fixture
def archive(sample, tmp_path) -> Path:
    """The drawn archive, as a copy of the test's own."""
    return Path(shutil.copyfile(sample.archive, tmp_path / "images.tar"))


@pytest.fixture
def words(archive) -> list[object]:
    """The words of a run over it."""
    return ["run", "--archive", archive, "--listings", "none", "--sizes", "20,60", "--partitions", "2"]


SMALL_BATCHES = ("--batch-size", "2")
"""For a run that has committed some when it comes to the image at which it is held."""


Row = tuple[str, str]


@dataclass
class Ledger:
    """The rows of a database, and whether they are what an archive says."""

    url: str
    encoder: ClipEncoder
    known: dict[str, NDArray[np.float32]]
    """Vectors by digest, made outside of the pipeline."""

    def connect(self) -> psycopg.Connection:
        url = make_url(self.url).set(drivername="postgresql").render_as_string(hide_password=False)
        return psycopg.connect(url, autocommit=True, connect_timeout=5)

    def query(self, statement: str) -> list[tuple]:
        with self.connect() as connection:
            return connection.execute(statement).fetchall()

    def vectors(self) -> dict[str, Row]:
        """The digest and the version of each stored vector; none where there is no table or no server yet."""
        try:
            if self.query("SELECT to_regclass('abo.embeddings_small_clip')") == [(None,)]:
                return {}
            rows = self.query("SELECT image_id, digest, xmin::text FROM abo.embeddings_small_clip")
        except psycopg.OperationalError:
            return {}
        return {image_id: (digest, version) for image_id, digest, version in rows}

    @contextmanager
    def held(self, archive: Path) -> Iterator[Engine]:
        """For the block, hold every run over an archive in its middle: at the last image of a partition.

        Returns:
            An engine of its own, to ask by how many sessions wait there.
        """
        with Archive.open(archive) as opened:
            self._encode(opened)
            kept = read_catalogue(opened, min_side=1000).kept
        last = kept.filter(pl.col("digest").is_in(list(self.known))).sort("offset")["image_id"][-1]
        with opened_store(Settings.read()) as store:
            store.open_space("small_clip", self.encoder)
            with held_vector(store.engine, "abo.embeddings_small_clip", last):
                yield store.engine

    def indexes(self) -> list[tuple[int, bool]]:
        """Each size's index and whether it is valid; an index that serves none, valid or not, as size 0."""
        return self.query(
            "SELECT coalesce(s.size, 0), i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
            "LEFT JOIN abo.size_indexes s ON s.index_name = c.relname "
            "WHERE c.relname LIKE 'hnsw\\_%' AND c.relkind = 'i' ORDER BY 1"
        )

    def check(self, archive: Path, *, sizes: tuple[int, ...] = (20, 60)) -> None:
        """Every kept image of the archive is there once, by its own bytes, and nothing else is."""
        wrong = self.wrong_vectors(archive)
        with Archive.open(archive) as opened:
            kept = read_catalogue(opened, min_side=1000).kept
        expected = dict(kept.select("image_id", "digest").iter_rows())
        vectors = {image_id: digest for image_id, (digest, _) in self.vectors().items()}
        failures = dict(self.query("SELECT image_id, digest FROM abo.failures"))
        assert dict(self.query("SELECT image_id, digest FROM abo.images")) == expected
        assert not vectors.keys() & failures.keys()
        assert vectors | failures == expected
        assert len(failures) == 2
        assert wrong == []
        assert self.indexes() == [(size, True) for size in sizes]

    def wrong_vectors(self, *archives: Path) -> list[str]:
        """Images whose stored vector is that of no file with their digest in the archives."""
        digests = set()
        for path in archives:
            with Archive.open(path) as archive:
                self._encode(archive)
                digests.update(archive.index["digest"])
        stored = self.query("SELECT image_id, digest, embedding::real[] FROM abo.embeddings_small_clip")
        return [
            image_id
            for image_id, digest, vector in stored
            if digest not in digests or float(np.dot(self.known[digest], vector)) < 0.999
        ]

    def _encode(self, archive: Archive) -> None:
        pictures = {}
        for member, digest in archive.index.select("member", "digest").iter_rows():
            if digest not in self.known:
                with suppress(ImageError):
                    pictures[digest] = decode(archive.read(member), max_pixels=10**7)
        if pictures:
            self.known.update(zip(pictures, self.encoder.encode_images(list(pictures.values())), strict=True))


@pytest.fixture(scope="session")
def ledger_of(encoder) -> Callable[[str], Ledger]:
    """The rows of the database at a URL."""
    known: dict[str, NDArray[np.float32]] = {}
    return lambda url: Ledger(url, encoder, known)


@pytest.fixture
def ledger(database_url, ledger_of, monkeypatch) -> Ledger:
    """The rows of a fresh database, which is the one that commands use."""
    monkeypatch.setenv("ABO_DATABASE_URL", database_url)
    return ledger_of(database_url)


ENCODING = ("--encoding=UTF8", "--locale=C", "--no-sync")


class TcpServer:
    """A Postgres that asks for a password over TCP, as one on another machine would; made of the embedded one's
    programs."""

    def __init__(self, folder: Path) -> None:
        self._cluster = folder / "cluster"
        self._log = folder / "server.log"
        embedded = EmbeddedServer(folder)
        embedded._make_data_dir()
        self._programs = PIXELTABLE.programs().folder
        self._account = embedded._account(self._programs)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        password = folder / "password"
        password.write_text(PASSWORD + "\n")
        self._cluster.mkdir()
        if os.geteuid() == 0:
            for path in (self._cluster, password):
                os.chown(path, self._account.uid, -1)
        self._do("initdb", "--auth=scram-sha-256", f"--pwfile={password}", "--username=abo", *ENCODING)

    def url(self, database: str) -> str:
        return f"postgresql://abo:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def shown(self, database: str) -> str:
        """The address as messages name it."""
        return f"postgresql+psycopg://abo:***@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        options = f"-c listen_addresses=127.0.0.1 -c port={self.port} -c unix_socket_directories="
        self._do("pg_ctl", "start", "--wait", "--options", options)

    def end(self, number: signal.Signals) -> None:
        """End the main process with a signal, and wait until the last session has gone."""
        end_postmaster(self._cluster, number)
        # In a container without an init the dead stay listed, and to Postgres look alive.
        (self._cluster / "postmaster.pid").unlink(missing_ok=True)

    def stop(self) -> None:
        if (self._cluster / "postmaster.pid").exists():
            self._do("pg_ctl", "stop", "--wait", "--mode=immediate")

    def _do(self, program: str, *words: str) -> None:
        failed = self._account.run([str(self._programs / program), *words], self._cluster, self._log)
        assert not failed, self._log.read_text()[-2000:]


def end_postmaster(cluster: Path, number: signal.Signals) -> None:
    """End a server's main process with a signal, and wait until it and all its sessions have gone."""
    postmaster = psutil.Process(int((cluster / "postmaster.pid").read_text().split()[0]))
    processes = [postmaster, *postmaster.children(recursive=True)]
    postmaster.send_signal(number)

    def all_gone() -> bool:
        return all(not p.is_running() or p.status() == psutil.STATUS_ZOMBIE for p in processes)

    wait_for("the server's processes to end", lambda: _quietly(all_gone), 30)


def _quietly(condition: Callable[[], bool]) -> bool:
    try:
        return condition()
    except psutil.NoSuchProcess:
        return False  # it went between two questions: ask again


@pytest.fixture(scope="module")
def tcp_server(tmp_path_factory) -> Iterator[TcpServer]:
    """One for all tests of a module."""
    server = TcpServer(tmp_path_factory.mktemp("tcp") / "postgres")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def tcp_database(tcp_server: TcpServer) -> str:
    """The name of a fresh database on it."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(tcp_server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return name


class SmallDisk:
    """A file system of a set size at a folder, whose size and rights can be changed."""

    def __init__(self, folder: Path, size: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        _mount("-t", "tmpfs", "-o", f"size={size}", "none", folder)

    def remount(self, options: str) -> None:
        _mount("-o", f"remount,{options}", self.folder)

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", self.folder], check=True)


def _mount(*words: object) -> None:
    subprocess.run(["mount", *map(str, words)], check=True, capture_output=True, text=True)


@pytest.fixture
def small_disk() -> Iterator[Callable[[Path, str], SmallDisk]]:
    """Mounts file systems; skips the test where that is not permitted."""
    disks: list[SmallDisk] = []

    def make(folder: Path, size: str) -> SmallDisk:
        try:
            disks.append(SmallDisk(folder, size))
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no file system can be mounted here: {getattr(error, 'stderr', None) or error}")
        return disks[-1]

    yield make
    for disk in reversed(disks):
        disk.unmount()
