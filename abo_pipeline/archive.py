"""An archive of images as it lies on the disk: checked, indexed once, read by byte offset and never unpacked.

Here belongs whatever has to do with the tar format. How an archive comes to this disk stays out
(`download.py`), and so does what its members mean (`catalog.py`, `listings.py`).

One pass over the tar writes NAME.index.parquet, which serves until the archive changes. Only regular files
with a safe name are in it. Links, devices and names that lead out of the archive are counted and otherwise
ignored.
"""

import hashlib
import json
import os
import shlex
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import BinaryIO, Self

import polars as pl

from abo_pipeline.download import (
    CHUNK_BYTES,
    Progress,
    companion,
    identity,
    require_file,
    unreadable,
    write_parquet,
)
from abo_pipeline.errors import ArchiveError

# Counts up when what the index holds changes, so that older ones are built anew.
INDEX_VERSION = 1
INDEX_SCHEMA = {"member": pl.String, "offset": pl.Int64, "size": pl.Int64, "digest": pl.String}

_BLOCK_BYTES = 512
# As Python objects a row takes some 300 bytes, in a frame some 80.
_ROWS_A_FRAME = 20_000
_MEMBERS_A_REPORT = 1_000

# What a compressed file begins with: the format, the command that undoes it, the suffixes this insists on.
_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip", (".gz", ".tgz")),
    b"BZh": ("bzip2", "bunzip2", (".bz2", ".tbz2")),
    b"\xfd7zXZ\x00": ("xz", "unxz", (".xz", ".txz")),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd", (".zst", ".tzst")),
}

_KINDS = {
    tarfile.SYMTYPE: "symbolic link",
    tarfile.LNKTYPE: "hard link",
    tarfile.CHRTYPE: "device",
    tarfile.BLKTYPE: "device",
    tarfile.FIFOTYPE: "fifo",
}


def digest_of(content: Iterable[bytes]) -> str:
    """What tells a member's content from any other: its BLAKE2b-128, in hex. The content may come in pieces."""
    digest = hashlib.blake2b(digest_size=16)
    for piece in content:
        digest.update(piece)
    return digest.hexdigest()


