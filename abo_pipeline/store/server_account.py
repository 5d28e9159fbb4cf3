"""Whom the embedded server runs as, and how its programs become theirs.

Postgres refuses to run as root. Users, capabilities and who owns which file are settled here; what is run, and when, is
for ``embedded``.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from abo_pipeline.errors import StoreError

_BORROWED_ACCOUNTS = ("postgres", "nobody")


@dataclass(frozen=True, slots=True)
class Account:
    """Whom the server's programs run as, and how a command becomes theirs."""

    uid: int
    prefix: tuple[str, ...] = ()
    switch: Mapping[str, Any] = field(default_factory=dict)

    def run(self, command: list[str], cluster: Path, log: Path, inherit: int | None = None) -> int:
        """Run a program to its end, its words going to `log`; return its exit code."""
        # The cluster goes by environment: initdb and pg_ctl hand arguments to a shell, which would read a $
        # in them. The rest of our environment is not for a server that outlives us.
        environment = {"PATH": os.defpath, "LC_ALL": "C", "PGDATA": str(cluster)}
        if "LD_LIBRARY_PATH" in os.environ:
            environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
        with log.open("ab") as output:
            try:
                return subprocess.run(  # noqa: S603 - our own command, without a shell
                    [*self.prefix, *command],
                    check=False,
                    cwd="/",
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=() if inherit is None else (inherit,),
                    start_new_session=True,
                    **self.switch,
                ).returncode
            except PermissionError as error:
                raise StoreError(
                    f"The embedded Postgres could not run {command[0]} as user number {self.uid}:"
                    f" {error.strerror}. Do not run as root, or name a server through ABO_DATABASE_URL."
                ) from error


def borrowed_account() -> Any:
    """The entry in /etc/passwd of an unprivileged user that root can run the server as.

    Raises:
        StoreError: there is none.
    """
    import pwd

    for name in _BORROWED_ACCOUNTS:
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise StoreError(
        "Postgres refuses to run as root, and there is no user 'postgres' or 'nobody' to run it as."
        " Do not run as root, or name a server through ABO_DATABASE_URL."
    )


def named_user(uid: int) -> Any:
    """The entry in /etc/passwd of a user, without which initdb does not work.

    Raises:
        StoreError: there is none.
    """
    import pwd

    try:
        return pwd.getpwuid(uid)
    except KeyError as error:
        raise StoreError(
            f"The embedded Postgres has to run as the user with the number {uid}, and Postgres wants users to"
            " have a name. Add that user to /etc/passwd, or name a server through ABO_DATABASE_URL."
        ) from error


def lend_capability(uid: int, gid: int) -> tuple[str, ...]:
    """What makes a command run as that user and pass every folder, put before it; nothing without setpriv."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        return ()
    identity = (f"--reuid={uid}", f"--regid={gid}", "--clear-groups")
    # Postgres asks access(2) about its own programs, and without this bit that ignores the capability.
    capability = ("--securebits=+no_setuid_fixup", "--inh-caps=+dac_override", "--ambient-caps=+dac_override")
    return (setpriv, *identity, *capability)


def give(path: Path, uid: int) -> None:
    """Make a file or folder that user's, if we are root."""
    if os.geteuid() == 0 and path.lstat().st_uid != uid:
        os.chown(path, uid, -1, follow_symlinks=False)


def give_tree(cluster: Path, uid: int) -> None:
    """Make a cluster its account's again after a copy by root, or where the account's number has changed."""
    if os.geteuid() == 0 and cluster.stat().st_uid != uid:
        for folder, _, names in os.walk(cluster):
            for path in (Path(folder), *(Path(folder, name) for name in names)):
                give(path, uid)
    cluster.chmod(0o700)
