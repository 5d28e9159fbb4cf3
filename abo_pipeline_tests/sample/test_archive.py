"""The drawn archive: the official layout, every awkward case, and the same bytes from the same seed."""

import csv
import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections import Counter

import pytest
from PIL import Image, UnidentifiedImageError

from abo_pipeline.errors import ArchiveError, SettingsError
from abo_pipeline.sample import Sample, draw_sample
from abo_pipeline.sample.archive import AWKWARD_CASES, MIN_IMAGES
from abo_pipeline.sample.products import PRODUCTS

IMAGES = 240


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return draw_sample(tmp_path_factory.mktemp("sample"), images=IMAGES, seed=5)


@pytest.fixture(scope="module")
def members(sample):
    with tarfile.open(sample.archive, "r:") as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


@pytest.fixture(scope="module")
def rows(members):
    text = gzip.decompress(members["images/metadata/images.csv.gz"]).decode()
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture(scope="module")
def listings(sample):
    with tarfile.open(sample.listings, "r:") as tar:
        packed = {member.name: tar.extractfile(member).read() for member in tar}
    names = [f"listings/metadata/listings_{digit}.json.gz" for digit in "0123456789abcdef"]
    assert list(packed) == ["LICENSE-CC-BY-4.0.txt", *names]
    return [json.loads(line) for name in names for line in gzip.decompress(packed[name]).decode().splitlines()]


def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not(tmp_path):
    def digests(folder, seed):
        drawn = draw_sample(tmp_path / folder, images=MIN_IMAGES, seed=seed)
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in (drawn.archive, drawn.listings)]

    first, again, other = digests("first", 1), digests("again", 1), digests("other", 2)

    assert first == again
    assert set(first).isdisjoint(other)


def test_the_archive_is_laid_out_as_the_official_one(members, rows):
    names = list(members)
    assert names[:2] == ["LICENSE-CC-BY-4.0.txt", "images/metadata/images.csv.gz"]
    assert names[2:] == sorted(names[2:])
    assert len(names) == 2 + IMAGES
    assert all(re.fullmatch(r"images/small/(..)/\1[0-9a-f]{6}\.(jpg|png|svg)", name) for name in names[2:])
    assert list(rows[0]) == ["image_id", "height", "width", "path"]
    assert [row["image_id"] for row in rows] == sorted(row["image_id"] for row in rows)
    assert all(re.fullmatch(r"[0-9A-Z]{2}[A-Za-z0-9+-]{8}L", row["image_id"]) for row in rows)


def test_tar_headers_and_gzip_headers_carry_no_time_and_no_owner(sample, members):
    for path in (sample.archive, sample.listings):
        with tarfile.open(path, "r:") as tar:
            assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.isreg()) for m in tar} == {(0, 0, 0, "", "", True)}
    assert members["images/metadata/images.csv.gz"][4:8] == bytes(4)


def test_each_awkward_case_is_there_as_often_as_the_table_says(members, rows):
    files = {name.removeprefix("images/small/"): content for name, content in members.items()}
    found = Counter(dict.fromkeys(AWKWARD_CASES, 0))
    first_rows = {}
    for row in rows:
        if row["image_id"] in first_rows:
            found["duplicate_row"] += 1
            assert row == first_rows[row["image_id"]]
            continue
        first_rows[row["image_id"]] = row
        found["missing_file"] += row["path"] not in files
    contents = Counter(files[row["path"]] for row in first_rows.values() if row["path"] in files)
    found["byte_identical"] = sum(count - 1 for count in contents.values())
    for row in first_rows.values():
        if row["path"] in files:
            found.update(_cases(row, files[row["path"]]))

    assert dict(found) == dict(AWKWARD_CASES)


def _cases(row, content):
    """The awkward cases that one file and its row are."""
    if not row["height"].isdigit():
        yield "malformed_row"
    if (row["height"], row["width"]) == ("1000", "1000"):
        yield "exactly_1000"
    if (row["height"], row["width"]) == ("999", "1000"):
        yield "one_short"
    if row["path"].endswith(".png"):
        yield "png"
    if row["path"].endswith(".svg"):
        yield "svg"
        return
    try:
        picture = Image.open(io.BytesIO(content))
    except UnidentifiedImageError:
        yield "text_named_jpg"
        return
    if max(picture.size) > 4 * min(picture.size):
        yield "extreme_aspect"
    if picture.format == "JPEG":
        yield from {"L": ["greyscale"], "CMYK": ["cmyk"]}.get(picture.mode, [])
    if picture.getexif().get(0x0112) == 6:
        yield "exif_rotated"
    try:
        picture.load()
    except OSError:
        yield "truncated"


