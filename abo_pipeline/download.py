"""Brings an archive to this disk: a file is used in place, a URL is downloaded once, and resumed when cut.

Here belong URLs, HTTP and the small files that lie beside an archive. What an archive holds stays out: see
`archive.py`. User names, passwords and query strings of a URL are used to ask for it and appear nowhere else.
"""

import hashlib
import json
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import url2pathname

import requests
from filelock import FileLock

from abo_pipeline.errors import ArchiveError

Progress = Callable[[int, int | None], None]
"""Called with the bytes done and, where known, the bytes in all."""


def in_megabytes(done: int, total: int | None) -> str:
    """How far something is, in words: ``12 of 43 MB``."""
    return f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB" if total else f"{done / 1e6:,.0f} MB"


CHUNK_BYTES = 1 << 20
# What a cut connection loses at most, so it must be small.
_NETWORK_CHUNK_BYTES = 1 << 16


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
    progress: Progress | None = None,
    attempts: int = 5,
    backoff_seconds: float = 1.0,
    timeout_seconds: float = 30.0,
) -> FetchedArchive:
    """Make sure that the archive lies on this disk, and know its checksum.

    Args:
        source: an http, https or file URL, or a path. A file is used in place, never copied.
        folder: where a URL is downloaded to, and where notes about a read-only file go.
        progress: told of every 64 KiB that arrive.
        attempts: how many requests in a row may bring nothing new before giving up.
        backoff_seconds: the pause after the first of them; it doubles each time.
        timeout_seconds: how long to wait for a connection, or for the next byte.

    Raises:
        ArchiveError: the source is neither file nor URL, cannot be had, or was changed after it was fetched.
    """
    path = local_path(source, folder)
    if _scheme(source) not in ("http", "https"):
        return _describe_file(path, folder)

    shown = public_url(source)
    download = _Download(source, shown, path, progress, attempts, backoff_seconds, timeout_seconds)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Whoever waits here finds the archive done by the one who came first.
        with FileLock(f"{path}.lock"):
            return _known(path, shown) or download.run()
    except OSError as error:
        raise ArchiveError(
            f"{shown} cannot be downloaded into {folder}: {error.strerror or error}."
            " Give a folder that may be written and has room for the archive."
        ) from error


def local_path(source: str, folder: Path) -> Path:
    """Where an archive lies on this disk, or will lie once it is fetched.

    Args:
        source: as `fetch` takes it.
        folder: likewise.

    Raises:
        ArchiveError: the source is neither file nor URL.
    """
    match _scheme(source):
        case "":
            return Path(source).expanduser()
        case "file":
            return _path_of(source)
        case "http" | "https":
            return folder / _file_name(source)
    raise ArchiveError(
        f"{public_url(source)} cannot be fetched. Give a path, or a URL that begins with http://, https:// or file://."
    )


def _scheme(source: str) -> str:
    """What comes before `://`, in lower case; nothing for a path."""
    scheme = re.match(r"([a-z][a-z0-9+.-]+)://", source, re.IGNORECASE)
    return scheme[1].lower() if scheme else ""


def public_url(url: str) -> str:
    """The URL without user, password, query and fragment, any of which may hold a secret.

    Raises:
        ArchiveError: it is no URL at all. The message does not repeat it.
    """
    try:
        parts = urlsplit(url)
        named = parts.hostname or parts.scheme.lower() not in ("http", "https")
        _ = parts.port
    except ValueError:
        named = None
    if not named:
        raise ArchiveError("The archive's URL cannot be understood. Write it like https://host/folder/name.tar.")
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _path_of(file_url: str) -> Path:
    parts = urlsplit(file_url)
    if parts.netloc not in ("", "localhost"):
        raise ArchiveError(
            f"{public_url(file_url)} names another machine. Write a file here like file:///folder/name.tar."
        )
    return Path(url2pathname(parts.path))


def _file_name(url: str) -> str:
    """The last part of the URL's path, which becomes a file's name and must not lead out of its folder."""
    name = re.split(r"[/\\]", unquote(urlsplit(url).path))[-1]
    if name in ("", ".", "..") or "\0" in name:
        raise ArchiveError(f"{public_url(url)} does not end in a file's name. Give the URL of the archive itself.")
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


# --- HTTP ---


class _TransientError(Exception):
    """What may be gone at the next attempt. The text is a reason fit to be shown."""


