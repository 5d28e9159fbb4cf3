"""One file that lies elsewhere: which version it is, and its bytes from a position on.

Over HTTP with requests, in object stores with fsspec; ``download`` brings what comes from here to this disk and knows
nothing of either. An error that may pass is a ``TransientError``, one that will not is an ``ArchiveError``. Nothing
here writes a file, waits, or tries again.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import requests

from abo_pipeline.errors import ArchiveError, StorageError
from abo_pipeline.storage import HTTP, file_system, is_lasting, reason_of, scheme_of, stamp_of

# What a cut connection loses at most, so it must be small.
_NETWORK_CHUNK_BYTES = 1 << 16
# A request a block: smaller ones would spend their time waiting, larger ones lose more when they are cut.
_STORE_BLOCK_BYTES = 1 << 23


class TransientError(Exception):
    """What may be gone at the next attempt. The text is a reason fit to be shown."""


@dataclass(frozen=True)
class Version:
    """What a server says of the file that it holds now; what it does not say is None.

    Attributes:
        etag: the server's name of this version.
        last_modified: when it was changed, as the server writes it.
        total: bytes.
    """

    etag: str | None = None
    last_modified: str | None = None
    total: int | None = None

    @property
    def stamp(self) -> str | None:
        """What differs when the file differs, as one word; None if nothing is known that would."""
        if self.etag:
            # The mark of a weak ETag comes and goes with compression on the way.
            return self.etag.removeprefix("W/")
        if self.last_modified:
            return self.last_modified if self.total is None else f"{self.last_modified}, {self.total} bytes"
        return None


@dataclass(frozen=True)
class Delivery:
    """An answer that is being read.

    Attributes:
        version: of the file.
        start: the position of the first byte that comes: the one that was asked for, or 0.
        chunks: the bytes from there to the end.
    """

    version: Version
    start: int
    chunks: Iterator[bytes]


class Remote(ABC):
    """A file that lies elsewhere.

    Attributes:
        shown: its URL, fit to be shown.
    """

    shown: str

    @abstractmethod
    def version(self) -> Version:
        """Which version is there now; none of it is read.

        Raises:
            TransientError: the server does not answer, or not now.
            ArchiveError: it is not there, or may not be read.
        """

    @abstractmethod
    def opened(self, position: int, version: Version | None) -> AbstractContextManager[Delivery]:
        """The bytes from a position of a version on or, where the server cannot continue it, all that are there now.

        Args:
            position: so many bytes have arrived.
            version: of what they are; None if that is not known.

        Raises:
            TransientError: the server does not answer, or breaks off; also while the delivery is read.
            ArchiveError: it is not there, or may not be read.
        """


def remote_of(url: str, shown: str, timeout_seconds: float) -> Remote:
    """The file that a URL names.

    Args:
        url: http, https, or one that fsspec knows.
        shown: the same, fit to be shown.
        timeout_seconds: over HTTP, for a connection and for the next byte; other packages have limits of their own.
    """
    if scheme_of(url) in HTTP:
        return _HttpFile(url, shown, timeout_seconds)
    return _StoredFile(url, shown)


# --- HTTP ---


@dataclass
class _HttpFile(Remote):
    url: str = field(repr=False)
    shown: str
    timeout_seconds: float

    def version(self) -> Version:
        with self._translated():
            with self._ask("HEAD", {}) as response:
                if response.status_code == 200:
                    return _version(response)
            # Some servers, and every signed address of S3, know GET alone.
            with self._ask("GET", {"Range": "bytes=0-0"}) as response:
                if response.status_code not in (200, 206):
                    self._refuse(response)
                return _version(response)

    @contextmanager
    def opened(self, position: int, version: Version | None) -> Iterator[Delivery]:
        with self._translated(), self._request(position, version) as response:
            resumed = response.status_code in (206, 416) and "Range" in response.request.headers
            if response.status_code != 200 and not resumed:
                self._refuse(response)
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise ArchiveError(
                    f"{self.shown} is sent compressed, though it was asked for as it is."
                    " Download it with a browser, decompress it, and give its path."
                )
            # A 416 that got here says that everything has arrived; what it carries is an error page.
            chunks = iter(()) if response.status_code == 416 else response.iter_content(_NETWORK_CHUNK_BYTES)
            if resumed and version:
                total = version.total if version.total is not None else _total(response)
                yield Delivery(Version(version.etag, version.last_modified, total), position, chunks)
            else:
                yield Delivery(_version(response), 0, chunks)

    def _request(self, position: int, version: Version | None) -> requests.Response:
        """Ask for the rest of what has arrived or, where the answer does not continue it, for the whole."""
        validator = _validator(version) if version else None
        if position and version and validator:
            response = self._ask("GET", {"Range": f"bytes={position}-", "If-Range": validator})
            if response.status_code not in (206, 416) or _continues(response, position, version):
                return response
            response.close()
        return self._ask("GET", {})

    def _ask(self, method: str, headers: dict[str, str]) -> requests.Response:
        # Compressed in transit, the byte positions would not be those of the file.
        headers = {"Accept-Encoding": "identity", **headers}
        try:
            return requests.request(
                method, self.url, headers=headers, stream=True, timeout=self.timeout_seconds, allow_redirects=True
            )
        except requests.RequestException:
            raise
        except ValueError:
            # A redirect to what is no URL comes as this, and past the library's own errors.
            raise requests.exceptions.InvalidURL from None

    def _refuse(self, response: requests.Response) -> None:
        answer = f"{response.status_code} {response.reason or ''}".strip()
        if response.status_code == 429 or response.status_code >= 500:
            raise TransientError(f"the server answered {answer}")
        raise ArchiveError(
            f"{self.shown} cannot be fetched: the server answered {answer}."
            " Check the URL, and that it may be read with what is given in it."
        )

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """The library's errors in words. Their own text repeats the URL with its query, so none of it is kept."""
        try:
            yield
        except requests.RequestException as error:
            passing = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
            if isinstance(error, passing):
                raise TransientError(self._reason(error)) from None
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


