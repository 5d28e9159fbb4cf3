"""Each check fails for the thing that it is there to find."""

from collections.abc import Callable

import dagster as dg
import polars as pl
import pytest
from sqlalchemy import text

from abo_pipeline import catalog
from abo_pipeline.defs import checks as checks_module
from abo_pipeline.store import open_store
from abo_pipeline_tests.defs.conftest import checks, materialize, materialize_all

FIRST_HALF = "sample_key < 4611686018427387904"
"""The images of partition 00of2."""

Evaluate = Callable[..., dg.AssetCheckEvaluation]


@pytest.fixture
def evaluate(definitions, instance, colours) -> Evaluate:
    """Everything is materialized; call it to spoil something in the database and run one check."""
    materialize_all(definitions, instance)

    def evaluate(asset: str, check: str, *spoiling: str, partition_key: str | None = None) -> dg.AssetCheckEvaluation:
        store = open_store(colours)
        with store.engine.begin() as connection:
            for statement in spoiling:
                connection.execute(text(statement))
        store.engine.dispose()
        job = definitions.resolve_implicit_global_asset_job_def()
        only = job.get_subset(asset_check_selection={dg.AssetCheckKey(dg.AssetKey(asset), check)})
        result = only.execute_in_process(instance=instance, partition_key=partition_key, raise_on_error=False)
        (evaluation,) = result.get_asset_check_evaluations()
        return evaluation

    return evaluate


def one_image(table: str) -> str:
    return f"image_id = (SELECT min(image_id) FROM {table} WHERE {FIRST_HALF})"


def test_a_vector_that_is_gone_leaves_its_image_pending(evaluate):
    found = evaluate(
        "image_embeddings",
        "every_image_is_accounted_for",
        f"DELETE FROM embeddings_colours WHERE {one_image('embeddings_colours')}",
        partition_key="00of2",
    )

    assert not found.passed
    assert found.metadata["pending"].value == 1
    assert found.description.endswith("Materialize the partition again.")


def test_a_vector_whose_image_left_the_catalogue_is_found(evaluate):
    found = evaluate(
        "image_embeddings",
        "every_image_is_accounted_for",
        f"DELETE FROM images WHERE {one_image('images')}",
        partition_key="00of2",
    )

    assert not found.passed
    assert found.metadata["departed"].value == 1


def test_what_is_wrong_in_another_partition_is_not_this_ones_matter(evaluate):
    found = evaluate(
        "image_embeddings",
        "every_image_is_accounted_for",
        f"DELETE FROM embeddings_colours WHERE {one_image('embeddings_colours')}",
        partition_key="01of2",
    )

    assert found.passed


def test_a_vector_that_is_too_long_is_found(evaluate):
    found = evaluate(
        "image_embeddings",
        "vectors_have_unit_length",
        f"UPDATE embeddings_colours SET embedding = '[2, 0, 0]' WHERE {one_image('embeddings_colours')}",
        partition_key="00of2",
    )

    assert not found.passed
    assert (found.metadata["off_unit"].value, found.metadata["longest"].value) == (1, 2.0)


def test_an_index_that_is_gone_is_found(evaluate, colours):
    store = open_store(colours)
    with store.engine.connect() as connection:
        name = connection.scalar(text("SELECT index_name FROM size_indexes WHERE size = 30"))
    store.engine.dispose()

    found = evaluate("embedding_index", "index_is_used", f"DROP INDEX {name}")

    assert not found.passed
    assert found.description == "not used at size(s) [30]: materialize embedding_index again"


def test_a_filter_that_kept_something_too_small_is_found(evaluate, colours):
    path = colours.state_dir / "assets" / "image_paths.parquet"
    pl.read_parquet(path).with_columns(width=pl.lit(999, pl.Int32)).write_parquet(path)

    found = evaluate("image_paths", "filter_is_sound")

    assert not found.passed
    assert found.description == "an image with a side of 999 was kept; at least 1000 is asked for"


def test_a_blocking_check_stops_what_builds_on_its_asset(definitions, instance, monkeypatch):
    wrong = catalog.Audit(rows=40, too_small=1, kept=40, smallest_side=10, problems=("all 40 images were kept",))
    monkeypatch.setattr(checks_module, "audit", lambda *_, **__: wrong)

    result = materialize(definitions, instance, "raw_archive", "image_paths", "embedding_index", raise_on_error=False)

    assert not result.success
    assert checks(result) == {"filter_is_sound": False}
    assert result.asset_materializations_for_node("embedding_index") == []