@dataclass
class _Download:
    """One URL on its way into one file. NAME.part holds what has arrived, NAME.part.json its version."""

    url: str = field(repr=False)
    shown: str
    path: Path
    progress: Progress | None
    attempts: int
    backoff_seconds: float
    timeout_seconds: float

    def __post_init__(self) -> None:
        self.part = self.path.with_name(self.path.name + ".part")
        self.part_note = _note_of(self.part)

    def run(self) -> FetchedArchive:
        """Ask until the archive is whole, or until `attempts` requests in a row brought nothing new."""
        furthest = self._arrived()
        fruitless = 0
        while True:
            try:
                return self._finish(self._attempt())
            except _TransientError as problem:
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

    def _attempt(self) -> dict[str, Any]:
        """Download what is still missing, and return what the server says of this version."""
        try:
            with self._request() as response:
                return self._receive(response)
        except requests.RequestException as error:
            # The text of these errors repeats the URL with its query, so none of it may be kept.
            temporary = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
            if isinstance(error, temporary):
                raise _TransientError(self._reason(error)) from None
            raise ArchiveError(
                f"{self.shown} cannot be fetched: {type(error).__name__}. Check the URL, and where it redirects to."
            ) from None

    def _reason(self, error: requests.RequestException) -> str:
        """Why a connection failed, in words that hold no URL."""
        if isinstance(error, requests.Timeout) or "Read timed out" in str(error):
            return f"the server was silent for {self.timeout_seconds:g} seconds"
        cause: BaseException | None = error
        while cause:
            if isinstance(cause, OSError) and cause.strerror:
                return f"the connection failed ({cause.strerror})"
            cause = cause.__cause__ or cause.__context__
        return "the connection broke off"

    def _request(self) -> requests.Response:
        """Ask for the rest of what has arrived or, where the answer does not continue it, for the whole."""
        arrived, version = self._arrived(), _read_note(self.part_note)
        validator = _validator(version)
        if arrived and validator and version.get("source") == self.shown:
            response = self._get({"Range": f"bytes={arrived}-", "If-Range": validator})
            if response.status_code not in (206, 416) or _continues(response, arrived, version):
                return response
            response.close()
        self.part.unlink(missing_ok=True)
        return self._get({})

    def _get(self, headers: dict[str, str]) -> requests.Response:
        # Compressed in transit, the byte positions would not be those of the file.
        headers = {"Accept-Encoding": "identity", **headers}
        try:
            return requests.get(self.url, headers=headers, stream=True, timeout=self.timeout_seconds)
        except requests.RequestException:
            raise
        except ValueError:
            # A redirect to what is no URL comes as this, and past the library's own errors.
            raise requests.exceptions.InvalidURL from None

    def _receive(self, response: requests.Response) -> dict[str, Any]:
        """Store what comes, and check that it is all there."""
        status = response.status_code
        answer = f"{status} {response.reason or ''}".strip()
        if status == 429 or status >= 500:
            raise _TransientError(f"the server answered {answer}")
        resumed = status in (206, 416) and "Range" in response.request.headers
        if status != 200 and not resumed:
            raise ArchiveError(
                f"{self.shown} cannot be fetched: the server answered {answer}."
                " Check the URL, and that it may be read with what is given in it."
            )
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise ArchiveError(
                f"{self.shown} is sent compressed, though it was asked for as it is."
                " Download it with a browser, decompress it, and give its path."
            )
        total = _total(response)
        if resumed:
            version = _read_note(self.part_note)
        else:
            version = {
                "source": self.shown,
                "etag": response.headers.get("ETag"),
                "last_modified": response.headers.get("Last-Modified"),
                "total": total,
            }
            self.part.write_bytes(b"")
            _write_note(self.part_note, version)
        if status != 416:
            self._append(response, total)
        arrived = self._arrived()
        if total is not None and arrived > total:
            self.part.unlink()
            raise _TransientError(f"{arrived:,} bytes arrived where the server had announced {total:,}")
        if total is not None and arrived < total:
            raise _TransientError(f"the connection broke off after {arrived:,} of {total:,} bytes")
        return version

    def _append(self, response: requests.Response, total: int | None) -> None:
        with self.part.open("ab") as file:
            for chunk in response.iter_content(_NETWORK_CHUNK_BYTES):
                file.write(chunk)
                if self.progress:
                    self.progress(file.tell(), total)
            file.flush()
            os.fsync(file.fileno())

    def _finish(self, version: dict[str, Any]) -> FetchedArchive:
        sha256 = _sha256(self.part)
        self.part.replace(self.path)
        self.part_note.unlink(missing_ok=True)
        status = self.path.stat()
        note = _note_of(self.path)
        origin = {key: version.get(key) for key in ("etag", "last_modified")}
        _write_note(note, {"source": self.shown, **origin, **identity(self.path, status, note), "sha256": sha256})
        return FetchedArchive(self.path, status.st_size, sha256, self.shown, fetched=True)


def _validator(version: dict[str, Any]) -> str | None:
    """What If-Range may hold: a strong ETag, else the time of the last change."""
    etag, last_modified = version.get("etag"), version.get("last_modified")
    return etag if etag and not etag.startswith("W/") else last_modified


def _continues(response: requests.Response, arrived: int, version: dict[str, Any]) -> bool:
    """Whether a 206 or 416 fits what has arrived: some servers honour Range and overlook If-Range."""
    for header, key in (("ETag", "etag"), ("Last-Modified", "last_modified")):
        if header in response.headers and response.headers[header] != version.get(key):
            return False
    content_range = response.headers.get("Content-Range", "")
    if response.status_code == 416:
        return content_range == f"bytes */{arrived}"
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", content_range)
    if not match or int(match[1]) != arrived:
        return False
    return match[2] == "*" or version.get("total") in (None, int(match[2]))


def _total(response: requests.Response) -> int | None:
    """The size of the whole file in bytes, where the server announces it."""
    announced = (
        response.headers.get("Content-Length", "")
        if response.status_code == 200
        else response.headers.get("Content-Range", "").rpartition("/")[2]
    )
    return int(announced) if announced.isdecimal() else None
