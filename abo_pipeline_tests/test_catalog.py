"""Small archives in ABO's layout, written here: which rows are kept, why the others are not, and what is refused."""

import gzip
import hashlib
import os
import random
import tarfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from abo_pipeline.archive import Archive
from abo_pipeline.catalog import (
    COLUMN_MEANINGS,
    CSV_MEMBER,
    IMAGE_FOLDER,
    REASONS,
    SCHEMA,
    Audit,
    Catalogue,
    audit,
    member_name,
    read_catalogue,
)
from abo_pipeline.errors import AboError, ArchiveError, CatalogError
from abo_pipeline.sampling import sample_key
from abo_pipeline_tests.archives import write_tar

# Read before the tests' fixture clears the variables.
SLICE = os.environ.get("ABO_TEST_SLICE", "")

HEADER = "image_id,height,width,path\n"
GOOD = "good,1200,1100,aa/good.jpg\n"
"""A row that is kept, for what stands beside it."""

FILES = ("aa/good.jpg", "bb/other.jpg")


def open_archive(folder: Path, members: dict[str, bytes]) -> Archive:
    return Archive.open(write_tar(folder / "abo.tar", members))


def open_abo(folder: Path, csv: str | bytes, files: tuple[str, ...] | dict[str, bytes] = FILES) -> Archive:
    """An archive with this csv, compressed, and these image files."""
    contents = files if isinstance(files, dict) else {name: f"bytes of {name}".encode() for name in files}
    text = csv.encode() if isinstance(csv, str) else csv
    images = {IMAGE_FOLDER + name: content for name, content in contents.items()}
    return open_archive(folder, {CSV_MEMBER: gzip.compress(text), **images})


def read(folder: Path, csv: str | bytes, files: tuple[str, ...] = FILES, min_side: int = 1000) -> Catalogue:
    with open_abo(folder, csv, files) as archive:
        return read_catalogue(archive, min_side=min_side)


def expected(path: Path, rows: list[tuple[str, str, int, int]]) -> pl.DataFrame:
    """The frame of (image_id, path, width, height), with what Python's own tarfile says of the files."""
    found = []
    with tarfile.open(path) as tar:
        for image_id, name, width, height in rows:
            info = tar.getmember(IMAGE_FOLDER + name)
            digest = hashlib.blake2b(tar.extractfile(info).read(), digest_size=16).hexdigest()
            found.append((image_id, name, width, height, sample_key(image_id), info.offset_data, info.size, digest))
    return pl.DataFrame(sorted(found, key=lambda row: row[4]), schema=SCHEMA, orient="row")


def dropped(**counts: int) -> dict[str, int]:
    """Every reason; those not named with 0."""
    named = {reason.replace("_", " "): count for reason, count in counts.items()}
    return {reason: named.get(reason, 0) for reason in REASONS}


def refusal(archive: Archive, *, min_side: int = 1000) -> tuple[type[AboError], str]:
    with pytest.raises(AboError) as caught:
        read_catalogue(archive, min_side=min_side)
    return type(caught.value), str(caught.value)


# --- What is kept, and what is not ---


def test_a_catalogue_of_every_kind_of_row(tmp_path):
    files = ("0c/0cd7596c.jpg", "aa/good.jpg", "bb/wide.PNG", "cc/tall.jpeg", "dd/vector.svg", "ee/small.jpg")
    csv = HEADER + (
        "41++65Gq75L,1000,1000,0c/0cd7596c.jpg\n"  # the boundary itself
        "010-mllS7JL,106,106,ee/small.jpg\n"  # too small
        "good,1200,1100,aa/good.jpg\n"
        "good,1200,1100,aa/good.jpg\n"  # duplicate
        "wide,1000,40000,bb/wide.PNG\n"
        "tall,40000,1000,cc/tall.jpeg\n"
        "narrow,1000,999,aa/good.jpg\n"  # too small
        "low,999,1000,aa/good.jpg\n"  # too small
        "vector,2000,2000,dd/vector.svg\n"  # unsupported
        "lost,2000,2000,zz/lost.jpg\n"  # not in the archive
        "broken,tall,2000,aa/good.jpg\n"  # malformed
    )

    with open_abo(tmp_path, csv, files) as archive:
        catalogue = read_catalogue(archive, min_side=1000)

    assert_frame_equal(
        catalogue.kept,
        expected(
            archive.path,
            [
                ("41++65Gq75L", "0c/0cd7596c.jpg", 1000, 1000),
                ("good", "aa/good.jpg", 1100, 1200),
                ("wide", "bb/wide.PNG", 40000, 1000),
                ("tall", "cc/tall.jpeg", 1000, 40000),
            ],
        ),
    )
    assert catalogue.dropped == {
        "malformed row": 1,
        "duplicate id": 1,
        "unsupported type": 1,
        "too small": 3,
        "not in the archive": 1,
    }
    assert catalogue.rows == 11


