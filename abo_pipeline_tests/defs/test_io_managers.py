"""Frames between assets, in a folder and in a store that is reached through fsspec."""

import dagster as dg
import fsspec
import polars as pl
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from polars.testing import assert_frame_equal

from abo_pipeline.defs.io_managers import ParquetIOManager
from abo_pipeline.errors import SettingsError, StorageError
from abo_pipeline.settings import Settings
from abo_pipeline_tests.defs.conftest import materialize, metadata
from abo_pipeline_tests.fakes import ColourEncoder

FRAME = pl.DataFrame({"image_id": ["a", "b"], "width": [1, 2]})
OTHER = pl.DataFrame({"image_id": ["c"], "width": [3]})


class Shop(MemoryFileSystem):
    """A store with a password in its URL, which fails when it is told to."""

    protocol = "shop"
    store: dict = {}  # noqa: RUF012 - as the class above has it
    pseudo_dirs = [""]  # noqa: RUF012
    problem: Exception | None = None

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("shop://").rpartition("@")[2].lstrip("/")

    def pipe_file(self, path, value, **options):
        if Shop.problem:
            raise Shop.problem
        super().pipe_file(path, value, **options)

    def cat_file(self, path, **options):
        if Shop.problem:
            raise Shop.problem
        return super().cat_file(path, **options)


fsspec.register_implementation("shop", Shop)


@pytest.fixture(params=["folder", "store"])
def place(request, tmp_path, monkeypatch) -> str:
    monkeypatch.setattr(Shop, "store", {})
    return {"folder": str(tmp_path / "shared [1]" / "abo"), "store": "shop://me:s3cret@bucket/abo"}[request.param]


def write(place: str, frame: pl.DataFrame, asset: str = "image_paths") -> dict:
    with dg.build_output_context(asset_key=dg.AssetKey(asset)) as context:
        ParquetIOManager(place).handle_output(context, frame)
        return {name: value.value for name, value in context.consume_logged_metadata().items()}


def read(place: str, asset: str = "image_paths") -> pl.DataFrame:
    with dg.build_input_context(asset_key=dg.AssetKey(asset)) as context:
        return ParquetIOManager(place).load_input(context)


def test_a_frame_comes_back_as_it_was_and_the_next_one_replaces_it(place):
    write(place, FRAME)
    write(place, FRAME, asset="listings")
    assert_frame_equal(read(place), FRAME)

    write(place, OTHER)

    assert_frame_equal(read(place), OTHER)
    assert_frame_equal(read(place, "listings"), FRAME)


def test_where_it_lies_is_said_without_the_urls_secrets(tmp_path):
    there = write("shop://me:s3cret@bucket/abo", FRAME)
    here = write(str(tmp_path), FRAME)

    assert there == {"dagster/uri": "shop://bucket/abo/image_paths.parquet", "bytes": here["bytes"]}
    assert here["dagster/uri"] == (tmp_path / "image_paths.parquet").as_uri()
    assert here["bytes"] == (tmp_path / "image_paths.parquet").stat().st_size


def test_a_frame_that_is_not_there_says_what_to_do(place):
    with pytest.raises(dg.Failure) as caught:
        read(place)

    shown = place.replace("me:s3cret@", "")
    assert caught.value.description == (
        f"image_paths has not been materialized here yet: {shown}/image_paths.parquet is missing. Materialize it first "
        "or, if another machine did, set ABO_ASSETS to a place that both can reach."
    )
    assert not caught.value.allow_retries


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (PermissionError("s3cret"), "this machine's credentials do not allow it"),
        (ConnectionRefusedError(111, "s3cret"), "Connection refused"),
        (RuntimeError("s3cret"), "RuntimeError"),
    ],
)
def test_a_store_that_does_not_let_us_is_named_with_the_reason(monkeypatch, problem, reason):
    monkeypatch.setattr(Shop, "problem", problem)

    with pytest.raises(StorageError) as written:
        write("shop://me:s3cret@bucket", FRAME)
    with pytest.raises(StorageError) as loaded:
        read("shop://me:s3cret@bucket")

    remedy = "Check ABO_ASSETS, and what this machine may do there."
    assert str(written.value) == f"shop://bucket/image_paths.parquet cannot be written: {reason}. {remedy}"
    assert str(loaded.value) == f"shop://bucket/image_paths.parquet cannot be read: {reason}. {remedy}"


