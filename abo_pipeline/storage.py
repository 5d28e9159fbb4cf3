"""Places beyond this disk: how their URLs are read and shown, and a file system for each through fsspec.

Object stores (s3://, gs://, az://) and whatever else fsspec knows are reached from here, and their errors, each
package's own, become words here. What is kept there stays out: see ``remote`` for archives and ``defs.io_managers``
for frames. Credentials come from the environment, as each package takes them; those in a URL are used and never shown.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

import fsspec
from fsspec.registry import known_implementations, registry

from abo_pipeline.errors import StorageError

HTTP = ("http", "https")

# Azure writes the container where other URLs have a user: abfss://container@account.dfs.core.windows.net/name.tar
_CONTAINER_FIRST = ("abfs", "abfss")


def scheme_of(source: str) -> str:
    """What comes before ``://``, in lower case; nothing for a path."""
    scheme = re.match(r"([a-z][a-z0-9+.-]+)://", source, re.IGNORECASE)
    return scheme[1].lower() if scheme else ""


def is_local(source: str) -> bool:
    """Whether it is a path, or the URL of a file on this machine."""
    return scheme_of(source) in ("", "file")


def is_reached_by_fsspec(scheme: str) -> bool:
    """Whether fsspec knows the scheme; the package that it needs may be missing all the same."""
    return scheme in registry or scheme in known_implementations


def split_url(url: str) -> SplitResult:
    """The parts of a URL; only in those of the web does ``#`` begin something that is no part of the name.

    Raises:
        ValueError: it is no URL.
    """
    return urlsplit(url, allow_fragments=scheme_of(url) in HTTP)


def public_url(url: str) -> str:
    """The URL without user, password, query and fragment, any of which may hold a secret.

    Raises:
        StorageError: it is no URL at all. The message does not repeat it.
    """
    try:
        parts = split_url(url)
        named = parts.hostname or parts.scheme.lower() not in HTTP
        _ = parts.port
    except ValueError:
        named = None
    if not named:
        raise StorageError("The URL cannot be understood. Write it like https://host/folder/name.tar.")
    user, _, host = parts.netloc.rpartition("@")
    if parts.scheme.lower() in _CONTAINER_FIRST and user and ":" not in user:
        host = parts.netloc
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def file_system(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system that a URL names, and the path in it.

    Raises:
        StorageError: nobody knows such URLs, the package for them is missing, or it cannot be set up.
    """
    shown, scheme = public_url(url), scheme_of(url)
    if not is_reached_by_fsspec(scheme):
        raise StorageError(
            f"{shown} cannot be reached: nothing here knows {scheme}:// addresses. Write it like s3://bucket/name."
        )
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        # fsspec's own words name the package: "Install s3fs to access S3".
        hint = str(error).strip().rstrip(".") or f"Install the package that fsspec needs for {scheme}://"
        raise StorageError(f"{shown} needs a package that is not installed. {hint}.") from None
    except Exception as error:  # noqa: BLE001 - each package has errors of its own
        raise StorageError(f"{shown} cannot be reached: {reason_of(error)}.") from None
    # Listings are kept for as long as the process lives, and would hide what changed since.
    system.invalidate_cache()
    return system, path


def is_lasting(error: BaseException) -> bool:
    """Whether trying again is of no use."""
    lasting = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ImportError)
    return isinstance(error, lasting) or _lacks_credentials(error)


def reason_of(error: BaseException) -> str:
    """Why a file system failed, in words that hold nothing of what it was asked: that may be a secret."""
    if _lacks_credentials(error):
        return "this machine has no valid credentials for it; set those of the store in its environment"
    if isinstance(error, FileNotFoundError):
        return "it does not exist"
    if isinstance(error, PermissionError):
        return "this machine's credentials do not allow it"
    cause: BaseException | None = error
    while cause:
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno)
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__


@contextmanager
def translated(action: str, remedy: str) -> Iterator[None]:
    """Turn whatever a file system raises in the block into ``StorageError``.

    Args:
        action: what failed then, such as ``s3://bucket/a cannot be read``.
        remedy: a sentence that says what to do about it.
    """
    try:
        yield
    except (FileNotFoundError, StorageError):
        # What is not there is for the caller to judge, and what is in words already needs no others.
        raise
    except Exception as error:  # noqa: BLE001 - each package has errors of its own
        raise StorageError(f"{action}: {reason_of(error)}. {remedy}") from None


def stamp_of(info: dict[str, Any]) -> tuple[str | None, str | None]:
    """A file's ETag and the time of its last change, under whichever names its file system reports them."""
    etag = next((info[name] for name in ("ETag", "etag", "md5Hash", "content_md5", "checksum") if info.get(name)), None)
    times = ("LastModified", "last_modified", "updated", "mtime", "modified", "timeModified", "created")
    changed = next((info[name] for name in times if info.get(name)), None)
    return (str(etag) if etag else None), (str(changed) if changed else None)


def _lacks_credentials(error: BaseException) -> bool:
    # The names that botocore, google-auth and azure-identity give them; none derives from another.
    return re.search(r"Credential|ClientAuthentication|RefreshError", type(error).__name__) is not None