def test_each_column_has_a_meaning():
    assert list(COLUMN_MEANINGS) == SCHEMA.names()


@pytest.mark.parametrize(
    ("height", "width", "kept"),
    [(1000, 1000, 1), (999, 1000, 0), (1000, 999, 0), (999, 999, 0), (1001, 1000, 1), (100_000, 999, 0)],
)
def test_both_sides_must_reach_the_least(tmp_path, height, width, kept):
    catalogue = read(tmp_path, f"{HEADER}{GOOD}other,{height},{width},bb/other.jpg\n")

    assert (len(catalogue.kept), catalogue.dropped) == (1 + kept, dropped(too_small=1 - kept))


@pytest.mark.parametrize(("min_side", "kept"), [(0, 3), (1, 3), (2, 2), (500, 2), (501, 1)])
def test_the_least_is_a_setting(tmp_path, min_side, kept):
    csv = HEADER + "a,501,501,aa/good.jpg\nb,500,9999,aa/good.jpg\nc,1,1,aa/good.jpg\n"

    assert len(read(tmp_path, csv, min_side=min_side).kept) == kept


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        # Each of these is also all that stands below it.
        ("bad id,x,999,zz/lost.svg", "malformed row"),
        ("good,999,999,zz/lost.svg", "duplicate id"),
        ("other,999,999,zz/lost.svg", "unsupported type"),
        ("other,999,999,zz/lost.jpg", "too small"),
        ("other,1000,1000,zz/lost.jpg", "not in the archive"),
    ],
)
def test_a_row_to_which_several_reasons_apply_counts_under_the_first(tmp_path, row, reason):
    catalogue = read(tmp_path, f"{HEADER}{GOOD}{row}\n")

    assert catalogue.dropped == dict.fromkeys(REASONS, 0) | {reason: 1}


def test_of_two_rows_with_one_id_the_first_is_kept(tmp_path):
    csv = HEADER + "twin,1000,1001,aa/good.jpg\ntwin,2000,2001,bb/other.jpg\ntwin ,3000,3001,bb/other.jpg\n"

    catalogue = read(tmp_path, csv)

    assert catalogue.kept.select("image_id", "path", "width").rows() == [("twin", "aa/good.jpg", 1001)]
    assert catalogue.dropped == dropped(duplicate_id=2)


def test_a_broken_row_does_not_cost_the_good_one_with_its_id(tmp_path):
    csv = HEADER + "twin,?,1001,aa/good.jpg\ntwin,2000,2001,bb/other.jpg\ntwin,,1,bb/other.jpg\n"

    catalogue = read(tmp_path, csv)

    assert catalogue.kept.select("image_id", "path", "width").rows() == [("twin", "bb/other.jpg", 2001)]
    assert catalogue.dropped == dropped(malformed_row=2)


def test_two_ids_may_name_one_file(tmp_path):
    catalogue = read(tmp_path, HEADER + "one,1000,1000,aa/good.jpg\ntwo,1000,1000,aa/good.jpg\n")

    assert sorted(catalogue.kept.select("image_id", "path").rows()) == [("one", "aa/good.jpg"), ("two", "aa/good.jpg")]


@pytest.mark.parametrize(
    "path", ["bb/a.JPG", "bb/a.Jpeg", "bb/a.png", "bb/a.webp", "bb/a.gif", "bb/a.BMP", "bb/a.tif", "bb/a.tiff"]
)
def test_a_type_is_supported_in_either_case(tmp_path, path):
    catalogue = read(tmp_path, f"{HEADER}{GOOD}other,1000,1000,{path}\n", ("aa/good.jpg", path))

    assert catalogue.dropped == dropped()


