"""Real tars, written here: what is indexed, what is refused, and in which words."""

import gc
import gzip
import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pytest

from abo_pipeline.archive import INDEX_SCHEMA, Archive
from abo_pipeline.errors import ArchiveError

CATALOGUE = "images/metadata/images.csv.gz"


def plain(name: str, content: bytes = b"") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info, content


def special(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = target
    return info, b""


def write_tar(path: Path, members: list[tuple[tarfile.TarInfo, bytes]], tar_format: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tar_format, encoding="utf-8") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return path


def abo_members(images: int = 40) -> list[tuple[tarfile.TarInfo, bytes]]:
    """The layout of the official archive, with noise for pictures."""
    listing = gzip.compress(b"image_id,height,width,path\n")
    pictures = [
        plain(f"images/small/{n:02x}/{n:02x}{n:06x}.jpg", hashlib.shake_128(bytes([n])).digest(n * 997 % 3000))
        for n in range(images)
    ]
    return [plain("LICENSE-CC-BY-4.0.txt", b"CC BY 4.0\n"), plain(CATALOGUE, listing), *pictures]


@pytest.fixture
def abo_tar(tmp_path: Path) -> Path:
    return write_tar(tmp_path / "data" / "abo-images-small.tar", abo_members())


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "mounted"
    folder.mkdir()
    yield folder
    folder.chmod(0o755)


def as_tarfile_sees_it(path: Path) -> pl.DataFrame:
    with tarfile.open(path) as tar:
        rows = [
            (
                info.name,
                info.offset_data,
                info.size,
                hashlib.blake2b(content.read(), digest_size=16).hexdigest(),
            )
            for info in tar
            if (content := tar.extractfile(info)) is not None
        ]
    return pl.DataFrame(rows, schema=INDEX_SCHEMA, orient="row")


def refusal(path: Path, index_folder: Path | None = None) -> str:
    with pytest.raises(ArchiveError) as caught:
        Archive.open(path, index_folder)
    return str(caught.value)


# --- What is indexed ---


def test_the_index_is_what_tarfile_sees(abo_tar):
    expected = as_tarfile_sees_it(abo_tar)

    with Archive.open(abo_tar) as archive:
        assert archive.index.equals(expected)
        assert archive.skipped == {}
        assert archive.bytes == abo_tar.stat().st_size
        assert [archive.read(member) for member in archive.index["member"]] == [c for _, c in abo_members()]


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_folders_and_dotted_paths_are_understood_in_each_tar_format(tmp_path, tar_format):
    folder = special("./images", tarfile.DIRTYPE)
    path = write_tar(tmp_path / "a.tar", [folder, plain("./images//small/./a.jpg", b"a")], tar_format)

    with Archive.open(path) as archive:
        assert archive.index["member"].to_list() == ["images/small/a.jpg"]
        assert archive.read("images/small/a.jpg") == b"a"
        assert archive.skipped == {}


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_unicode_names_are_read_in_index_order(tmp_path, tar_format):
    members = [
        plain("images/small/スニーカー/赤い靴.jpg", b"shoe"),
        plain(f"images/{'deep/' * 60}chair.jpg", b"chair"),
        plain(f"images/{'ü' * 120}.jpg", b"umlauts"),
    ]
    path = write_tar(tmp_path / "names.tar", members, tar_format)

    with Archive.open(path) as archive:
        rows = archive.index.select("offset", "size").rows()
        assert archive.index["member"].to_list() == [info.name for info, _ in members]
        assert [archive.read_at(*row) for row in rows] == [b"shoe", b"chair", b"umlauts"]
        assert archive.index["offset"].is_sorted()


def test_an_empty_archive_has_an_empty_index(tmp_path):
    with Archive.open(write_tar(tmp_path / "a.tar", [])) as archive:
        assert archive.index.schema == INDEX_SCHEMA
        assert archive.index.is_empty()


def test_an_archive_of_more_members_than_one_frame_takes_is_indexed_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("abo_pipeline.archive._ROWS_A_FRAME", 7)
    path = write_tar(tmp_path / "a.tar", abo_members(images=30))

    with Archive.open(path) as archive:
        assert archive.index.equals(as_tarfile_sees_it(path))


def test_members_already_indexed_are_let_go(abo_tar, monkeypatch):
    monkeypatch.setattr("abo_pipeline.archive._MEMBERS_A_REPORT", 40)
    alive = []

    def count(_done: int, _total: int | None) -> None:
        alive.append(sum(isinstance(thing, tarfile.TarInfo) for thing in gc.get_objects()))

    gc.collect()
    Archive.open(abo_tar, progress=count).close()

    assert alive[0] < 5


def test_progress_ends_with_all_bytes(abo_tar, monkeypatch):
    monkeypatch.setattr("abo_pipeline.archive._MEMBERS_A_REPORT", 10)
    reports = []

    Archive.open(abo_tar, progress=lambda done, total: reports.append((done, total))).close()

    total = abo_tar.stat().st_size
    assert reports == sorted(reports)
    assert len(reports) == 5
    assert reports[-1] == (total, total)


# --- What is left out ---


def sparse(name: str) -> tuple[tarfile.TarInfo, bytes]:
    """GNU's sparse format 1.0: the map of the filled parts comes before the data."""
    info, content = plain(f"GNUSparseFile.0/{name}", b"1\n0\n5\n".ljust(512, b"\0") + b"hello")
    info.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": name,
        "GNU.sparse.realsize": "100000",
    }
    return info, content


