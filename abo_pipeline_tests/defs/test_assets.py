"""The assets on a real instance, each against the same small run."""

import base64
import io
from dataclasses import asdict
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from PIL import Image

from abo_pipeline import catalog
from abo_pipeline.definitions import build_definitions
from abo_pipeline.defs.assets.catalog import CatalogueConfig, image_paths
from abo_pipeline.defs.assets.embeddings import EmbeddingConfig, image_embeddings_asset
from abo_pipeline.defs.assets.index import IndexConfig
from abo_pipeline.defs.assets.report import report_url
from abo_pipeline.defs.history import EMBEDDINGS
from abo_pipeline.defs.resources import LogProgress, StoreResource
from abo_pipeline.embedding import STAGES
from abo_pipeline.errors import CatalogError, FailuresError, SettingsError
from abo_pipeline.fidelity import Fidelity
from abo_pipeline.settings import Settings
from abo_pipeline.store import open_store
from abo_pipeline.store.golden import last_recording
from abo_pipeline.store.nearest import first_image
from abo_pipeline_tests.archives import jpeg, write_images
from abo_pipeline_tests.defs.conftest import SQUARES, checks, materialize, materialize_all, metadata
from abo_pipeline_tests.fakes import ColourEncoder


def test_raw_archive_reports_what_is_there_and_fetches_nothing_that_is(definitions, instance, colours):
    found = metadata(materialize(definitions, instance, "raw_archive"), "raw_archive")

    path = Path(colours.archive)
    assert {name: found[name] for name in ("source", "path", "fetched", "bytes", "members", "left_out")} == {
        "source": str(path),
        "path": str(path),
        "fetched": False,
        "bytes": path.stat().st_size,
        "members": 41,
        "left_out": {},
    }
    assert len(found["sha256"]) == 64
    assert Path(found["index"]).is_file()


def test_image_paths_counts_each_row_and_its_check_looks_again(definitions, instance, colours):
    result = materialize(definitions, instance, "raw_archive", "image_paths")

    found = metadata(result, "image_paths")
    assert {name: value for name, value in found.items() if isinstance(value, int) and name != "bytes"} == {
        "dagster/row_count": 40,
        "rows": 40,
        "kept": 40,
        "min_side": 1000,
        "dropped: malformed row": 0,
        "dropped: duplicate id": 0,
        "dropped: unsupported type": 0,
        "dropped: too small": 0,
        "dropped: not in the archive": 0,
        "added": 40,
        "changed": 0,
        "removed": 0,
        "pending": 40,
        "partitions_to_run": 2,
    }
    assert found["plan"] == (
        "40 images to embed in 2 of 2 partitions, of a duration that the first partition will tell, "
        "0 MB in the database"
    )
    assert checks(result) == {"filter_is_sound": True}
    kept = pl.read_parquet(colours.state_dir / "assets" / "abo" / "image_paths.parquet")
    assert kept.schema == catalog.SCHEMA
    assert kept["sample_key"].is_sorted()


def test_an_asset_can_be_called_directly(colours):
    context = dg.build_asset_context()

    result = image_paths(context, CatalogueConfig(), settings=colours, store=StoreResource(colours))

    assert len(result.value) == 40


def test_the_embeddings_asset_can_be_called_directly_for_one_partition(colours):
    unpartitioned = dg.build_asset_context()
    kept = image_paths(unpartitioned, CatalogueConfig(), settings=colours, store=StoreResource(colours)).value
    context = dg.build_asset_context(partition_key="01of2")

    image_embeddings_asset(colours)(
        context,
        EmbeddingConfig(),
        kept,
        settings=colours,
        encoder=ColourEncoder(),
        store=StoreResource(colours),
        progress=LogProgress(),
    )

    store = open_store(colours)
    accounts = store.accounts("colours", [0, 2**62])
    store.engine.dispose()
    assert (accounts[0].embedded, accounts[1].pending) == (0, 0)
    assert accounts[1].embedded > 0