@pytest.mark.parametrize("path", ["bb/a.svg", "bb/a", "bb/jpg", "bb/a.jpg.gz", "bb.jpg/a", "bb/a.jpg/", "bb/a.jp2"])
def test_another_type_is_not(tmp_path, path):
    catalogue = read(tmp_path, f"{HEADER}{GOOD}other,1000,1000,{path}\n", ("aa/good.jpg", path))

    assert catalogue.dropped == dropped(unsupported_type=1)


@pytest.mark.parametrize("path", ["images/small/aa/good.jpg", "AA/good.jpg", "../small/aa/good.jpg", "aa\\good.jpg"])
def test_a_file_is_found_by_exactly_the_name_that_the_csv_has(tmp_path, path):
    catalogue = read(tmp_path, f"{HEADER}{GOOD}other,1000,1000,{path}\n")

    assert catalogue.dropped == dropped(not_in_the_archive=1)


def test_a_file_that_no_row_names_is_nothing(tmp_path):
    catalogue = read(tmp_path, HEADER + GOOD, (*FILES, "cc/third.jpg"))

    assert (catalogue.rows, len(catalogue.kept)) == (1, 1)


def test_files_outside_the_folder_of_images_are_not_found(tmp_path):
    members = {CSV_MEMBER: gzip.compress((HEADER + GOOD).encode()), "images/original/aa/good.jpg": b"x"}

    with open_archive(tmp_path, members) as archive:
        message = refusal(archive)

    assert message == (
        CatalogError,
        "None of the 1 images in abo.tar is kept (1 not in the archive). "
        "Lower ABO_MIN_SIDE (now 1000), or use another archive.",
    )


# --- The order and the digest ---


def test_the_catalogue_is_ordered_by_sample_key_whatever_the_order_of_the_csv(tmp_path):
    rows = [f"image{number},1000,1000,aa/good.jpg\n" for number in range(200)]
    in_order = read(tmp_path, HEADER + "".join(rows))
    random.Random(1).shuffle(rows)  # noqa: S311 - no secret

    shuffled = read(tmp_path, HEADER + "".join(rows))

    assert shuffled.kept["sample_key"].is_sorted()
    assert shuffled.kept["image_id"].to_list() == sorted((row.split(",")[0] for row in rows), key=sample_key)
    assert_frame_equal(shuffled.kept, in_order.kept)


def test_files_with_the_same_bytes_have_the_same_digest(tmp_path):
    files = {"aa/1.jpg": b"same", "bb/2.jpg": b"same", "cc/3.jpg": b"other", "dd/4.jpg": b""}
    csv = HEADER + "".join(f"{name[3]},1000,1000,{name}\n" for name in files)

    with open_abo(tmp_path, csv, files) as archive:
        kept = read_catalogue(archive, min_side=1000).kept

    assert dict(kept.select("path", "digest").iter_rows()) == {
        name: hashlib.blake2b(content, digest_size=16).hexdigest() for name, content in files.items()
    }
    assert kept["digest"].n_unique() == 3


def test_offset_and_size_lead_to_the_bytes(tmp_path):
    with open_abo(tmp_path, HEADER + GOOD + "other,1000,1000,bb/other.jpg\n") as archive:
        kept = read_catalogue(archive, min_side=1000).kept
        contents = {row["path"]: archive.read_at(row["offset"], row["size"]) for row in kept.iter_rows(named=True)}

    assert contents == {name: f"bytes of {name}".encode() for name in FILES}


def test_the_member_of_a_path_is_below_the_folder_of_images():
    assert member_name("14/14fe8812.jpg") == "images/small/14/14fe8812.jpg"


# --- Cells that are odd ---


@pytest.mark.parametrize(
    "image_id",
    [
        "41++65Gq75L",
        "010-mllS7JL",
        "-",
        "+1",
        "_",
        "O'Neill",
        'half"quoted',
        '"quoted"',
        "null",
        "NA",
        "#1",
        "é",
        "照合",
    ],
)
def test_an_id_is_any_text_without_blanks(tmp_path, image_id):
    catalogue = read(tmp_path, f"{HEADER}{GOOD}{image_id},1000,1000,bb/other.jpg\n{GOOD}")

    assert sorted(catalogue.kept["image_id"]) == sorted(["good", image_id])
    assert catalogue.dropped == dropped(duplicate_id=1)


