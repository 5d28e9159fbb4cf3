"""Brings an archive to this disk: a file is used in place, a URL is downloaded once, and resumed when cut.

Here belong what lies beside an archive and how its bytes get here; how they are asked for is in ``remote``. What an
archive holds stays out: see ``archive``. User names, passwords and query strings of a URL are used to ask for it and
appear nowhere else.
"""

import hashlib
import io
import json
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from urllib.request import url2pathname

import polars as pl
from filelock import FileLock

from abo_pipeline.errors import ArchiveError, StorageError
from abo_pipeline.remote import Delivery, Remote, TransientError, Version, remote_of
from abo_pipeline.storage import HTTP, is_local, is_reached_by_fsspec, public_url, scheme_of, split_url

Progress = Callable[[int, int | None], None]
"""Called with the bytes done and, where known, the bytes in all."""


def in_megabytes(done: int, total: int | None) -> str:
    """How far something is, in words: ``12 of 43 MB``."""
    return f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB" if total else f"{done / 1e6:,.0f} MB"


CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class FetchedArchive:
    """An archive on this disk, and what is known of it.

    Attributes:
        path: where it lies.
        bytes: its size.
        sha256: of the whole file, in hex.
        source: the URL without user, password and query, or the path.
        fetched: whether this call downloaded something.
    """

    path: Path
    bytes: int
    sha256: str
    source: str
    fetched: bool


def fetch(
    source: str,
    folder: Path,
    *,
    refresh: bool = False,
    sha256: str | None = None,
    progress: Progress | None = None,
    attempts: int = 5,
    backoff_seconds: float = 1.0,
    timeout_seconds: float = 30.0,
) -> FetchedArchive:
    """Make sure that the archive lies on this disk, and know its checksum.

    What was downloaded once is used from then on, whatever has become of the original since; ``refresh`` and
    ``sha256`` are the ways to the newer one. It is downloaded beside the older one and takes its place in one step, so
    whoever reads that goes on reading what they opened.

    Args:
        source: a URL (http, https, file, or one that fsspec knows such as s3), or a path. A file is used in place,
            never copied.
        folder: where a URL is downloaded to, and where notes about a read-only file go.
        refresh: of a URL, take what is there now, unless that is what was downloaded.
        sha256: of a URL, the version that is wanted: a copy of another one is refreshed.
        progress: told of every 64 KiB that arrive.
        attempts: how many requests in a row may bring nothing new before giving up.
        backoff_seconds: the pause after the first of them; it doubles each time.
        timeout_seconds: over HTTP, how long to wait for a connection, or for the next byte.

    Raises:
        ArchiveError: the source is neither file nor URL, cannot be had, was altered here after it was fetched, or is
            not the version that is wanted.
    """
    path = local_path(source, folder)
    if is_local(source):
        return _describe_file(path, folder)

    shown = _shown(source)
    remote = remote_of(source, shown, timeout_seconds)
    download = _Download(remote, path, progress, attempts, backoff_seconds)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Whoever waits here finds the archive done by the one who came first.
        with FileLock(f"{path}.lock"):
            here = None if refresh else _known(path, shown)
            if here and sha256 in (None, here.sha256):
                return here
            fetched = _if_current(path, remote) or download.run()
    except OSError as error:
        raise ArchiveError(
            f"{shown} cannot be downloaded into {folder}: {error.strerror or error}."
            " Give a folder that may be written and has room for the archive."
        ) from error
    if sha256 not in (None, fetched.sha256):
        raise ArchiveError(
            f"{shown} is no longer the archive that was taken before: its SHA-256 was {sha256} and is {fetched.sha256}."
            " Materialize raw_archive with refresh: true, and then image_paths, to go over to the new one."
        )
    return fetched