def test_a_partition_reports_what_it_did_and_its_checks_pass(definitions, instance):
    materialize(definitions, instance, "raw_archive", "image_paths")
    first = materialize(definitions, instance, "image_embeddings", partition_key="00of2")
    again = materialize(definitions, instance, "image_embeddings", partition_key="00of2")

    found, repeated = metadata(first, "image_embeddings"), metadata(again, "image_embeddings")
    kept = found["kept"]
    counted = ("embedded", "skipped", "failed", "failed_before", "removed", "dagster/partition_row_count")
    assert [found[name] for name in counted] == [kept, 0, 0, 0, 0, kept]
    assert [repeated[name] for name in counted] == [0, kept, 0, 0, 0, kept]
    assert found["images_per_second"] > 0
    assert {name for name in found if name.startswith("seconds")} == {
        "seconds",
        "seconds_read",
        "seconds_decode",
        "seconds_prepare",
        "seconds_encode",
        "seconds_write",
    }
    assert (found["bottleneck"] in STAGES, repeated["bottleneck"]) == (True, "none")
    assert (found["precision"], found["shared"]) == ("float32", 0)
    assert found["fidelity"] == asdict(Fidelity("float32", "there is no other"))
    assert (found["device"], repeated["device"]) == ("cpu", "none needed")
    assert (found["model"], found["fingerprint"]) == ("mean-colour", "c0104f00c0104f00")
    assert {column.name: column.type for column in found["dagster/column_schema"].columns} == {
        "image_id": "TEXT",
        "sample_key": "BIGINT",
        "digest": "TEXT",
        "fingerprint": "TEXT",
        "embedding": "VECTOR(3)",
    }
    assert checks(first) == {
        "every_image_is_accounted_for": True,
        "vectors_have_unit_length": True,
        "vectors_are_of_one_model": True,
        "few_images_failed": True,
    }
    assert instance.get_materialized_partitions(dg.AssetKey("image_embeddings")) == {"00of2"}


def test_a_failure_is_in_the_metadata_and_can_be_retried_by_config(colours, instance):
    write_images(Path(colours.archive), {"aa/bad.jpg": b"bad", "bb/good.jpg": jpeg()})
    definitions = build_definitions(colours, encoder=ColourEncoder())
    materialize(definitions, instance, "raw_archive", "image_paths")

    def run(**config: bool) -> list[dict]:
        run_config = {"ops": {"image_embeddings": {"config": config}}}
        results = [
            materialize(definitions, instance, "image_embeddings", partition_key=f"{n:02}of2", run_config=run_config)
            for n in range(2)
        ]
        for result in results:
            # One bad image is for a person to look at, and stops nothing.
            warned = checks(result).pop("few_images_failed")
            assert warned == (not failures_of(result))
        return [metadata(result, "image_embeddings") for result in results]

    def failures_of(result: dg.ExecuteInProcessResult) -> int:
        found = metadata(result, "image_embeddings")
        return found["failed"] + found["failed_before"]

    first, again, retried = run(), run(), run(retry_failures=True)

    assert sum(found["failed"] for found in first) == 1
    assert sum(found["failed"] for found in again) == 0
    assert sum(found["failed_before"] for found in again) == 1
    assert sum(found["failed"] for found in retried) == 1
    (row,) = [row for found in first if found["failures"] != "*none*" for row in found["failures"]]
    assert row == {
        "stage": "decode",
        "error": "ImageError",
        "images": 1,
        "example": "bad: not a picture: it begins with b'bad'",
    }


def test_the_index_asset_builds_once_and_its_check_finds_it_used(definitions, instance):
    materialize(definitions, instance, "raw_archive", "image_paths")
    for key in ("00of2", "01of2"):
        materialize(definitions, instance, "image_embeddings", partition_key=key)

    first = materialize(definitions, instance, "embedding_index")
    again = materialize(definitions, instance, "embedding_index")

    found = metadata(first, "embedding_index")
    assert (found["built"], found["rows_10"], found["rows_30"]) == (2, 10, 30)
    states = [(row["size"], row["valid"], row["ready"]) for row in found["indexes"]]
    assert states == [(10, True, True), (30, True, True)]
    assert metadata(again, "embedding_index")["built"] == 0
    assert {name: value for name, value in found.items() if "_recall_at_" in name} == {
        f"{kind}_recall_at_{k}_{size}": 1.0 for kind in ("image", "text") for k in (10, 100) for size in (10, 30)
    }
    assert found["recall_and_latency"].startswith("![recall against latency](data:image/png;base64,")
    assert checks(first) == {
        "index_is_used": True,
        "canary_query_answers": True,
        "recall_meets_target": True,
        "sizes_are_covered": True,
    }