def test_a_hostile_archive_yields_its_safe_members_and_writes_nothing(tmp_path):
    folder = tmp_path / "inside"
    path = write_tar(
        folder / "hostile.tar",
        [
            plain("safe/first.jpg", b"first"),
            plain("/etc/cron.d/absolute", b"evil"),
            plain("../escaped.jpg", b"evil"),
            plain("safe/../../escaped.jpg", b"evil"),
            special("safe/link.jpg", tarfile.SYMTYPE, "/etc/passwd"),
            special("safe/hard.jpg", tarfile.LNKTYPE, "safe/first.jpg"),
            special("safe/disk", tarfile.BLKTYPE),
            special("safe/terminal", tarfile.CHRTYPE),
            special("safe/pipe", tarfile.FIFOTYPE),
            special("safe/odd", b"Z"),
            sparse("safe/sparse.jpg"),
            plain("safe/twice.jpg", b"old"),
            plain("./safe/twice.jpg", b"new"),
            plain("safe/name\udcff.jpg", b"latin"),
            plain("safe/last.jpg", b"last"),
        ],
        tarfile.PAX_FORMAT,
    )

    with Archive.open(path) as archive:
        contents = {member: archive.read(member) for member in archive.index["member"]}
        assert archive.skipped == {
            "absolute path": 1,
            "device": 2,
            "duplicate": 1,
            "fifo": 1,
            "hard link": 1,
            "name not in UTF-8": 1,
            "path through ..": 2,
            "sparse file": 1,
            "symbolic link": 1,
            "unknown type": 1,
        }

    assert contents == {"safe/first.jpg": b"first", "safe/twice.jpg": b"new", "safe/last.jpg": b"last"}
    assert sorted(file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*")) == [
        "inside",
        "inside/hostile.tar",
        "inside/hostile.tar.index.parquet",
    ]


def test_the_counts_of_what_was_left_out_are_kept_with_the_index(tmp_path):
    path = write_tar(tmp_path / "a.tar", [special("link", tarfile.SYMTYPE, "/etc/passwd"), plain("a", b"a")])
    Archive.open(path).close()

    with Archive.open(path) as again:
        assert again.skipped == {"symbolic link": 1}


# --- The index that is kept ---


