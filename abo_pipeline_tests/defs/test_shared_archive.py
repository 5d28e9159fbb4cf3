"""An archive that comes from elsewhere, on machines with a copy each, when the original changes."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import fsspec
import pytest

from abo_pipeline.definitions import build_definitions
from abo_pipeline.errors import ArchiveError
from abo_pipeline.settings import Settings
from abo_pipeline_tests.archives import jpeg, write_images
from abo_pipeline_tests.defs.conftest import SQUARES, materialize, metadata
from abo_pipeline_tests.fakes import ColourEncoder

SOURCE = "memory://abo-shared/squares.tar"
REFRESH = {"ops": {"raw_archive": {"config": {"refresh": True}}}}
NEW_SQUARES = {**SQUARES, "aa/red-0.jpg": jpeg("green"), "cc/new.jpg": jpeg("green")}


def publish(tmp_path: Path, squares: dict[str, bytes]) -> None:
    fsspec.filesystem("memory").pipe_file(SOURCE, write_images(tmp_path / "published.tar", squares).read_bytes())


@pytest.fixture
def machines(colours: Settings, tmp_path: Path) -> Iterator[list[dg.Definitions]]:
    """Two, with state folders of their own, one database, one place for frames."""
    publish(tmp_path, SQUARES)
    shared = {"archive": SOURCE, "assets": str(tmp_path / "frames")}
    yield [
        build_definitions(colours.model_copy(update={**shared, "state_dir": tmp_path / name}), encoder=ColourEncoder())
        for name in ("one", "two")
    ]
    fsspec.filesystem("memory").rm("/abo-shared", recursive=True)


def embedded(machine: dg.Definitions, instance: dg.DagsterInstance) -> dict[str, int]:
    """Embed both partitions on a machine; what was done, summed."""
    done = [
        metadata(materialize(machine, instance, "image_embeddings", partition_key=key), "image_embeddings")
        for key in ("00of2", "01of2")
    ]
    return {name: sum(tally[name] for tally in done) for name in ("kept", "embedded", "skipped", "failed", "removed")}


def test_a_machine_with_an_older_copy_gets_the_version_that_another_took(machines, instance, tmp_path):
    one, two = machines
    for machine in machines:
        materialize(machine, instance, "raw_archive", "image_paths")
    before = embedded(two, instance)
    publish(tmp_path, NEW_SQUARES)

    taken = metadata(materialize(one, instance, "raw_archive", run_config=REFRESH), "raw_archive")
    catalogue = metadata(materialize(two, instance, "image_paths"), "image_paths")
    after = embedded(two, instance)

    assert (taken["fetched"], taken["members"]) == (True, 42)
    assert (catalogue["kept"], catalogue["added"], catalogue["changed"], catalogue["removed"]) == (41, 1, 1, 0)
    assert before == {"kept": 40, "embedded": 40, "skipped": 0, "failed": 0, "removed": 0}
    assert after == {"kept": 41, "embedded": 2, "skipped": 39, "failed": 0, "removed": 0}


def test_a_machine_that_only_embeds_gets_the_version_of_the_catalogue(machines, instance, tmp_path):
    one, two = machines
    materialize(two, instance, "raw_archive", "image_paths")
    embedded(two, instance)
    publish(tmp_path, NEW_SQUARES)
    materialize(one, instance, "raw_archive", "image_paths", run_config=REFRESH)

    assert embedded(two, instance) == {"kept": 41, "embedded": 2, "skipped": 39, "failed": 0, "removed": 0}


def test_without_a_refresh_a_changed_original_is_left_alone(machines, instance, tmp_path):
    one, _ = machines
    first = metadata(materialize(one, instance, "raw_archive"), "raw_archive")
    publish(tmp_path, NEW_SQUARES)

    again = metadata(materialize(one, instance, "raw_archive"), "raw_archive")

    assert (again["sha256"], again["version"], again["fetched"]) == (first["sha256"], first["version"], False)


def test_a_new_machine_does_not_mix_what_is_there_now_with_what_was_taken(machines, instance, tmp_path):
    one, two = machines
    materialize(one, instance, "raw_archive", "image_paths")
    publish(tmp_path, NEW_SQUARES)

    with pytest.raises(ArchiveError) as caught:
        materialize(two, instance, "image_paths")

    assert str(caught.value).startswith(f"{SOURCE} is no longer the archive that was taken before: its SHA-256 was ")
    assert str(caught.value).endswith(
        ". Materialize raw_archive with refresh: true, and then image_paths, to go over to the new one."
    )
    materialize(one, instance, "raw_archive", run_config=REFRESH)
    assert metadata(materialize(two, instance, "image_paths"), "image_paths")["kept"] == 41


def test_an_archive_from_another_place_is_not_measured_by_the_last_one(machines, instance, colours, tmp_path):
    one, _ = machines
    materialize(one, instance, "raw_archive")
    fsspec.filesystem("memory").cp_file(SOURCE, SOURCE.replace("squares", "others"))
    elsewhere = colours.model_copy(
        update={"archive": SOURCE.replace("squares", "others"), "state_dir": tmp_path / "one"}
    )

    result = materialize(build_definitions(elsewhere, encoder=ColourEncoder()), instance, "image_paths")

    assert metadata(result, "image_paths")["kept"] == 40