def test_a_bucket_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(Shop, "problem", FileNotFoundError("bucket"))

    with pytest.raises(StorageError) as caught:
        write("shop://bucket", FRAME)

    assert str(caught.value) == (
        "shop://bucket/image_paths.parquet cannot be written: its bucket or folder does not exist. Create it, or set "
        "ABO_ASSETS to another place."
    )


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(SettingsError) as caught:
        write(str(tmp_path / "file"), FRAME)

    assert str(caught.value) == (
        f"{tmp_path}/file/image_paths.parquet cannot be written: File exists. Make room on that disk, or set "
        "ABO_STATE_DIR (or ABO_ASSETS) to a folder that can be written to, and materialize it again."
    )


def test_a_missing_package_is_named():
    with pytest.raises(StorageError) as caught:
        write("nosuch://me:s3cret@bucket", FRAME)

    assert str(caught.value) == (
        "nosuch://bucket/image_paths.parquet cannot be reached: nothing here knows nosuch:// addresses. Write it like "
        "s3://bucket/name."
    )


@pytest.mark.parametrize(
    ("assets", "frames"),
    [
        ("", "{state}/assets/toys"),
        ("shared", "{cwd}/shared/toys"),
        ("/mnt/shared/", "/mnt/shared/toys"),
        ("file:///mnt/my%20share", "/mnt/my share/toys"),
        ("s3://bucket/abo/", "s3://bucket/abo/toys"),
    ],
)
def test_each_catalogue_has_a_place_of_its_own_where_the_setting_says(tmp_path, monkeypatch, assets, frames):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ABO_ASSETS", assets)

    settings = Settings.read(catalogue="toys", state_dir=tmp_path / "state")

    assert settings.frames == frames.format(state=tmp_path / "state", cwd=tmp_path)


def test_two_machines_with_one_store_and_one_database_share_the_work(colours, monkeypatch, tmp_path):
    from abo_pipeline.definitions import build_definitions

    monkeypatch.setattr(Shop, "store", {})
    machines = [
        build_definitions(
            colours.model_copy(update={"state_dir": tmp_path / name, "assets": "shop://me:s3cret@bucket"}),
            encoder=ColourEncoder(),
        )
        for name in ("one", "two")
    ]
    instance = dg.DagsterInstance.ephemeral()

    materialize(machines[0], instance, "raw_archive", "listings", "image_paths")
    tallies = [
        metadata(materialize(machine, instance, "image_embeddings", partition_key=key), "image_embeddings")
        for machine, key in zip(machines, ("00of2", "01of2"), strict=True)
    ]
    materialize(machines[1], instance, "embedding_index", "search_report")

    assert sum(tally["embedded"] for tally in tallies) == 40
    assert all(tally["embedded"] == tally["kept"] > 0 for tally in tallies)
    assert sorted(Shop.store) == ["/bucket/abo/image_paths.parquet", "/bucket/abo/listings.parquet"]
    assert list(tmp_path.rglob("image_paths.parquet")) == []


def test_two_catalogues_in_one_state_folder_keep_their_frames(colours, instance):
    from abo_pipeline.definitions import build_definitions
    from abo_pipeline_tests.archives import jpeg, write_images

    other = colours.model_copy(
        update={
            "catalogue": "other",
            "archive": str(write_images(colours.state_dir.parent / "other.tar", {"cc/green.jpg": jpeg("green")})),
        }
    )
    for settings in (colours, other):
        materialize(build_definitions(settings, encoder=ColourEncoder()), instance, "raw_archive", "image_paths")

    found = {
        name: pl.read_parquet(colours.state_dir / "assets" / name / "image_paths.parquet").height
        for name in ("abo", "other")
    }
    assert found == {"abo": 40, "other": 1}