def test_files_that_cannot_be_used_as_they_are_have_large_originals(members, rows):
    for row in rows:
        content = members.get(f"images/small/{row['path']}", b"")
        cases = set(_cases(row, content)) if content else set()
        if cases & {"truncated", "text_named_jpg", "cmyk", "exif_rotated"}:
            assert min(int(row["height"]), int(row["width"])) >= 1000


def test_about_an_eighth_of_the_originals_are_small_and_no_file_is_larger_than_its_original(members, rows):
    small = 0
    for row in rows:
        content = members.get(f"images/small/{row['path']}")
        if content is None or {"text_named_jpg", "svg"} & {*_cases(row, content)} or not row["height"].isdigit():
            continue
        height, width = int(row["height"]), int(row["width"])
        small += min(height, width) < 1000
        picture = Image.open(io.BytesIO(content))
        assert max(picture.size) == min(256, max(height, width))
        assert max(picture.size) / min(picture.size) == pytest.approx(max(height, width) / min(height, width), 0.05)
    assert 0.06 * IMAGES <= small <= 0.2 * IMAGES


def test_the_turned_picture_stands_upright_once_its_orientation_is_obeyed(members):
    turned = [
        picture
        for name, content in members.items()
        if name.endswith(".jpg") and content[:2] == b"\xff\xd8"
        for picture in [Image.open(io.BytesIO(content))]
        if picture.getexif().get(0x0112) == 6
    ]

    assert [picture.size for picture in turned] == [(256, 256)]


def test_listings_follow_the_official_schema_and_name_images_of_the_catalogue(rows, listings):
    ids = {row["image_id"] for row in rows}
    always = {"item_id", "domain_name", "country", "brand", "item_name", "product_type", "color", "item_keywords"}
    named = Counter()
    for listing in listings:
        assert always <= set(listing)
        assert [set(name) for name in listing["item_name"]] == [{"language_tag", "value"}] * len(listing["item_name"])
        assert listing["product_type"][0]["value"] in PRODUCTS
        named.update([listing.get("main_image_id"), *listing.get("other_image_id", [])])

    assert named[None] == 1
    assert len(set(named) - ids - {None}) == 1
    assert any(count > 1 for name, count in named.items() if name in ids)
    assert any(len(listing.get("other_image_id", [])) > 1 for listing in listings)
    assert 0 < len(ids - set(named)) < 0.2 * len(ids)


def test_listings_are_in_several_languages_and_most_of_them_in_english(listings):
    tags = [{name["language_tag"] for name in listing["item_name"]} for listing in listings]

    english = sum(any(tag.startswith("en_") for tag in own) for own in tags)
    assert set().union(*tags) == {"en_US", "en_GB", "en_IN", "en_CA", "de_DE", "fr_FR", "es_ES"}
    assert 0.75 * len(listings) <= english < len(listings)


def test_progress_counts_every_image_once(tmp_path):
    calls = []

    draw_sample(tmp_path, images=MIN_IMAGES, progress=lambda done, total: calls.append((done, total)))

    assert calls == [(done, MIN_IMAGES) for done in range(1, MIN_IMAGES + 1)]


def test_an_interrupted_drawing_leaves_neither_a_part_nor_a_half_archive(tmp_path):
    def stop(done, _total):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_sample(tmp_path, images=MIN_IMAGES, progress=stop)

    assert [path.name for path in tmp_path.iterdir()] == ["abo-listings.tar"]


def test_too_few_images_are_refused_with_the_least_number(tmp_path):
    with pytest.raises(SettingsError, match=rf"Ask for {MIN_IMAGES} or more"):
        draw_sample(tmp_path, images=MIN_IMAGES - 1)


def test_a_folder_that_cannot_be_made_is_named_in_the_error(tmp_path):
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(ArchiveError, match="Name a folder that can be written to"):
        draw_sample(tmp_path / "file", images=MIN_IMAGES)


def test_sample_of_a_folder_names_the_files_that_are_drawn_into_it(sample):
    assert Sample.of(sample.archive.parent) == sample


def test_importing_the_sample_loads_no_heavy_library():
    heavy = ("torch", "transformers", "sentence_transformers", "matplotlib", "numpy", "polars", "dagster")
    code = (
        "import sys, abo_pipeline.sample, abo_pipeline.sample.train;"
        f"print([name for name in {heavy} if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)

    assert done.stdout.strip() == "[]"