@pytest.mark.parametrize("image_id", ["", "   ", "two words", "tab\there", "nul\0", "bell\a", "no-break\u00a0space"])
def test_an_id_with_blanks_or_control_characters_is_malformed(tmp_path, image_id):
    catalogue = read(tmp_path, f"{HEADER}{GOOD}{image_id},1000,1000,bb/other.jpg\n")

    assert (len(catalogue.kept), catalogue.dropped) == (1, dropped(malformed_row=1))


def test_bytes_that_are_no_utf8_cost_their_own_row_alone(tmp_path):
    csv = (HEADER + GOOD).encode() + b"id\xff,1000,1000,bb/other.jpg\nid\xfe,1000,1000,bb/other.jpg\n"
    csv += b"other,1000,1000,bb/\xff.jpg\n"

    catalogue = read(tmp_path, csv)

    assert catalogue.kept["image_id"].to_list() == ["good"]
    assert catalogue.dropped == dropped(malformed_row=2, not_in_the_archive=1)


@pytest.mark.parametrize(
    "side", ["x", "", "-1000", "0", "1e4", "1000.0", "0x800", "1_000", "NaN", "99999999999", '"1000"']
)
@pytest.mark.parametrize("column", ["height", "width"])
def test_a_size_that_is_no_whole_number_above_zero_is_malformed(tmp_path, column, side):
    sides = {"height": "1000", "width": "1000"} | {column: side}

    catalogue = read(tmp_path, f"{HEADER}{GOOD}other,{sides['height']},{sides['width']},bb/other.jpg\n")

    assert (len(catalogue.kept), catalogue.dropped) == (1, dropped(malformed_row=1))


def test_blanks_around_a_cell_are_not_part_of_it(tmp_path):
    catalogue = read(tmp_path, f"{HEADER} other , 1000 ,\t1001 , bb/other.jpg \n")

    assert catalogue.kept.select("image_id", "path", "width", "height").rows() == [
        ("other", "bb/other.jpg", 1001, 1000)
    ]


def test_rows_that_are_too_short_are_malformed_and_what_is_too_much_is_cut_off(tmp_path):
    csv = HEADER + "short,1000\n" + GOOD + "\nother,1000,1000,bb/other.jpg,and,more\n,,,\n"

    catalogue = read(tmp_path, csv)

    assert sorted(catalogue.kept["image_id"]) == ["good", "other"]
    assert catalogue.dropped == dropped(malformed_row=3)


# --- The csv as a file ---


@pytest.mark.parametrize(
    "csv",
    [
        HEADER + GOOD,
        (HEADER + GOOD).rstrip("\n"),
        (HEADER + GOOD).replace("\n", "\r\n"),
        "\ufeff" + HEADER + GOOD,
        "path,width,height,image_id\naa/good.jpg,1100,1200,good\n",
        "n,path,width,colour,height,image_id,more\n1,aa/good.jpg,1100,red,1200,good,\n",
    ],
    ids=["plain", "no last newline", "windows", "byte order mark", "other order", "more columns"],
)
def test_a_csv_is_read_in_each_common_dress(tmp_path, csv):
    catalogue = read(tmp_path, csv)

    assert_frame_equal(catalogue.kept, expected(tmp_path / "abo.tar", [("good", "aa/good.jpg", 1100, 1200)]))
    assert catalogue.dropped == dropped()


def test_a_gzip_file_of_several_parts_is_read_whole(tmp_path):
    parts = gzip.compress(HEADER.encode()) + gzip.compress(GOOD.encode())

    with open_archive(tmp_path, {CSV_MEMBER: parts, f"{IMAGE_FOLDER}aa/good.jpg": b"x"}) as archive:
        assert len(read_catalogue(archive, min_side=1000).kept) == 1


@pytest.mark.parametrize(
    ("csv", "message"),
    [
        ("", f"{CSV_MEMBER} in abo.tar cannot be read: it is empty."),
        (HEADER, f"{CSV_MEMBER} in abo.tar has a header but no rows."),
        (HEADER.rstrip("\n"), f"{CSV_MEMBER} in abo.tar has a header but no rows."),
        (
            "image_id,size,path\ngood,1000,aa/good.jpg\n",
            f"{CSV_MEMBER} in abo.tar lacks the column(s) height, width; it has image_id, size, path. "
            "Is this an ABO image archive?",
        ),
        (
            GOOD,
            f"{CSV_MEMBER} in abo.tar lacks the column(s) image_id, height, width, path; "
            "it has good, 1200, 1100, aa/good.jpg. Is this an ABO image archive?",
        ),
    ],
    ids=["empty", "header", "header without newline", "columns missing", "no header"],
)
def test_a_csv_that_is_no_catalogue_is_refused(tmp_path, csv, message):
    with open_abo(tmp_path, csv) as archive:
        assert refusal(archive) == (CatalogError, message)