def remote_stamp(source: str, folder: Path, *, timeout_seconds: float = 30.0) -> str:
    """What is there now, as one word that differs when the archive differs; nothing is downloaded.

    Of a file it is size and time, of a URL the ETag or, where the server gives none, size and time.

    Args:
        source: as `fetch` takes it.
        folder: likewise.
        timeout_seconds: over HTTP, how long to wait for an answer.

    Raises:
        ArchiveError: the source is neither file nor URL, is not there, does not answer now, or its server says nothing
            from which a change could be told.
    """
    path = local_path(source, folder)
    if is_local(source):
        return _file_stamp(require_file(path))
    shown = _shown(source)
    try:
        stamp = remote_of(source, shown, timeout_seconds).version().stamp
    except TransientError as problem:
        raise ArchiveError(f"{shown} cannot be looked at: {problem}. Try again later.") from None
    if stamp is None:
        raise ArchiveError(
            f"{shown} comes with neither ETag nor Last-Modified, so that nobody can tell whether it changed."
            " Materialize raw_archive with refresh: true when you know that it did."
        )
    return stamp


def fetched_stamp(source: str, folder: Path) -> str | None:
    """The `remote_stamp` of what was taken: of a file as it is, of a URL as it was when it was downloaded.

    None if there is no copy yet, or if nobody knows of which version it is: a person may have put it there.

    Args:
        source: as `fetch` takes it.
        folder: likewise.

    Raises:
        ArchiveError: the source is neither file nor URL, or the file is not there.
    """
    path = local_path(source, folder)
    if is_local(source):
        return _file_stamp(require_file(path))
    if not path.exists():
        return None
    note = _note_of(path)
    known, status = _read_note(note), require_file(path)
    if known.get("source") != _shown(source) or not identity(path, status, note).items() <= known.items():
        return None
    return _noted_version(known).stamp


def local_path(source: str, folder: Path) -> Path:
    """Where an archive lies on this disk, or will lie once it is fetched.

    Args:
        source: as `fetch` takes it.
        folder: likewise.

    Raises:
        ArchiveError: the source is neither file nor URL.
    """
    scheme = scheme_of(source)
    if not scheme:
        return Path(source).expanduser()
    if scheme == "file":
        return _path_of(source)
    if scheme in HTTP or is_reached_by_fsspec(scheme):
        return folder / _file_name(source)
    raise ArchiveError(
        f"{_shown(source)} cannot be fetched. Give a path, or a URL that begins with http://, https:// or file://, or"
        " with the name of an object store such as s3://."
    )


def _shown(url: str) -> str:
    try:
        return public_url(url)
    except StorageError as error:
        raise ArchiveError(str(error)) from None


def _path_of(file_url: str) -> Path:
    # Python's own file URLs escape `#`; one that is written is part of the name.
    parts = split_url(file_url)
    if parts.netloc not in ("", "localhost"):
        raise ArchiveError(f"{_shown(file_url)} names another machine. Write a file here like file:///folder/name.tar.")
    return Path(url2pathname(parts.path))


def _file_name(url: str) -> str:
    """The last part of the URL's path, which becomes a file's name and must not lead out of its folder."""
    shown = _shown(url)
    path = split_url(url).path
    # On the web a name may be written with escapes; in an object store a percent sign is one.
    name = re.split(r"[/\\]", unquote(path) if scheme_of(url) in HTTP else path)[-1]
    if name in ("", ".", "..") or "\0" in name:
        raise ArchiveError(f"{shown} does not end in a file's name. Give the URL of the archive itself.")
    return name


# --- Files beside an archive ---


