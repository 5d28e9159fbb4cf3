"""A run that is killed while it writes something other than vectors: what was there before still serves."""

import re
import sys

import pytest

from abo_pipeline.archive import Archive
from abo_pipeline.catalog import member_name, read_catalogue
from abo_pipeline_tests.archives import jpeg, write_tar
from abo_pipeline_tests.faults.conftest import Abo, Ledger, wait_for

pytestmark = pytest.mark.slow

DIES = """
import os, signal, sys
name = sys.argv.pop(1)
replace = os.replace

def dying(source, target, **options):
    if os.path.basename(target) == name:
        os.truncate(source, os.path.getsize(source) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target, **options)

os.replace = dying
from abo_pipeline.cli import main
main()
"""
"""The command line, killed when a certain file is half written."""


@pytest.fixture
def finished(abo: Abo, words, archive, ledger: Ledger) -> dict[str, tuple[str, str]]:
    """A run that has ended well; afterwards the archive has other bytes for ten of its pictures."""
    assert abo(*words).code == 0
    before = ledger.vectors()
    with Archive.open(archive) as opened:
        files = {name: opened.read(name) for name in opened.index["member"].to_list()}
        paths = dict(read_catalogue(opened, min_side=1000).kept.select("image_id", "path").iter_rows())
    for number, image_id in enumerate(sorted(before)[:10]):
        files[member_name(paths[image_id])] = jpeg((25 * number, 90, 200))
    write_tar(archive, files)
    return before


def check_the_next_run(abo: Abo, words, archive, ledger: Ledger, before: dict[str, tuple[str, str]]) -> None:
    """Ten images are embedded again, by this run or by the killed one, and no other."""
    again = abo(*words)

    after = ledger.vectors()
    assert again.code == 0, again
    changed = {image_id for image_id in before if after[image_id][0] != before[image_id][0]}
    rewritten = {image_id for image_id in before if after[image_id] != before[image_id]}
    assert (after.keys(), len(changed), rewritten) == (before.keys(), 10, changed)
    ledger.check(archive)


@pytest.mark.parametrize("name", ["image_paths.parquet", "images.tar.index.parquet"])
def test_killed_while_a_frame_is_written(abo: Abo, words, archive, ledger, finished, name, tmp_path):
    run = abo.start_as([sys.executable, "-c", DIES, name], *words)

    assert abo.ended(run).code == -9

    (half,) = tmp_path.rglob(f"{name}*.part")
    assert half.stat().st_size > 0
    assert ledger.vectors() == finished
    check_the_next_run(abo, words, archive, ledger, finished)


def test_killed_while_the_catalogue_goes_to_the_database(abo: Abo, words, archive, ledger: Ledger, finished):
    images = "SELECT image_id, digest, xmin::text FROM abo.images ORDER BY 1"
    before = ledger.query(images)
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with ledger.connect() as holder:
        with holder.transaction():
            holder.execute("LOCK TABLE abo.images IN SHARE MODE")
            run = abo.start(*words)
            wait_for("the run to write the catalogue", lambda: ledger.query(waiting) or run.poll() is not None)
            abo.kill(run)
        ours = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'abo_pipeline' "
        ours += "AND datname = current_database()"
        wait_for("its session to end", lambda: ledger.query(ours) == [(0,)])

    assert ledger.query(images) == before
    check_the_next_run(abo, words, archive, ledger, finished)


@pytest.mark.parametrize("name", ["01-a-red-chair.png", "index.html"])
def test_killed_while_the_report_is_written(abo: Abo, words, archive, ledger, finished, name, tmp_path):
    folder = tmp_path / "state" / "reports" / "abo" / "small_clip"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    run = abo.start_as([sys.executable, "-c", DIES, name], *words)

    assert abo.ended(run).code == -9

    # The page is whole, the old one, and each of its pictures is there.
    assert (folder / "index.html").read_bytes() == before["index.html"]
    shown = re.findall(r'<img src="([^"]+)"', before["index.html"].decode())
    assert shown == ["01-a-red-chair.png"]
    assert (folder / shown[0]).read_bytes().endswith(b"IEND\xaeB`\x82")
    check_the_next_run(abo, words, archive, ledger, finished)