COMPRESSED = gzip.compress((HEADER + "".join(f"image{n},1000,1000,aa/good.jpg\n" for n in range(99))).encode(), mtime=0)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (COMPRESSED[:-100], "Compressed file ended before the end-of-stream marker was reached"),
        (COMPRESSED[:-3], "Compressed file ended before the end-of-stream marker was reached"),
        (COMPRESSED[:5], "Compressed file ended before the end-of-stream marker was reached"),
        (COMPRESSED[:-8] + bytes(8), "CRC check failed"),
        (COMPRESSED[:10] + b"\xff" + COMPRESSED[11:], "Error -3 while decompressing data: invalid block type"),
        (HEADER.encode(), "Not a gzipped file (b'im')"),
    ],
    ids=["cut", "cut in the trailer", "cut in the header", "wrong checksum", "damaged", "not compressed"],
)
def test_a_csv_that_cannot_be_unpacked_is_refused(tmp_path, content, reason):
    with open_archive(tmp_path, {CSV_MEMBER: content}) as archive:
        assert refusal(archive) == (CatalogError, f"{CSV_MEMBER} in abo.tar is no readable gzip file: {reason}.")


def test_a_gzip_file_with_any_one_byte_changed_is_read_or_refused_and_never_misread():
    draw = random.Random(2)  # noqa: S311 - no secret
    whole = (HEADER + GOOD * 30).encode()
    compressed = gzip.compress(whole, mtime=0)
    outcomes = Counter()

    for position in range(len(compressed)):
        damaged = bytearray(compressed)
        damaged[position] ^= 1 + draw.randrange(255)
        archive = StandIn(bytes(damaged), pl.DataFrame({"member": [f"{IMAGE_FOLDER}aa/good.jpg"], **FILE}))
        try:
            outcomes[read_catalogue(archive, min_side=1000).rows] += 1
        except CatalogError:
            outcomes["refused"] += 1

    # A change of the header's time stamp or flags of no consequence is nothing.
    assert set(outcomes) == {30, "refused"}
    assert outcomes["refused"] > outcomes[30]


def test_an_archive_without_the_csv_says_what_it_should_hold(tmp_path):
    with open_archive(tmp_path, {"listings/metadata/listings_0.json.gz": b""}) as archive:
        message = refusal(archive)

    assert message == (
        ArchiveError,
        f"{tmp_path / 'abo.tar'} holds no member '{CSV_MEMBER}'; its top-level folders are listings. "
        f"Check that it is the archive you mean. An ABO image archive holds {CSV_MEMBER}.",
    )


def test_a_catalogue_of_which_nothing_is_kept_is_refused_with_the_counts(tmp_path):
    csv = HEADER + "".join(f"small{n},999,1000,aa/good.jpg\n" for n in range(1_200))
    csv += "x,x,x,x\nsmall0,999,1000,aa/good.jpg\nlost,5000,5000,zz/lost.jpg\n"

    with open_abo(tmp_path, csv) as archive:
        message = refusal(archive)

    assert message == (
        CatalogError,
        "None of the 1,203 images in abo.tar is kept "
        "(1 malformed row, 1 duplicate id, 1,200 too small, 1 not in the archive). "
        "Lower ABO_MIN_SIDE (now 1000), or use another archive.",
    )


# --- The audit ---


AUDITED = HEADER + GOOD + "other,999,2000,bb/other.jpg\nbroken,x,2000,bb/other.jpg\n"


def test_the_audit_of_a_catalogue_as_it_should_be_finds_nothing(tmp_path):
    with open_abo(tmp_path, AUDITED) as archive:
        found = audit(read_catalogue(archive, min_side=1000).kept, archive, min_side=1000)

    assert found == Audit(rows=3, too_small=1, kept=1, smallest_side=1100, problems=())


def test_the_audit_finds_that_nothing_was_kept(tmp_path):
    with open_abo(tmp_path, AUDITED) as archive:
        found = audit(pl.DataFrame(schema=SCHEMA), archive, min_side=1000)

    assert found == Audit(rows=3, too_small=1, kept=0, smallest_side=None, problems=("none of 3 images was kept",))