def test_the_index_asset_takes_strategy_sizes_and_rebuild_as_config(definitions, instance):
    materialize(definitions, instance, "raw_archive", "image_paths")
    for key in ("00of2", "01of2"):
        materialize(definitions, instance, "image_embeddings", partition_key=key)

    def built(**config: object) -> list[tuple]:
        result = materialize(
            definitions, instance, "embedding_index", run_config={"ops": {"embedding_index": {"config": config}}}
        )
        assert all(checks(result).values())
        rows = metadata(result, "embedding_index")["indexes"]
        return [(row["size"], row["strategy"], row["built"], row["effort_at_10"], row["why"]) for row in rows]

    assert built() == [(10, "hnsw", True, 40, ""), (30, "hnsw", True, 40, "")]
    assert built(strategy="bit", sizes=[30]) == [(30, "bit", True, 100, "")]
    assert built(strategy="bit", sizes=[30]) == [(30, "bit", False, 100, "")]
    assert built(strategy="bit", sizes=[30], rebuild=True) == [(30, "bit", True, 100, "")]
    assert built(strategy="exact") == [(10, "exact", False, None, ""), (30, "exact", False, None, "")]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"strategy": "x"},
            "There is no index strategy 'x'. There are exact, hnsw, hnsw_float, ivfflat, bit, diskann.",
        ),
        (
            {"sizes": [10, 77]},
            "77 is none of the sizes 10, 30. To have it beside them: ABO_SIZES=10,30,77, or abo run --sizes 10,30,77.",
        ),
    ],
)
def test_a_strategy_or_size_that_is_not_there_is_refused(colours, config, message):
    with pytest.raises(SettingsError) as refused:
        IndexConfig(**config).chosen(colours)

    assert str(refused.value) == message


def test_few_vectors_are_searched_exactly_and_the_index_says_why(colours, instance):
    definitions = build_definitions(colours.model_copy(update={"exact_below": 20}), encoder=ColourEncoder())
    materialize(definitions, instance, "raw_archive", "image_paths")
    for key in ("00of2", "01of2"):
        materialize(definitions, instance, "image_embeddings", partition_key=key)

    found = metadata(materialize(definitions, instance, "embedding_index"), "embedding_index")

    assert [(row["size"], row["name"] == "none", row["why"]) for row in found["indexes"]] == [
        (10, True, "searched exactly, which is quicker below 20 vectors (ABO_EXACT_BELOW)"),
        (30, False, ""),
    ]
    assert (found["strategy_10"], found["strategy_30"]) == ("exact", "hnsw")


def test_a_partition_in_which_too_many_images_failed_is_not_accepted_until_they_are_fewer(colours, instance):
    good = {f"bb/good-{n}.jpg": jpeg((9 * n, 0, 0)) for n in range(8)}
    write_images(Path(colours.archive), {f"aa/bad-{n}.jpg": b"bad" for n in range(12)} | good)
    strict = Settings.read(**colours.model_dump() | {"partitions": 1})
    definitions = build_definitions(strict, encoder=ColourEncoder())
    materialize(definitions, instance, "raw_archive", "image_paths")

    with pytest.raises(FailuresError) as refused:
        materialize(definitions, instance, "image_embeddings", partition_key="00of1")

    assert str(refused.value).startswith(
        "12 of the 20 images of partition 00of1 failed, and at most 20% may (ABO_MAX_FAILED_SHARE). Most frequent: "
        "12 × ImageError at the stage 'decode', such as bad-0: not a picture: it begins with b'bad'."
    )
    assert instance.get_materialized_partitions(EMBEDDINGS) == set()
    store = open_store(strict)
    (account,) = store.accounts("colours", [0])
    store.engine.dispose()
    # What could be embedded is there all the same, and each failure is recorded.
    assert (account.embedded, account.failed, account.pending) == (8, 12, 0)
    lenient = build_definitions(
        Settings.read(**strict.model_dump() | {"max_failed_share": 0.7}), encoder=ColourEncoder()
    )
    assert materialize(lenient, instance, "image_embeddings", partition_key="00of1").success
    assert instance.get_materialized_partitions(EMBEDDINGS) == {"00of1"}