def identity(path: Path) -> tuple[int, int, int]:
    """Of a file that is not written again. When it was last read is no part of it."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def test_an_unchanged_archive_is_not_indexed_again(abo_tar):
    with Archive.open(abo_tar) as first:
        written = identity(first.index_path)
    reports = []

    with Archive.open(abo_tar, progress=lambda *report: reports.append(report)) as second:
        assert second.index.equals(first.index)
        assert identity(second.index_path) == written
        assert reports == []


def test_a_changed_archive_is_indexed_again(abo_tar):
    Archive.open(abo_tar).close()
    write_tar(abo_tar, [plain("images/new.jpg", b"new")])

    with Archive.open(abo_tar) as archive:
        assert archive.index["member"].to_list() == ["images/new.jpg"]


def test_a_change_that_keeps_the_size_is_seen_by_the_time(abo_tar):
    with Archive.open(abo_tar) as before:
        offset, size, digest = before.index.row(-1)[1:]
    with abo_tar.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(size))
    os.utime(abo_tar, ns=(0, before._mtime_ns + 1))

    with Archive.open(abo_tar) as after:
        assert after.index.row(-1)[1:] == (
            offset,
            size,
            hashlib.blake2b(bytes(size), digest_size=16).hexdigest(),
        )
        assert after.index.row(-1)[3] != digest


@pytest.mark.parametrize("damage", ["garbage", "cut", "empty", "other columns"])
def test_an_index_that_cannot_be_used_is_made_anew(abo_tar, damage):
    with Archive.open(abo_tar) as archive:
        kept = archive.index_path
    whole = kept.read_bytes()
    if damage == "other columns":
        pl.DataFrame({"a": [1]}).write_parquet(kept, metadata=pl.read_parquet_metadata(kept))
    else:
        kept.write_bytes({"garbage": b"PAR1" * 9, "cut": whole[: len(whole) // 2], "empty": b""}[damage])

    with Archive.open(abo_tar) as again:
        assert again.index.equals(as_tarfile_sees_it(abo_tar))
        assert pl.read_parquet(kept).equals(again.index)


def test_an_index_of_an_older_format_is_made_anew(abo_tar, monkeypatch):
    Archive.open(abo_tar).close()
    monkeypatch.setattr("abo_pipeline.archive.INDEX_VERSION", 2)
    reports = []

    Archive.open(abo_tar, progress=lambda *report: reports.append(report)).close()

    assert reports


def test_an_index_moves_with_its_archive(abo_tar, tmp_path):
    Archive.open(abo_tar).close()
    moved = abo_tar.parent.rename(tmp_path / "elsewhere")
    reports = []

    Archive.open(moved / abo_tar.name, progress=lambda *report: reports.append(report)).close()

    assert reports == []


def test_beside_a_read_only_archive_nothing_is_written(read_only, tmp_path):
    path = write_tar(read_only / "a.tar", abo_members())
    read_only.chmod(0o555)

    with Archive.open(path, tmp_path / "state") as archive:
        assert archive.index_path == tmp_path / "state" / "a.tar.index.parquet"
    assert list(read_only.iterdir()) == [path]


def test_an_index_beside_a_read_only_archive_is_used(read_only, tmp_path):
    path = write_tar(read_only / "a.tar", abo_members())
    Archive.open(path).close()
    read_only.chmod(0o555)

    with Archive.open(path, tmp_path / "state") as archive:
        assert archive.index_path.parent == read_only
    assert not (tmp_path / "state").exists()


def test_namesakes_of_equal_size_and_time_do_not_share_an_index(tmp_path):
    contents = {}
    for name in ("one", "two"):
        path = write_tar(tmp_path / name / "a.tar", [plain(f"{name}.jpg", name.encode())])
        os.utime(path, ns=(0, 0))
        path.parent.chmod(0o555)
        with Archive.open(path, tmp_path / "state") as archive:
            contents[name] = archive.index["member"].to_list()
        path.parent.chmod(0o755)

    assert contents == {"one": ["one.jpg"], "two": ["two.jpg"]}


def test_without_any_place_for_the_index_the_remedy_is_named(read_only):
    path = write_tar(read_only / "a.tar", abo_members())
    read_only.chmod(0o555)

    assert refusal(path) == (
        f"The index of {path} cannot be written: {read_only} is read-only. Give a folder to keep it in."
    )


def test_an_index_that_cannot_be_written_names_its_place(abo_tar):
    place = abo_tar.with_name(abo_tar.name + ".index.parquet")
    place.mkdir()

    assert refusal(abo_tar) == (
        f"The index of {abo_tar} cannot be written to {place}: Is a directory."
        " Make room, or give another folder to keep it in."
    )
    assert sorted(abo_tar.parent.iterdir()) == [abo_tar, place]


# --- Reading ---


def test_eight_threads_read_the_right_bytes_at_once(abo_tar):
    members = abo_members()[::-1] * 25

    with Archive.open(abo_tar) as archive, ThreadPoolExecutor(8) as threads:
        contents = list(threads.map(lambda member: archive.read(member[0].name), members))

    assert contents == [content for _, content in members]


def test_a_missing_member_is_named_with_what_there_is_instead(tmp_path):
    path = write_tar(tmp_path / "listings.tar", [plain("listings/metadata/l.json.gz"), plain("docs/a"), plain("b")])

    with Archive.open(path) as archive, pytest.raises(ArchiveError) as caught:
        archive.read(CATALOGUE)

    assert str(caught.value) == (
        f"{path} holds no member '{CATALOGUE}'; its top-level folders are docs, listings."
        " Check that it is the archive you mean."
    )


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([], "it is empty"),
        (["a.jpg"], "it has no folders"),
        (
            [f"{n:02}/a.jpg" for n in range(12)],
            f"its top-level folders are {', '.join(f'{n:02}' for n in range(10))} and 2 more",
        ),
    ],
)
def test_what_there_is_is_said_of_any_archive(tmp_path, members, words):
    path = write_tar(tmp_path / "a.tar", [plain(member) for member in members])

    with Archive.open(path) as archive, pytest.raises(ArchiveError) as caught:
        archive.read("missing")

    assert f"'missing'; {words}. Check" in str(caught.value)


def test_an_archive_that_changes_while_it_is_open_is_not_read_on(abo_tar):
    with Archive.open(abo_tar) as archive:
        os.utime(abo_tar, ns=(0, 1))

        with pytest.raises(ArchiveError) as caught:
            archive.read(CATALOGUE)

    assert str(caught.value) == (f"{abo_tar} changed while it was being read. Run again to index it as it is now.")


def test_an_archive_that_is_replaced_while_it_is_open_is_read_as_it_was(abo_tar, tmp_path):
    with Archive.open(abo_tar) as archive:
        write_tar(tmp_path / "new.tar", []).replace(abo_tar)

        assert archive.read("LICENSE-CC-BY-4.0.txt") == b"CC BY 4.0\n"


def test_an_archive_that_grows_while_it_is_indexed_is_refused(abo_tar, monkeypatch):
    monkeypatch.setattr("abo_pipeline.archive._MEMBERS_A_REPORT", 10)

    def grow(_done: int, _total: int | None) -> None:
        with abo_tar.open("ab") as file:
            file.write(bytes(512))

    with pytest.raises(ArchiveError) as caught:
        Archive.open(abo_tar, progress=grow)

    assert str(caught.value) == f"{abo_tar} changed while it was being indexed. Run again when it is complete."
    assert list(abo_tar.parent.iterdir()) == [abo_tar]


def test_reading_past_the_end_says_so(abo_tar):
    with Archive.open(abo_tar) as archive, pytest.raises(ArchiveError) as caught:
        archive.read_at(archive.bytes - 4, 10)

    size = abo_tar.stat().st_size
    assert str(caught.value) == (
        f"{abo_tar} gave 4 of 10 bytes from byte {size - 4:,} on, for it ends at {size:,}."
        " Take offset and size from the index of this archive."
    )


def test_a_closed_archive_says_so(abo_tar):
    archive = Archive.open(abo_tar)
    archive.close()

    with pytest.raises(ArchiveError, match=r"has been closed\. Open it again to read from it\.$"):
        archive.read(CATALOGUE)


# --- What is refused, and in which words ---


def test_a_missing_file_is_refused(tmp_path):
    path = tmp_path / "a.tar"

    assert refusal(path) == f"{path} does not exist. Give the path of an archive, or a URL to fetch it from."


def test_a_folder_is_refused(tmp_path):
    assert refusal(tmp_path) == f"{tmp_path} is a folder. Give the path of the .tar file itself."


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    path = tmp_path / "a.tar"
    os.mkfifo(path)

    assert refusal(path) == f"{path} is no regular file. Give the path of the .tar file itself."


def test_an_empty_file_is_refused(tmp_path):
    path = tmp_path / "a.tar"
    path.touch()

    assert refusal(path) == f"{path} is empty. Delete it and fetch it again."


def test_a_web_page_under_the_name_of_a_tar_is_refused(tmp_path):
    path = tmp_path / "a.tar"
    path.write_text("\n<!DOCTYPE html><title>403 Forbidden</title>" + " " * 1000)

    assert refusal(path) == (
        f"{path} is no tar: it begins with '<', so it is a web page, probably an error page, saved as a tar."
        " Delete it, see in a browser what the URL says, and fetch it again."
    )


@pytest.mark.parametrize("content", [b"short", b"image_id,height,width,path\n" * 100])
def test_a_file_that_is_no_tar_is_refused(tmp_path, content):
    path = tmp_path / "a.tar"
    path.write_bytes(content)

    assert refusal(path) == f"{path} is no tar. Check that it is the file you mean, or fetch it again."


@pytest.mark.parametrize(
    ("mode", "name", "kind", "command"),
    [
        ("w:gz", "abo.tar.gz", "gzip", "gunzip {0}.gz"),
        ("w:gz", "abo.tgz", "gzip", "gunzip {0}"),
        ("w:gz", "abo.tar", "gzip", "mv {0} {0}.gz && gunzip {0}.gz"),
        ("w:bz2", "abo.tar.bz2", "bzip2", "bunzip2 {0}.bz2"),
        ("w:xz", "abo.tar.xz", "xz", "unxz {0}.xz"),
    ],
)
def test_a_compressed_tar_is_refused_with_the_command_that_helps(tmp_path, mode, name, kind, command):
    path = tmp_path / name
    with tarfile.open(path, mode) as tar:
        tar.addfile(plain("a.jpg")[0])
    stem = path.with_suffix("") if path.suffix in (".gz", ".bz2", ".xz") else path

    assert refusal(path) == (
        f"{path} is compressed with {kind}, but members are read by their offset in an uncompressed tar."
        f" Run `{command.format(stem)}` and give the path of the tar that it leaves."
    )


@pytest.mark.skipif(not shutil.which("gunzip"), reason="gunzip is not installed")
@pytest.mark.parametrize("name", ["abo images.tar", "abo images.tar.gz"])
def test_the_command_that_is_named_does_help(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(write_tar(tmp_path / "plain.tar", abo_members()).read_bytes()))
    command = refusal(path).split("`")[1]

    assert os.system(command) == 0  # noqa: S605 - the very line that a user would paste
    with Archive.open(tmp_path / "abo images.tar") as archive:
        assert archive.index.height == 42


def last_whole(path: Path, members: int) -> tuple[str, int]:
    name, offset, size, _ = as_tarfile_sees_it(path).row(members - 1)
    return name, offset + size


def test_a_tar_cut_within_a_member_is_refused_with_the_last_whole_one(abo_tar):
    seen = as_tarfile_sees_it(abo_tar)
    name, offset, size, _ = seen.row(20)
    before, end_before = last_whole(abo_tar, 20)
    os.truncate(abo_tar, offset + 1)

    assert size > 1
    assert refusal(abo_tar) == (
        f"{abo_tar} is truncated: it has {offset + 1:,} bytes, and its member '{name}' would end at byte"
        f" {offset + size:,}; the last whole member is '{before}', which ends at byte {end_before:,}."
        " Delete it and fetch it again."
    )
    assert list(abo_tar.parent.iterdir()) == [abo_tar]


@pytest.mark.parametrize(
    ("into", "words"),
    [
        (0, "it ends without the end-of-archive mark"),
        (1, "it ends within a header"),
        (511, "it ends within a header"),
    ],
)
def test_a_tar_cut_at_or_within_a_header_is_refused(abo_tar, into, words):
    header = as_tarfile_sees_it(abo_tar).row(20)[1] - 512
    name, end = last_whole(abo_tar, 20)
    os.truncate(abo_tar, header + into)

    assert refusal(abo_tar) == (
        f"{abo_tar} is truncated: it has {header + into:,} bytes, and {words};"
        f" the last whole member is '{name}', which ends at byte {end:,}. Delete it and fetch it again."
    )


def test_a_tar_cut_at_any_byte_is_refused(tmp_path):
    path = write_tar(
        tmp_path / "a.tar",
        [plain("a.jpg", b"a" * 700), plain("ü" * 120, b"b" * 10), sparse("s"), plain("c.jpg", b"c")],
    )
    whole = path.read_bytes()
    with Archive.open(path) as archive:
        end = archive.index["offset"][-1] + 512

    for size in [*range(1, end, 97), *range(512, end + 1, 512)]:
        path.write_bytes(whole[:size])
        message = refusal(path, tmp_path)
        assert "truncated" in message or "no tar" in message or (size < 512 and "damaged" in message), size


def test_a_damaged_header_in_the_midst_is_not_taken_for_the_end(abo_tar):
    header = as_tarfile_sees_it(abo_tar).row(20)[1] - 512
    name, end = last_whole(abo_tar, 20)
    with abo_tar.open("r+b") as file:
        file.seek(header)
        file.write(b"\xff" * 20)

    assert refusal(abo_tar) == (
        f"{abo_tar} is damaged: what stands at byte {header:,} of {abo_tar.stat().st_size:,} is neither a"
        " header nor the end of the archive;"
        f" the last whole member is '{name}', which ends at byte {end:,}. Delete it and fetch it again."
    )


def test_a_damaged_first_header_is_told_from_a_file_that_is_no_tar(abo_tar):
    with abo_tar.open("r+b") as file:
        file.write(b"x")

    assert refusal(abo_tar) == (
        f"{abo_tar} is damaged: what stands at byte 0 of {abo_tar.stat().st_size:,} is neither a header"
        " nor the end of the archive; no member of it is whole. Delete it and fetch it again."
    )


def test_a_damaged_header_behind_a_long_name_is_not_called_truncated(tmp_path):
    path = write_tar(tmp_path / "a.tar", [plain("a.jpg", b"a"), plain("b" * 150, b"b"), plain("c.jpg", b"c")])
    with Archive.open(path) as archive:
        header = archive.index["offset"][1] - 512
        before = archive.index["offset"][0] + 1
    with path.open("r+b") as file:
        file.seek(header)
        file.write(b"\xff" * 20)

    assert f"{path} is damaged: " in refusal(path)
    assert f"the last whole member is 'a.jpg', which ends at byte {before:,}." in refusal(path)


def test_a_member_of_negative_size_is_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar", [plain("a.jpg", b"a"), plain("b.jpg", b"b")], tarfile.GNU_FORMAT)
    content = bytearray(path.read_bytes())
    header = bytearray(content[1024:1536])
    header[124:136] = (-512 & (1 << 96) - 1).to_bytes(12, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    content[1024:1536] = header
    path.write_bytes(content)

    assert f"{path} is damaged: what stands at byte 1,024" in refusal(path)


def test_two_archives_in_one_file_are_refused(abo_tar):
    first = abo_tar.read_bytes()
    abo_tar.write_bytes(first + first)
    end = as_tarfile_sees_it(abo_tar).select(pl.col("offset") + pl.col("size")).item(-1, 0)
    mark = -(-end // 512) * 512

    assert refusal(abo_tar) == (
        f"{abo_tar} goes on after its end-of-archive mark at byte {mark:,}: it is several archives in"
        " one file, or damaged. Give a file that is one archive, or fetch it again."
    )