def require_file(path: Path) -> os.stat_result:
    """The status of a file.

    Raises:
        ArchiveError: nothing is there, or a folder or a device is, or it may not be looked at.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise ArchiveError(f"{path} does not exist. Give the path of an archive, or a URL to fetch it from.") from None
    except OSError as error:
        raise unreadable(path, error) from error
    if stat.S_ISDIR(status.st_mode):
        raise ArchiveError(f"{path} is a folder. Give the path of the .tar file itself.")
    if not stat.S_ISREG(status.st_mode):
        raise ArchiveError(f"{path} is no regular file. Give the path of the .tar file itself.")
    return status


def unreadable(path: Path, error: OSError) -> ArchiveError:
    """The error of a file that is there and cannot be read."""
    return ArchiveError(f"{path} cannot be read: {error.strerror}. Give this user the right to read it.")


def companion(path: Path, suffix: str, fallback: Path | None) -> Path | None:
    """Where a small file about an archive is written: beside it, or in `fallback` where that is read-only.

    None where it is read-only and there is no fallback.
    """
    # Root may write even where all writing was taken away on purpose; such a folder is left as it is.
    if os.access(path.parent, os.W_OK) and path.parent.stat().st_mode & 0o222:
        return path.with_name(path.name + suffix)
    return fallback / (path.name + suffix) if fallback else None


def identity(path: Path, status: os.stat_result, note: Path) -> dict[str, str | int]:
    """What must be unchanged for a note about an archive to hold.

    A note beside its archive may move with it; one in another folder could meet a namesake, so it is bound to
    the whole path.
    """
    beside = note.parent.resolve() == path.parent.resolve()
    return {
        "archive": path.name if beside else str(path.resolve()),
        "bytes": status.st_size,
        "mtime_ns": status.st_mtime_ns,
    }


def write_whole(target: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file that appears under its name only when it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=target.name, suffix=".part", dir=target.parent)
    os.close(handle)
    unfinished = Path(name)
    try:
        write(unfinished)
        unfinished.chmod(0o644)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def write_parquet(target: Path, frame: pl.DataFrame, metadata: dict[str, str] | None = None) -> None:
    """Keep a frame as a file that appears under its name only when it is whole.

    Raises:
        OSError: it cannot be written; the number says why, which polars' own errors keep to themselves.
    """
    content = io.BytesIO()
    frame.write_parquet(content, metadata=metadata)
    write_whole(target, lambda unfinished: unfinished.write_bytes(content.getbuffer()))


def _read_note(note: Path) -> dict[str, Any]:
    try:
        content = json.loads(note.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_note(note: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2) + "\n"
    write_whole(note, lambda unfinished: unfinished.write_text(text, "utf-8"))


def _note_of(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _file_stamp(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns} ns, {status.st_size} bytes"


def _noted_version(note: dict[str, Any]) -> Version:
    """The version of what a note is about, whether it is still coming (``total``) or has come (``bytes``)."""
    return Version(note.get("etag"), note.get("last_modified"), note.get("total", note.get("bytes")))


def _describe_file(path: Path, folder: Path) -> FetchedArchive:
    """A file in place, hashed once for as long as its size and time stay the same."""
    status = require_file(path)
    for note in (_note_of(path), folder / _note_of(path).name):
        known = _read_note(note)
        if identity(path, status, note).items() <= known.items() and "sha256" in known:
            return FetchedArchive(path, status.st_size, known["sha256"], str(path), fetched=False)
    try:
        sha256 = _sha256(path)
    except OSError as error:
        raise unreadable(path, error) from error
    note = companion(path, ".json", folder) or folder / _note_of(path).name
    # A checksum that cannot be noted costs a second reading next time, and nothing else.
    with suppress(OSError):
        _write_note(note, {"source": str(path), **identity(path, status, note), "sha256": sha256})
    return FetchedArchive(path, status.st_size, sha256, str(path), fetched=False)


def _known(path: Path, shown: str) -> FetchedArchive | None:
    """The archive that an earlier call, or a person, put where the download would go."""
    if not path.exists():
        return None
    status = require_file(path)
    note = _note_of(path)
    known = _read_note(note)
    origin = str(known.get("source", ""))
    if "://" in origin and origin != shown:
        return None
    if identity(path, status, note).items() <= known.items() and "sha256" in known:
        return FetchedArchive(path, status.st_size, known["sha256"], shown, fetched=False)
    sha256 = _sha256(path)
    if origin == shown and known.get("sha256", sha256) != sha256:
        raise ArchiveError(
            f"{path} is no longer what was fetched from {shown}: its SHA-256 was {known['sha256']} and is"
            f" {sha256}. Delete it to have it fetched again, or give its path in place of the URL."
        )
    _write_note(note, {**known, "source": shown, **identity(path, status, note), "sha256": sha256})
    return FetchedArchive(path, status.st_size, sha256, shown, fetched=False)


def _if_current(path: Path, remote: Remote) -> FetchedArchive | None:
    """The copy that is here, if it is whole, unaltered, and of the version that the server has now."""
    if not path.exists():
        return None
    note = _note_of(path)
    known, status = _read_note(note), require_file(path)
    if known.get("source") != remote.shown or not identity(path, status, note).items() <= known.items():
        return None
    try:
        now = remote.version().stamp
    except TransientError:
        # The download will find the same trouble, and has the patience for it.
        return None
    if now is None or now != _noted_version(known).stamp or "sha256" not in known:
        return None
    return FetchedArchive(path, status.st_size, known["sha256"], remote.shown, fetched=False)


# --- The way here ---


@dataclass
class _Download:
    """One URL on its way into one file. NAME.part holds what has arrived, NAME.part.json its version."""

    remote: Remote
    path: Path
    progress: Progress | None
    attempts: int
    backoff_seconds: float

    def __post_init__(self) -> None:
        self.shown = self.remote.shown
        self.part = self.path.with_name(self.path.name + ".part")
        self.part_note = _note_of(self.part)

    def run(self) -> FetchedArchive:
        """Ask until the archive is whole, or until `attempts` requests in a row brought nothing new."""
        furthest = self._arrived()
        fruitless = 0
        while True:
            try:
                return self._finish(self._attempt())
            except TransientError as problem:
                reason = problem
            arrived = self._arrived()
            if arrived > furthest:
                furthest, fruitless = arrived, 0
            else:
                fruitless += 1
            if fruitless >= self.attempts:
                raise ArchiveError(
                    f"{self.shown} could not be fetched: {reason}. Attempts in a row that brought nothing"
                    f" new: {fruitless}. {arrived:,} bytes have arrived and are kept; run again to go on."
                )
            time.sleep(self.backoff_seconds * 2 ** max(fruitless - 1, 0))

    def _arrived(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _attempt(self) -> Version:
        """Download what is still missing, and return the version of which all is here."""
        with self.remote.opened(*self._begun()) as delivery:
            if delivery.start == 0:
                self.part.write_bytes(b"")
                _write_note(self.part_note, {"source": self.shown, **asdict(delivery.version)})
            self._append(delivery)
        arrived, total = self._arrived(), delivery.version.total
        if total is not None and arrived > total:
            self.part.unlink()
            raise TransientError(f"{arrived:,} bytes arrived where the server had announced {total:,}")
        if total is not None and arrived < total:
            raise TransientError(f"the connection broke off after {arrived:,} of {total:,} bytes")
        return delivery.version

    def _begun(self) -> tuple[int, Version | None]:
        """How much has arrived, and of which version that is."""
        note = _read_note(self.part_note)
        arrived = self._arrived()
        return (arrived, _noted_version(note)) if arrived and note.get("source") == self.shown else (0, None)

    def _append(self, delivery: Delivery) -> None:
        with self.part.open("ab") as file:
            for chunk in delivery.chunks:
                file.write(chunk)
                if self.progress:
                    self.progress(file.tell(), delivery.version.total)
            file.flush()
            os.fsync(file.fileno())

    def _finish(self, version: Version) -> FetchedArchive:
        sha256 = _sha256(self.part)
        note = _note_of(self.path)
        # Without a note the new archive is taken for what it is; beside that of an older one it would seem altered.
        note.unlink(missing_ok=True)
        self.part.replace(self.path)
        self.part_note.unlink(missing_ok=True)
        status = self.path.stat()
        origin = {"etag": version.etag, "last_modified": version.last_modified}
        _write_note(note, {"source": self.shown, **origin, **identity(self.path, status, note), "sha256": sha256})
        return FetchedArchive(self.path, status.st_size, sha256, self.shown, fetched=True)
