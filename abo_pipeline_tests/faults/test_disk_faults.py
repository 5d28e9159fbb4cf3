"""A disk that is full or may not be written to: a sentence that names the place, and nothing half taken for whole."""

import sys
from pathlib import Path

import pytest

from abo_pipeline.settings import Settings
from abo_pipeline.store.database import embedded_server
from abo_pipeline_tests.faults.conftest import Abo, Ledger

pytestmark = pytest.mark.slow

LIMITED = """
import resource, sys
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from abo_pipeline.cli import main
main()
"""
"""The command line with a limit on the size of files that it writes."""


@pytest.fixture
def state(tmp_path) -> Path:
    return tmp_path / "state"


def check_that_it_completes(abo: Abo, words, archive, ledger: Ledger) -> None:
    """The same command, now that there is room, does what is left to do."""
    before = ledger.vectors()

    ended = abo(*words)

    after = ledger.vectors()
    assert ended.code == 0, ended
    assert {image_id: after[image_id] for image_id in before} == before
    ledger.check(archive)


def fill(filler: Path) -> None:
    """Take all the room that is left on a disk."""
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):  # noqa: PT012
        while True:
            file.write(bytes(1 << 16))


@pytest.mark.parametrize(
    ("folder", "size", "message"),
    [
        (
            "dagster",
            "64k",
            "Dagster's records cannot be written, in the state folder {state}: database or disk is full.",
        ),
        ("dagster", "400k", "Dagster's records cannot be written, in the state folder {state}: "),
        ("assets", "4k", "{folder}/abo/image_paths.parquet cannot be written: No space left on device."),
        ("reports", "64k", "The report cannot be written to {folder}/abo/small_clip: No space left on device."),
    ],
)
def test_no_room_in_a_folder_of_the_state(abo: Abo, words, archive, ledger, state, small_disk, folder, size, message):
    disk = small_disk(state / folder, size)

    ended = abo(*words)

    assert ended.sentence.startswith(message.format(state=state, folder=state / folder))
    assert " Make room on that disk, or " in ended.sentence
    disk.remount("size=20m")
    check_that_it_completes(abo, words, archive, ledger)


def test_no_room_for_the_archives_index(abo: Abo, words, archive, ledger, tmp_path, small_disk):
    disk = small_disk(tmp_path / "archive", f"{archive.stat().st_size // 1024 + 8}k")
    there = disk.folder / "images.tar"
    there.write_bytes(archive.read_bytes())
    words = [there if word == archive else word for word in words]

    ended = abo(*words)

    index = f"{there}.index.parquet"
    assert ended.sentence == (
        f"The index of {there} cannot be written to {index}: No space left on device. Make room, or give another "
        "folder to keep it in."
    )
    assert not Path(index).exists()
    disk.remount("size=20m")
    check_that_it_completes(abo, words, there, ledger)


def test_no_room_for_the_embedded_server(abo: Abo, words, archive, ledger_of, state, small_disk):
    disk = small_disk(state / "postgres", "12m")
    server = embedded_server(Settings.read())
    try:
        ended = abo(*words)

        assert ended.sentence.startswith("The embedded Postgres ")
        assert "No space left on device" in ended.sentence
        assert ended.sentence.endswith("or name a server through ABO_DATABASE_URL.")
        disk.remount("size=400m")
        assert abo(*words).code == 0
        ledger_of(server.url()).check(archive)
    finally:
        server.stop()


def test_no_room_in_the_embedded_server_in_the_middle(abo: Abo, words, archive, ledger_of, state, small_disk):
    disk = small_disk(state / "postgres", "400m")
    server = embedded_server(Settings.read())
    try:
        assert abo("db", "start").code == 0
        filler = disk.folder / "filler"
        fill(filler)

        ended = abo(*words)

        assert "No space left on device" in ended.sentence
        assert "Make room" in ended.sentence
        filler.unlink()
        ledger = ledger_of(server.url())
        check_that_it_completes(abo, words, archive, ledger)
    finally:
        server.stop()


@pytest.mark.parametrize("limit", [30_000, 150_000])
def test_files_that_may_not_grow(abo: Abo, words, archive, ledger, state, limit):
    """A quota shows itself so, and it needs no right to mount."""
    run = abo.start_as([sys.executable, "-c", LIMITED, str(limit)], *words)

    ended = abo.ended(run)

    # Dagster may complain in lines of its own before.
    assert (ended.code, "Traceback" in ended.err) == (2, False)
    assert ended.err.splitlines()[-1].startswith(
        f"error: Dagster's records cannot be written, in the state folder {state}: "
    )
    check_that_it_completes(abo, words, archive, ledger)


def test_a_state_folder_that_is_read_only(abo: Abo, words, archive, ledger, state, small_disk):
    disk = small_disk(state, "20m")
    assert abo(*words).code == 0
    before = ledger.vectors()
    disk.remount("ro")

    ended = abo(*words)
    found = abo("search", "a red chair", "--json")

    assert ended.sentence == (
        f"The state folder {state} cannot be written to: Read-only file system. Set ABO_STATE_DIR to a folder that "
        "can, or change its permissions."
    )
    assert (found.code, '"rank": 1' in found.out) == (0, True)
    disk.remount("rw")
    check_that_it_completes(abo, words, archive, ledger)
    assert ledger.vectors() == before
