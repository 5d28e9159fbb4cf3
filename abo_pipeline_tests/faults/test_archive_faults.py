"""An archive that changes under a run: no image ever gets the vector of other bytes."""

import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from abo_pipeline.archive import Archive
from abo_pipeline.catalog import IMAGE_FOLDER, read_catalogue
from abo_pipeline.embedding import Tally
from abo_pipeline.errors import ArchiveError
from abo_pipeline.machine import cores
from abo_pipeline.runner import run_pipeline
from abo_pipeline.settings import Settings
from abo_pipeline_tests.archives import jpeg, write_tar
from abo_pipeline_tests.faults.conftest import Ledger

pytestmark = pytest.mark.slow

BATCH, DONE = 8, 16
IN_HAND = 2 * cores() * BATCH
"""Images that may be finished when the archive's end is noticed: each thread has a batch, and one may wait for it."""


@dataclass
class Meddler:
    """Does something to the archive when so many images are embedded, in the middle of the first partition."""

    meddle: Callable[[], None] | None

    def download(self, name: str, done: int, total: int | None) -> None: ...

    def indexing(self, name: str, done: int, total: int | None) -> None: ...

    def choosing(self, words: str) -> None: ...

    def building(self, words: str) -> None: ...

    def pending(self, images: int) -> None: ...

    def finished(self, asset: str, metadata: dict) -> None:
        if asset == "image_embeddings":
            self.totals = metadata

    def embedding(self, partition_key: str, tally: Tally) -> None:
        if self.meddle and tally.embedded >= DONE:
            assert (partition_key, tally.embedded < tally.to_do / 2) == ("00of2", True)
            meddle, self.meddle = self.meddle, None
            meddle()


@pytest.fixture
def settings(archive, ledger, tmp_path) -> Settings:
    return Settings.read(
        state_dir=tmp_path / "state",
        archive=str(archive),
        listings="none",
        database_url=ledger.url,
        model="small-clip",
        device="cpu",
        sizes="20,60",
        exact_below=0,
        partitions=2,
        batch_size=BATCH,
        queries=("a red chair",),
        report_k=2,
    )


@pytest.fixture
def run(settings, encoder) -> Callable[..., dict]:
    """A run during which something happens to the archive; gives the sums of its partitions."""

    def run(meddle: Callable[[], None] | None = None) -> dict:
        meddler = Meddler(meddle)
        run_pipeline(settings, meddler, encoder=encoder)
        return meddler.totals

    return run


@pytest.fixture
def original(archive, tmp_path) -> Path:
    """The archive as it was before anything happened to it."""
    return Path(shutil.copy2(archive, tmp_path / "original.tar"))


@pytest.fixture
def other(archive, tmp_path) -> Path:
    """The archive with each fifth picture another one, and a file more at its beginning that moves all others."""
    with Archive.open(archive) as opened:
        names = opened.index["member"].to_list()
        files = {name: opened.read(name) for name in names}
    pictures = [name for name in names if name.startswith(IMAGE_FOLDER) and name.endswith(".jpg")]
    files |= {name: jpeg((5 * n % 256, 90, 200)) for n, name in enumerate(pictures[::5])}
    return write_tar(tmp_path / "other.tar", {"README.md": b"a new edition" * 1000, **files})


def digests(archive: Path) -> dict[str, str]:
    with Archive.open(archive) as opened:
        return dict(read_catalogue(opened, min_side=1000).kept.select("image_id", "digest").iter_rows())


def check_that_the_next_run_does_the_rest(run: Callable[..., dict], ledger: Ledger, archive: Path) -> None:
    """What is there by the right bytes stays as it is; everything else is embedded."""
    right = digests(archive)
    before = {image_id: row for image_id, row in ledger.vectors().items() if right[image_id] == row[0]}

    totals = run()

    after = ledger.vectors()
    assert before
    assert {image_id: after[image_id] for image_id in before} == before
    assert (totals["skipped"], totals["embedded"]) == (len(before), len(after) - len(before))
    assert totals["failed"] + totals["failed_before"] == 2
    ledger.check(archive)