class Archive:
    """An open archive: its index, and its members' bytes. Reading is safe from many threads at once.

    Attributes:
        path: where it lies.
        bytes: its size.
        index: one row a member, sorted by offset: member (normalised path), offset (of the data) and size in
            bytes, digest (of the content, see `digest_of`).
        index_path: the parquet file that keeps the index.
        skipped: how many members were left out, by kind.
    """

    def __init__(
        self,
        path: Path,
        file: BinaryIO,
        status: os.stat_result,
        index: pl.DataFrame,
        index_path: Path,
        skipped: dict[str, int],
    ):
        self.path = path
        self.bytes = status.st_size
        self.index = index
        self.index_path = index_path
        self.skipped = skipped
        self._file = file
        self._mtime_ns = status.st_mtime_ns

    @classmethod
    def open(cls, path: Path, index_folder: Path | None = None, *, progress: Progress | None = None) -> Self:
        """Open an archive with the index kept from last time or, if it is new or has changed, a fresh one.

        Args:
            path: an uncompressed tar.
            index_folder: where the index is kept if the archive's own folder is read-only.
            progress: told how many bytes of the archive are indexed, while a fresh index is made.

        Raises:
            ArchiveError: it is missing, empty, compressed, truncated, damaged or no tar, or there is nowhere
                to keep its index.
        """
        require_file(path)
        try:
            file = path.open("rb")
        except OSError as error:
            raise unreadable(path, error) from error
        try:
            status = os.fstat(file.fileno())
            return cls(path, file, status, *_open_index(path, file, status, index_folder, progress))
        except BaseException:
            file.close()
            raise

    def read(self, member: str) -> bytes:
        """The content of one member.

        Raises:
            ArchiveError: there is no such member, or the archive changed since it was opened.
        """
        if member not in self._positions:
            raise ArchiveError(
                f"{self.path} holds no member {member!r}; {_top_level(self.index)}."
                " Check that it is the archive you mean."
            )
        return self.read_at(*self._positions[member])

    def read_at(self, offset: int, size: int) -> bytes:
        """`size` bytes from byte `offset` on, both as the index has them.

        Raises:
            ArchiveError: the archive changed since it was opened, has been closed, or ends before that.
        """
        try:
            handle = self._file.fileno()
        except ValueError:
            raise ArchiveError(f"{self.path} has been closed. Open it again to read from it.") from None
        status = os.fstat(handle)
        if (status.st_size, status.st_mtime_ns) != (self.bytes, self._mtime_ns):
            raise ArchiveError(f"{self.path} changed while it was being read. Run again to index it as it is now.")
        content = os.pread(handle, size, offset)
        # One call returns at most 2 GiB.
        while len(content) < size and (more := os.pread(handle, size - len(content), offset + len(content))):
            content += more
        if len(content) < size:
            raise ArchiveError(
                f"{self.path} gave {len(content):,} of {size:,} bytes from byte {offset:,} on, for it ends at"
                f" {self.bytes:,}. Take offset and size from the index of this archive."
            )
        return content

    def close(self) -> None:
        """Close the file. The index stays usable."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @cached_property
    def _positions(self) -> dict[str, tuple[int, int]]:
        columns = self.index.select("member", "offset", "size")
        return {member: (offset, size) for member, offset, size in columns.iter_rows()}


def _top_level(index: pl.DataFrame) -> str:
    """What lies at the top of the archive, in words."""
    folders = (
        index.filter(pl.col("member").str.contains("/", literal=True))
        .select(pl.col("member").str.split("/").list.first().unique().sort())
        .to_series()
        .to_list()
    )
    if not folders:
        return "it has no folders" if index.height else "it is empty"
    more = f" and {len(folders) - 10:,} more" if len(folders) > 10 else ""
    return f"its top-level folders are {', '.join(folders[:10])}{more}"


# --- The index and the file that keeps it ---


def _open_index(
    path: Path, file: BinaryIO, status: os.stat_result, index_folder: Path | None, progress: Progress | None
) -> tuple[pl.DataFrame, Path, dict[str, int]]:
    """The index, where it is kept, and the counts of what was left out."""
    suffix = ".index.parquet"
    for folder in filter(None, (path.parent, index_folder)):
        kept_at = folder / (path.name + suffix)
        if kept := _load(kept_at, _stamp(path, status, kept_at)):
            return kept[0], kept_at, kept[1]

    place = companion(path, suffix, index_folder)
    if place is None:
        raise ArchiveError(
            f"The index of {path} cannot be written: {path.parent} is read-only. Give a folder to keep it in."
        )
    index, skipped = _Indexing(path, file, status.st_size, progress).run()
    after = os.fstat(file.fileno())
    if (after.st_size, after.st_mtime_ns) != (status.st_size, status.st_mtime_ns):
        raise ArchiveError(f"{path} changed while it was being indexed. Run again when it is complete.")

    metadata = {**_stamp(path, status, place), "skipped": json.dumps(skipped)}
    try:
        write_parquet(place, index, metadata)
    except OSError as error:
        raise ArchiveError(
            f"The index of {path} cannot be written to {place}: {error.strerror or error}."
            " Make room, or give another folder to keep it in."
        ) from error
    return index, place, skipped


def _stamp(path: Path, status: os.stat_result, place: Path) -> dict[str, str]:
    known = {"index_version": INDEX_VERSION, **identity(path, status, place)}
    return {key: str(value) for key, value in known.items()}


def _load(place: Path, stamp: dict[str, str]) -> tuple[pl.DataFrame, dict[str, int]] | None:
    """The kept index, unless it is missing, of another state of the archive, or unreadable."""
    if not place.is_file():
        return None
    try:
        metadata = pl.read_parquet_metadata(place)
        if not stamp.items() <= metadata.items():
            return None
        index = pl.read_parquet(place)
        skipped: dict[str, int] = json.loads(metadata["skipped"])
    except (OSError, pl.exceptions.PolarsError, KeyError, ValueError):
        return None
    return (index, skipped) if dict(index.schema) == INDEX_SCHEMA else None


# --- One pass over the tar ---


class _Indexing:
    """One pass over an archive, from its first header to its end mark.

    Python's `tarfile` reads the headers. It takes a bad or a cut header after the first for the end of the
    archive, so where it stopped is looked at again here.
    """

    def __init__(self, path: Path, file: BinaryIO, total: int, progress: Progress | None):
        self.path = path
        self.file = file
        self.total = total
        self.progress = progress
        self.skipped: Counter[str] = Counter()
        self.last_member = ""
        self.last_end = 0

    def run(self) -> tuple[pl.DataFrame, dict[str, int]]:
        """The index, and the counts of what was left out."""
        if not self.total:
            raise ArchiveError(f"{self.path} is empty. Delete it and fetch it again.")
        rows: list[tuple[str, int, int, str]] = []
        frames = [_frame([])]
        for row in self._rows():
            rows.append(row)
            if len(rows) == _ROWS_A_FRAME:
                frames.append(_frame(rows))
                rows.clear()
        every = pl.concat([*frames, _frame(rows)])
        # As when unpacking, a later member replaces an earlier one of the same name.
        index = every.unique("member", keep="last").sort("offset").rechunk()
        if every.height > index.height:
            self.skipped["duplicate"] = every.height - index.height
        if self.progress:
            self.progress(self.total, self.total)
        return index, dict(sorted(self.skipped.items()))

    def _rows(self) -> Iterator[tuple[str, int, int, str]]:
        self.file.seek(0)
        try:
            tar = tarfile.open(fileobj=self.file, mode="r:", encoding="utf-8")  # noqa: SIM115
        except (tarfile.TarError, ValueError) as error:
            raise self._no_tar() from error
        count = 0
        while member := self._next(tar):
            # tarfile remembers every member it has seen, some 200 MB for 400,000 of them.
            tar.members.clear()  # type: ignore[attr-defined]  # public since 2003, unknown to typeshed
            count += 1
            if self.progress and count % _MEMBERS_A_REPORT == 0:
                self.progress(member.offset, self.total)
            end = member.offset_data + (member.size if member.isreg() and not member.issparse() else 0)
            if end > self.total:
                raise self._truncated(f"its member {member.name!r} would end at byte {end:,}")
            if kind := _left_out(member):
                self.skipped[kind] += 1
            elif member.isreg():
                yield str(PurePosixPath(member.name)), member.offset_data, member.size, digest_of(self._content(member))
            self.last_member, self.last_end = member.name, end

    def _next(self, tar: tarfile.TarFile) -> tarfile.TarInfo | None:
        """The next member, or None at the end mark; anything else is an error."""
        try:
            member = tar.next()
        except (tarfile.TarError, ValueError, IndexError, OverflowError) as error:
            if self.file.tell() >= self.total:
                raise self._truncated("it ends within a member") from error
            raise self._damaged(tar.offset) from error
        if member is None:
            self._check_end(tar.offset, cut=self.file.tell() >= self.total)
        elif member.size < 0 or tar.offset <= member.offset:
            # A header may claim a negative size, and lead back to itself.
            raise self._damaged(member.offset)
        return member

    def _check_end(self, offset: int, *, cut: bool) -> None:
        """Make sure that the end mark is what stopped `tarfile`, and not a bad or a cut header."""
        self.file.seek(offset)
        block = self.file.read(_BLOCK_BYTES)
        if len(block) < _BLOCK_BYTES:
            missing = "it ends within a header" if block else "it ends without the end-of-archive mark"
            raise self._truncated(missing)
        if block.strip(b"\0"):
            raise self._truncated("it ends within a member") if cut else self._damaged(offset)
        while rest := self.file.read(CHUNK_BYTES):
            if rest.strip(b"\0"):
                raise ArchiveError(
                    f"{self.path} goes on after its end-of-archive mark at byte {offset:,}: it is several"
                    " archives in one file, or damaged. Give a file that is one archive, or fetch it again."
                )

    def _content(self, member: tarfile.TarInfo) -> Iterator[bytes]:
        self.file.seek(member.offset_data)
        missing = member.size
        while missing and (chunk := self.file.read(min(missing, CHUNK_BYTES))):
            yield chunk
            missing -= len(chunk)

    def _no_tar(self) -> ArchiveError:
        self.file.seek(0)
        start = self.file.read(_BLOCK_BYTES)
        if start[257:262] == b"ustar":
            cut = len(start) < _BLOCK_BYTES
            return self._truncated("it ends within a header") if cut else self._damaged(0)
        for magic, (name, command, suffixes) in _COMPRESSED.items():
            if start.startswith(magic):
                return ArchiveError(
                    f"{self.path} is compressed with {name}, but members are read by their offset in an"
                    f" uncompressed tar. Run `{_unpacking(self.path, command, suffixes)}` and give the path"
                    " of the tar that it leaves."
                )
        if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
            return ArchiveError(
                f"{self.path} is no tar: it begins with '<', so it is a web page, probably an error page,"
                " saved as a tar. Delete it, see in a browser what the URL says, and fetch it again."
            )
        return ArchiveError(f"{self.path} is no tar. Check that it is the file you mean, or fetch it again.")

    def _truncated(self, what: str) -> ArchiveError:
        return ArchiveError(
            f"{self.path} is truncated: it has {self.total:,} bytes, and {what}; {self._last_whole()}."
            " Delete it and fetch it again."
        )

    def _damaged(self, offset: int) -> ArchiveError:
        return ArchiveError(
            f"{self.path} is damaged: what stands at byte {offset:,} of {self.total:,} is neither a header"
            f" nor the end of the archive; {self._last_whole()}. Delete it and fetch it again."
        )

    def _last_whole(self) -> str:
        if not self.last_end:
            return "no member of it is whole"
        return f"the last whole member is {self.last_member!r}, which ends at byte {self.last_end:,}"


def _left_out(member: tarfile.TarInfo) -> str:
    """The kind under which a member is counted and ignored, or nothing for a folder or a plain file."""
    if member.isdir():
        return ""
    if member.type in _KINDS or not member.isreg():
        return _KINDS.get(member.type, "unknown type")
    if member.issparse():
        return "sparse file"
    path = PurePosixPath(member.name)
    if path.is_absolute():
        return "absolute path"
    if ".." in path.parts:
        return "path through .."
    if not path.name:
        return "no name"
    return "" if _is_unicode(member.name) else "name not in UTF-8"


def _is_unicode(name: str) -> bool:
    # tarfile keeps bytes that are no UTF-8 as lone surrogates.
    return name.isascii() or not any("\ud800" <= character <= "\udfff" for character in name)


def _frame(rows: list[tuple[str, int, int, str]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=INDEX_SCHEMA, orient="row")


def _unpacking(path: Path, command: str, suffixes: tuple[str, ...]) -> str:
    """The command that undoes a compression. A file without the suffix it insists on is renamed first."""
    name = shlex.quote(str(path))
    if path.suffix.lower() in suffixes:
        return f"{command} {name}"
    renamed = shlex.quote(f"{path}{suffixes[0]}")
    return f"mv {name} {renamed} && {command} {renamed}"