def _version(response: requests.Response) -> Version:
    return Version(response.headers.get("ETag"), response.headers.get("Last-Modified"), _total(response))


def _validator(version: Version) -> str | None:
    """What If-Range may hold: a strong ETag, else the time of the last change."""
    return version.etag if version.etag and not version.etag.startswith("W/") else version.last_modified


def _continues(response: requests.Response, position: int, version: Version) -> bool:
    """Whether a 206 or 416 fits what has arrived: some servers honour Range and overlook If-Range."""
    for header, known in (("ETag", version.etag), ("Last-Modified", version.last_modified)):
        if header in response.headers and response.headers[header] != known:
            return False
    content_range = response.headers.get("Content-Range", "")
    if response.status_code == 416:
        return content_range == f"bytes */{position}"
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", content_range)
    if not match or int(match[1]) != position:
        return False
    return match[2] == "*" or version.total in (None, int(match[2]))


def _total(response: requests.Response) -> int | None:
    """The size of the whole file in bytes, where the server announces it."""
    announced = (
        response.headers.get("Content-Length", "")
        if response.status_code == 200
        else response.headers.get("Content-Range", "").rpartition("/")[2]
    )
    return int(announced) if announced.isdecimal() else None


# --- Object stores, and whatever else fsspec reaches ---


@dataclass
class _StoredFile(Remote):
    url: str = field(repr=False)
    shown: str

    def version(self) -> Version:
        system, path = self._located()
        with self._translated():
            info = system.info(path)
            if info.get("type") == "directory":
                raise ArchiveError(f"{self.shown} is a folder. Give the URL of the .tar file itself.")
            etag, last_modified = stamp_of(info)
            if not (etag or last_modified):
                etag = system.ukey(path)
            return Version(etag, last_modified, info.get("size"))

    @contextmanager
    def opened(self, position: int, version: Version | None) -> Iterator[Delivery]:
        now = self.version()
        system, path = self._located()
        with self._translated():
            file = system.open(path, "rb", block_size=_STORE_BLOCK_BYTES)
        try:
            start = position if version == now and file.seekable() and position <= (now.total or 0) else 0
            yield Delivery(now, start, self._chunks(file, start, now))
        finally:
            file.close()

    def _chunks(self, file: Any, start: int, version: Version) -> Iterator[bytes]:
        """The bytes, in the translated part; what their reader raises, such as a full disk, is not the store's."""
        with self._translated():
            file.seek(start)
            chunk = file.read(_NETWORK_CHUNK_BYTES)
        while chunk:
            yield chunk
            with self._translated():
                chunk = file.read(_NETWORK_CHUNK_BYTES)
        # A store answers each block from whatever is there at the time.
        if self.version() != version:
            raise TransientError("it was changed while it was fetched")

    def _located(self) -> tuple[Any, str]:
        try:
            return file_system(self.url)
        except StorageError as error:
            raise ArchiveError(str(error)) from None

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except ArchiveError:
            raise
        except Exception as error:  # noqa: BLE001 - each package has errors of its own
            reason = reason_of(error)
            if not is_lasting(error):
                raise TransientError(f"the store could not be read ({reason})") from None
            raise ArchiveError(
                f"{self.shown} cannot be fetched: {reason}. Check the URL, and what this machine may read."
            ) from None