def test_the_report_asset_shows_a_grid_and_says_where_the_rest_is(definitions, instance, colours):
    materialize(definitions, instance, "raw_archive", "listings", "image_paths")
    for key in ("00of2", "01of2"):
        materialize(definitions, instance, "image_embeddings", partition_key=key)

    found = metadata(materialize(definitions, instance, "embedding_index", "search_report"), "search_report")

    page = colours.state_dir / "reports" / "abo" / "colours" / "index.html"
    assert (found["page"], found["page_file"]) == (page.as_uri(), str(page))
    assert (found["embedded_10"], found["embedded_30"]) == (10, 30)
    assert {name for name in found if name.startswith("grid: ")} == {"grid: red", f"grid: like:{first_id(colours)}"}
    assert (found["coverage_10"], found["coverage_30"]) == ("all 10 embedded", "all 30 embedded")
    data = found["grid: red"].removeprefix("![red](data:image/png;base64,").removesuffix(")")
    assert Image.open(io.BytesIO(base64.b64decode(data))).width == 640


def first_id(settings: Settings) -> str:
    store = open_store(settings)
    image_id = first_image(store.find_space("colours"))
    store.engine.dispose()
    return image_id


def test_the_report_is_linked_to_where_a_web_server_shows_it(colours):
    page = colours.state_dir / "reports" / "abo" / "red leather" / "index.html"
    served = Settings.read(**colours.model_dump() | {"reports_url": "https://photos.example/reports/"})

    assert report_url(served, page) == "https://photos.example/reports/abo/red%20leather/index.html"


def test_golden_queries_are_recorded_and_compared_with_the_last_recording(definitions, instance, colours):
    materialize_all(definitions, instance)
    first = metadata(materialize(definitions, instance, "golden_queries"), "golden_queries")
    store = open_store(colours)
    space = store.find_space("colours")
    best = space_hits(first, "red", 30)
    space.remove([image_id for image_id, _ in last_recording(space).answers[30, "red"]][:2])
    store.engine.dispose()

    result = materialize(definitions, instance, "golden_queries")

    found = metadata(result, "golden_queries")
    changed = {(row["query"], row["size"]): row for row in found["changes"]}
    assert best["overlap_at_10"] == 1.0
    assert (changed["red", 30]["overlap_at_10"], changed["red", 30]["newcomers"]) == (0.8, 2)
    assert len(changed["red", 30]["gone"].split(", ")) == 2
    assert checks(result) == {"golden_queries_are_steady": True}


def space_hits(found: dict, query: str, size: int) -> dict:
    (row,) = [row for row in found["changes"] if (row["query"], row["size"]) == (query, size)]
    return row


def test_everything_again_changes_nothing(definitions, instance, colours):
    materialize_all(definitions, instance)
    store = open_store(colours)

    def versions(table: str) -> list:
        with store.engine.connect() as connection:
            return connection.exec_driver_sql(f"SELECT image_id, xmin::text FROM {table} ORDER BY 1").all()

    before = [versions(table) for table in ("images", "embeddings_colours")]

    materialize_all(definitions, instance)

    assert [versions(table) for table in ("images", "embeddings_colours")] == before
    assert len(before[1]) == len(SQUARES)
    store.engine.dispose()


def test_nothing_kept_stops_the_run_with_the_reason(colours, instance):
    write_images(Path(colours.archive), {"aa/small.jpg": jpeg()}, side=999)
    definitions = build_definitions(colours, encoder=ColourEncoder())

    with pytest.raises(CatalogError) as caught:
        materialize(definitions, instance, "raw_archive", "image_paths")

    assert str(caught.value) == (
        "None of the 1 images in squares.tar is kept (1 too small). Lower ABO_MIN_SIDE (now 1000), or use another "
        "archive."
    )


def test_an_asset_before_its_input_says_what_to_materialize(definitions, instance):
    with pytest.raises(dg.Failure) as caught:
        materialize(definitions, instance, "image_embeddings", partition_key="00of2")

    assert caught.value.description.startswith("image_paths has not been materialized here yet: ")
    assert "image_paths.parquet is missing. Materialize it first or, " in caught.value.description
