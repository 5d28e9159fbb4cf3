"""The services of a compose file as processes of this machine: their own commands, variables and health checks.

In place of an engine: a folder that holds what the containers' folders would hold, ports of the loopback interface in
place of the services' names, and the initdb of the Postgres image in a few lines. What is mapped is mapped by text, so
a command that names a wrong port, folder or host does not find what it needs, as in a container. What only an engine
can tell stays untested: images, users, capabilities, memory.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from abo_pipeline.settings import PROJECT_ROOT
from abo_pipeline.store.server_account import borrowed_account, give, lend_capability
from abo_pipeline.store.server_programs import PIXELTABLE
from abo_pipeline_tests.deploy import compose, dockerfile
from abo_pipeline_tests.e2e.harness import Process, free_port, script, wait_until

POSTGRES = "postgres"
_PGDATA = "/home/postgres/pgdata/data"
_INITDB = "/docker-entrypoint-initdb.d/"
_START_S = 120


class Composition:
    """Services that can be brought up and down one by one.

    Attributes:
        root: stands for the root of every container's file system.
        ports: those of this machine, by those of the containers.
    """

    def __init__(
        self, root: Path, file: Mapping[str, Any], dotenv: Mapping[str, str], folders: Mapping[str, Path]
    ) -> None:
        """Nothing is started.

        Args:
            root: an empty folder.
            file: the compose file, with its variables filled in.
            dotenv: the variables of the file .env.
            folders: folders of this machine that are mounted, by their paths in the containers.
        """
        self.root = root
        self._file = file
        self._dotenv = dict(dotenv)
        self._sockets = tempfile.TemporaryDirectory(prefix="abo-")  # a socket's path must be short
        self._running: dict[str, Process] = {}
        self.ports = {port: free_port() for port in (3000, 4000, 5432, 6379, 8080)}
        self._folders = {
            path: root / path.lstrip("/") for path in ("/data", "/opt/dagster", "/docker-entrypoint-initdb.d", _PGDATA)
        } | dict(folders)
        self._build_image()

    def up(self, *names: str) -> None:
        """Bring services up, those that they depend on first, each once it is as its dependents want it.

        Raises:
            RuntimeError: a service that should have done something and ended did not end well.
            TimeoutError: a service did not become healthy.
        """
        for name in names:
            service = self._file["services"][name]
            for needed, how in (service.get("depends_on") or {}).items():
                self.up(needed)
                if how["condition"] == "service_completed_successfully":
                    self._wait_for_end(needed)
                else:
                    self.wait_until_healthy(needed)
            if name not in self._running:
                self._running[name] = self._start(name, service)

    def kill(self, name: str) -> None:
        """End a container as the system does when memory runs out or power is cut: all its processes at once."""
        process = self._running.pop(name)
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill_group()

    def down(self) -> None:
        """Stop everything, the last started first."""
        for name in reversed(list(self._running)):
            process = self._running.pop(name)
            left = psutil.Process(process.pid).children(recursive=True) if process.running else []
            process.stop()
            for child in left:
                if child.is_running():
                    child.kill()
        self._sockets.cleanup()

    def is_healthy(self, name: str) -> bool:
        """Whether a service's own health check passes."""
        service = self._file["services"][name]
        return self.run(name, compose.health_command(service)).returncode == 0

    def wait_until_healthy(self, name: str) -> None:
        """Ask a service's health check until it passes.

        Raises:
            TimeoutError: it does not.
        """
        process = self._running[name]
        wait_until(lambda: self.is_healthy(name), f"the health of {name}", _START_S, details=process.tail)

    def run(self, name: str, command: Sequence[str], given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run a command as in a container of that service, to its end: ``docker compose exec``."""
        return subprocess.run(
            self._mapped_command(name, command),
            env=self._environment(name),
            cwd=self._working_directory(),
            input=given,
            capture_output=True,
            timeout=300,
            check=False,
        )

    def tail(self, name: str) -> str:
        """The end of a service's log."""
        return self._running[name].tail()

    def _start(self, name: str, service: Mapping[str, Any]) -> Process:
        # An override may have put another file into the image's place.
        for entry in service.get("configs", ()):
            source = PROJECT_ROOT / self._file["configs"][entry["source"]]["file"]
            self._copy(source, self._place(entry["target"]))
        command = self._mapped_command(name, service["command"])
        if name == POSTGRES:
            self._make_cluster()
            command += self._server_options()
        return Process(
            command, environment=self._environment(name), log=self.root / "log" / f"{name}.log", cwd=self.root / "cwd"
        )

    def _wait_for_end(self, name: str) -> None:
        process = self._running[name]
        wait_until(lambda: not process.running, f"the end of {name}", _START_S, details=process.tail)
        if process.exit_code:
            raise RuntimeError(process.tail())

    def _environment(self, name: str) -> dict[str, str]:
        """The image's variables, those of .env, and the service's, in ascending order of precedence."""
        service = self._file["services"][name]
        variables = {} if name == POSTGRES else dockerfile.variables()
        if service.get("env_file"):
            variables |= self._dotenv
        variables |= compose.environment(service)
        return {
            **{name: self._mapped(value) for name, value in variables.items()},
            # The rest is of this machine.
            "PATH": os.pathsep.join(
                [str(Path(script("dagster")).parent), str(PIXELTABLE.programs().folder), os.defpath]
            ),
            "HOME": str(self.root / "home"),
            "PGPORT": str(self.ports[5432]),
            "PGDATA": str(self._folders[_PGDATA]),
            "HF_HUB_OFFLINE": "1",
            # Where a client of libpq finds the server's socket, for those in its own container.
            **({"PGHOST": self._sockets.name} if name == POSTGRES else {}),
        }

    def _mapped_command(self, name: str, command: Sequence[str]) -> list[str]:
        words = [self._mapped(word) for word in command]
        return [*self._postgres_account(), *words] if (name, words[0]) == (POSTGRES, POSTGRES) else words

    def _mapped(self, text: str) -> str:
        """A command's word, a variable's value or a file's text, with this machine's folders, hosts and ports."""
        for path, folder in self._folders.items():
            text = re.sub(rf"(?<![\w.]){re.escape(path)}(?![\w.-])", str(folder), text)
        for port, mine in self.ports.items():
            text = re.sub(rf"(?<![\w./]){port}(?!\w)", str(mine), text)
        services = "|".join(self._file["services"])
        text = re.sub(rf"(?<=[@/])(?:{services})(?=:\d)", "127.0.0.1", text)
        text = re.sub(rf"(?<=host: )(?:{services})$", "127.0.0.1", text, flags=re.MULTILINE)
        return text.replace("0.0.0.0", "127.0.0.1")  # noqa: S104 - what is not bound

    def _build_image(self) -> None:
        """The folders and files that the image has."""
        for folder in ("cwd", "home", "log", *(path.lstrip("/") for path in dockerfile.folders())):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        for source, target in dockerfile.copied():
            self._copy(PROJECT_ROOT / source, self._place(target) / Path(source).name)

    def _copy(self, source: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(self._mapped(source.read_text(encoding="utf-8")), encoding="utf-8")

    def _place(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def _working_directory(self) -> Path:
        return self._place(next(each.words[0] for each in dockerfile.final_stage() if each.name == "WORKDIR"))

    def _postgres_account(self) -> tuple[str, ...]:
        """Postgres refuses to run as root, which some who run these tests are."""
        if os.geteuid() != 0:
            return ()
        account = borrowed_account()
        assert shutil.which("setpriv"), "as root, these tests need setpriv (util-linux)"
        return lend_capability(account.pw_uid, account.pw_gid)

    def _server_options(self) -> list[str]:
        return [
            *("-c", "listen_addresses=127.0.0.1"),
            *("-c", f"port={self.ports[5432]}"),
            *("-c", f"unix_socket_directories={self._sockets.name}"),
        ]

    def _make_cluster(self) -> None:
        """What the image's entry point does with an empty data folder."""
        cluster = self._folders[_PGDATA]
        if (cluster / "PG_VERSION").exists():
            return
        environment = self._environment(POSTGRES)
        account = self._postgres_account()
        cluster.mkdir(parents=True, mode=0o700)
        if account:
            for folder in (cluster, Path(self._sockets.name)):
                give(folder, borrowed_account().pw_uid)
        password = environment["POSTGRES_PASSWORD"]
        secret = self.root / "password"
        secret.write_text(password + "\n", encoding="utf-8")
        arguments = ["--username=postgres", f"--pwfile={secret}", *environment["POSTGRES_INITDB_ARGS"].split()]
        self._must([*account, "initdb", *arguments], environment)
        secret.unlink()
        with (cluster / "pg_hba.conf").open("a") as rules:
            rules.write("\nhost all all all scram-sha-256\n")
        options = " ".join([*self._server_options(), "-c", "listen_addresses=''"])
        log = self.root / "log" / "initdb.log"
        log.touch(mode=0o666)
        log.chmod(0o666)
        self._must([*account, "pg_ctl", "start", "--wait", f"--log={log}", f"--options={options}"], environment)
        try:
            for script_file in sorted(self._folders[_INITDB.rstrip("/")].iterdir()):
                psql = ["psql", "-v", "ON_ERROR_STOP=1", "--username=postgres", "--no-password", "--no-psqlrc"]
                address = [f"--host={self._sockets.name}", "--dbname=postgres", f"--file={script_file}"]
                self._must([*psql, *address], environment)
        finally:
            self._must([*account, "pg_ctl", "stop", "--wait", "--mode=fast"], environment)

    def _must(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        # pg_ctl's server would hold a pipe open.
        log = self.root / "log" / "initdb.out"
        with log.open("ab") as output:
            done = subprocess.run(
                list(command), env=dict(environment), cwd="/", stdout=output, stderr=output, timeout=120, check=False
            )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)[:300]}\n{log.read_text()[-3000:]}")