def test_the_audit_finds_what_is_too_small(tmp_path):
    with open_abo(tmp_path, AUDITED) as archive:
        kept_with_less = read_catalogue(archive, min_side=900).kept
        found = audit(kept_with_less, archive, min_side=1000)

    assert found == Audit(
        rows=3,
        too_small=1,
        kept=2,
        smallest_side=999,
        problems=("an image with a side of 999 was kept; at least 1000 is asked for",),
    )


def test_the_audit_finds_that_everything_was_kept(tmp_path):
    csv = HEADER + GOOD + "other,999,2000,bb/other.jpg\n"

    with open_abo(tmp_path, csv) as archive:
        # As a filter would leave it that takes the sizes of the files for those of the originals.
        everything = read_catalogue(archive, min_side=1).kept.with_columns(width=5000, height=5000)
        found = audit(everything, archive, min_side=1000)

    assert found == Audit(
        rows=2,
        too_small=1,
        kept=2,
        smallest_side=5000,
        problems=("all 2 images were kept although 1 are too small",),
    )


def test_the_audit_has_nothing_against_an_archive_of_large_images_only(tmp_path):
    with open_abo(tmp_path, HEADER + GOOD) as archive:
        found = audit(read_catalogue(archive, min_side=1000).kept, archive, min_side=1000)

    assert found == Audit(rows=1, too_small=0, kept=1, smallest_side=1100, problems=())


# --- At the scale of the real one ---

FILE = {"offset": [512], "size": [1], "digest": ["00" * 16]}


@dataclass
class StandIn:
    """As much of an ``Archive`` as a catalogue is read from; a tar of 400,000 files takes long to write."""

    csv_gz: bytes
    index: pl.DataFrame
    path: Path = Path("abo-images-small.tar")

    def read(self, member: str) -> bytes:
        assert member == CSV_MEMBER
        return self.csv_gz


def test_398212_rows_of_which_342878_are_large_enough_in_seconds():
    rows, large = 398_212, 342_878
    draw = random.Random(3)  # noqa: S311 - no secret
    sides = [(draw.choice((1000, 1001, 2560)), draw.choice((1000, 1500))) for _ in range(large)]
    small = [(999, 1000), (1000, 999), (999, 999), (106, 106), (30, 5000)]
    sides += [small[number % len(small)] for number in range(rows - large)]
    draw.shuffle(sides)
    paths = [f"{number % 256:02x}/{number:08x}.jpg" for number in range(rows)]
    lines = [f"{number:011d},{sides[number][0]},{sides[number][1]},{paths[number]}" for number in range(rows)]
    index = pl.DataFrame({"member": [IMAGE_FOLDER + path for path in paths]}).with_columns(
        offset=pl.int_range(rows) * 8192, size=pl.lit(7400, pl.Int64), digest=pl.lit("00" * 16)
    )
    archive = StandIn(gzip.compress((HEADER + "\n".join(lines)).encode(), compresslevel=1), index)

    started = time.perf_counter()
    catalogue = read_catalogue(archive, min_side=1000)
    seconds = time.perf_counter() - started

    assert len(catalogue.kept) == large
    assert catalogue.dropped == dropped(too_small=rows - large)
    assert catalogue.rows == rows
    assert catalogue.kept["sample_key"].is_sorted()
    assert catalogue.kept["image_id"].n_unique() == large
    assert audit(catalogue.kept, archive, min_side=1000) == Audit(rows, rows - large, large, 1000, ())
    assert seconds < 10, f"{rows / seconds:,.0f} rows a second"


@pytest.mark.skipif(not SLICE, reason="ABO_TEST_SLICE does not name a folder with a slice of the real archives")
def test_a_slice_of_the_real_archive(tmp_path):
    path = next(Path(SLICE).glob("abo-images-small*.tar"))

    with Archive.open(path, tmp_path) as archive:
        catalogue = read_catalogue(archive, min_side=1000)
        found = audit(catalogue.kept, archive, min_side=1000)

    assert (catalogue.rows, len(catalogue.kept)) == (5_008, 4_544)
    assert catalogue.dropped == dropped(too_small=464)
    assert found == Audit(5_008, 464, 4_544, found.smallest_side, ())
    assert found.smallest_side >= 1000