def test_a_replaced_archive_is_read_to_the_partitions_end_and_refused_by_the_next(
    run, ledger, archive, original, other
):
    def replace() -> None:
        shutil.copyfile(other, archive.with_suffix(".new"))
        archive.with_suffix(".new").replace(archive)

    with pytest.raises(ArchiveError) as refused:
        run(replace)

    assert str(refused.value).startswith(f"{archive} is not the archive that the catalogue was read from: where image ")
    assert str(refused.value).endswith(
        " was, it holds other bytes. Materialize raw_archive and image_paths again, or use `abo run`, which does."
    )
    kept = digests(original)
    assert {image_id: digest for image_id, (digest, _) in ledger.vectors().items()}.items() <= kept.items()
    assert ledger.wrong_vectors(original) == []
    assert 16 < len(ledger.vectors()) < len(kept) - 16
    check_that_the_next_run_does_the_rest(run, ledger, archive)


def test_a_shorter_archive_in_its_place_is_refused_in_the_same_words(run, ledger, archive, original, tmp_path):
    with Archive.open(archive) as opened:
        csv = {name: opened.read(name) for name in opened.index["member"] if "metadata" in name}

    def replace() -> None:
        write_tar(tmp_path / "short.tar", csv).replace(archive)

    with pytest.raises(ArchiveError, match="is not the archive that the catalogue was read from: where image "):
        run(replace)

    assert ledger.wrong_vectors(original) == []
    shutil.copy2(original, archive)
    check_that_the_next_run_does_the_rest(run, ledger, archive)


def test_an_archive_that_is_overwritten_in_place_is_not_read_on(run, ledger, archive, original, other):
    with pytest.raises(ArchiveError) as refused:
        run(lambda: shutil.copyfile(other, archive))

    assert str(refused.value) == (f"{archive} changed while it was being read. Run again to index it as it is now.")
    assert DONE <= len(ledger.vectors()) <= DONE + IN_HAND
    assert ledger.wrong_vectors(original) == []
    check_that_the_next_run_does_the_rest(run, ledger, archive)


def test_bytes_that_change_without_a_trace_are_found_and_the_remedy_helps(run, ledger, archive, original, other):
    """As a disk that rots does, or a copy that keeps the time."""
    time = archive.stat().st_mtime_ns

    def rot() -> None:
        with tarfile.open(archive) as tar:
            pictures = [member for member in tar if member.name.endswith(".jpg")]
        with archive.open("r+b") as file:
            for member in pictures:
                file.seek(member.offset_data + member.size // 2)
                file.write(b"rot")
        os.utime(archive, ns=(time, time))

    # Who reads just when it rots may see the time of that, before it is put back.
    with pytest.raises(ArchiveError, match=r"has changed since it was indexed|changed while it was being read"):
        run(rot)
    with pytest.raises(ArchiveError) as refused_again:
        run()

    assert str(refused_again.value).startswith(
        f"{archive} has changed since it was indexed, though its size and time are the same: where image "
    )
    assert str(refused_again.value).endswith(
        " was, it holds other bytes. Put back what it was, for the disk may be damaged; if it is meant to be so, "
        "`touch` it, and use `abo run`."
    )
    assert DONE <= len(ledger.vectors()) <= DONE + IN_HAND
    assert ledger.wrong_vectors(original) == []

    shutil.copyfile(other, archive)
    check_that_the_next_run_does_the_rest(run, ledger, archive)


def test_an_archive_that_is_cut_is_refused_until_it_is_whole_again(run, ledger, archive, original):
    with pytest.raises(ArchiveError, match="changed while it was being read"):
        run(lambda: os.truncate(archive, archive.stat().st_size // 2))
    with pytest.raises(ArchiveError, match=r"is truncated: .* Delete it and fetch it again."):
        run()

    assert DONE <= len(ledger.vectors()) <= DONE + IN_HAND
    assert ledger.wrong_vectors(original) == []
    shutil.copyfile(original, archive)
    check_that_the_next_run_does_the_rest(run, ledger, archive)


def test_an_archive_that_is_only_touched_costs_one_more_run(run, ledger, archive):
    with pytest.raises(ArchiveError, match=r"changed while it was being read. Run again to index it as it is now."):
        run(archive.touch)

    assert DONE <= len(ledger.vectors()) <= DONE + IN_HAND
    check_that_the_next_run_does_the_rest(run, ledger, archive)
