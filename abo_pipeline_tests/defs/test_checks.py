"""Each check fails for the thing that it is there to find."""

from collections.abc import Callable

import dagster as dg
import polars as pl
import pytest
from sqlalchemy import text

from abo_pipeline import catalog
from abo_pipeline.definitions import build_definitions
from abo_pipeline.defs import checks as checks_module
from abo_pipeline.errors import StoreError
from abo_pipeline.settings import Settings
from abo_pipeline.store import open_store
from abo_pipeline_tests.defs.conftest import checks, materialize, materialize_all
from abo_pipeline_tests.fakes import ColourEncoder

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
    path = colours.state_dir / "assets" / "abo" / "image_paths.parquet"
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


def test_a_vector_of_another_model_is_found(evaluate):
    found = evaluate(
        "image_embeddings",
        "vectors_are_of_one_model",
        f"UPDATE embeddings_colours SET fingerprint = 'other' WHERE {one_image('embeddings_colours')}",
        partition_key="00of2",
    )

    assert (found.passed, found.blocking, found.metadata["foreign"].value) == (False, True, 1)
    assert found.description == (
        "1 vectors are not of mean-colour (c0104f00c0104f00): delete them from embeddings_colours and materialize the "
        "partition again"
    )


def test_a_failed_image_is_a_warning_that_says_how_to_try_it_again(evaluate):
    found = evaluate(
        "image_embeddings",
        "few_images_failed",
        "INSERT INTO failures (space, image_id, sample_key, digest, stage, error_type, message) "
        "SELECT 'colours', image_id, sample_key, digest, 'decode', 'OSError', 'truncated' FROM images "
        f"WHERE {one_image('images')}",
        partition_key="00of2",
    )

    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert found.description == (
        "1 images failed. `abo failures` lists them; `abo retry-failures`, or the job retry_failures_job, tries them "
        "again"
    )
    (reason,) = found.metadata["reasons"].records
    assert (reason.data["stage"], reason.data["error"], reason.data["images"]) == ("decode", "OSError", 1)


def test_an_index_that_comes_up_short_is_found_although_searches_go_on_exactly(evaluate, colours):
    store = open_store(colours)
    with store.engine.connect() as connection:
        name = connection.scalar(text("SELECT index_name FROM size_indexes WHERE size = 30"))
        definition = connection.scalar(text("SELECT pg_get_indexdef(CAST(:name AS regclass))"), {"name": f"abo.{name}"})
    store.engine.dispose()

    # Built anew while only 4 rows are there, and not told of the others: an index that lost pages looks so.
    found = evaluate(
        "embedding_index",
        "canary_query_answers",
        "CREATE TABLE aside AS SELECT * FROM embeddings_colours ORDER BY sample_key DESC LIMIT 36",
        "DELETE FROM embeddings_colours WHERE image_id IN (SELECT image_id FROM aside)",
        f"DROP INDEX {name}",
        definition,
        f"UPDATE pg_index SET indisready = false WHERE indexrelid = 'abo.{name}'::regclass",
        "INSERT INTO embeddings_colours SELECT * FROM aside",
        f"UPDATE pg_index SET indisready = true WHERE indexrelid = 'abo.{name}'::regclass",
    )

    assert (found.passed, found.blocking) == (False, True)
    (short,) = [row.data for row in found.metadata["answers"].records if row.data["size"] == 30]
    assert (short["hits"], short["of"], short["found"]) == (4, 10, False)


def test_no_index_is_built_over_vectors_of_another_model(definitions, instance, colours):
    materialize_all(definitions, instance)
    store = open_store(colours)
    with store.engine.begin() as connection:
        connection.execute(
            text(f"UPDATE embeddings_colours SET fingerprint = 'other' WHERE {one_image('embeddings_colours')}")
        )
    store.engine.dispose()

    with pytest.raises(StoreError) as refused:
        materialize(definitions, instance, "embedding_index")

    assert str(refused.value).startswith(
        "Of the vectors in embeddings_colours, 1 are not of mean-colour (c0104f00c0104f00) and 0 do not have length 1"
    )


def test_a_pending_image_of_a_size_is_a_warning(evaluate):
    found = evaluate(
        "embedding_index",
        "sizes_are_covered",
        "DELETE FROM embeddings_colours WHERE sample_key = (SELECT min(sample_key) FROM embeddings_colours)",
    )

    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert found.description.startswith("images are pending in size(s) [10, 30]: searches see a part of them.")
    assert [(row.data["size"], row.data["pending"]) for row in found.metadata["sizes"].records] == [(10, 1), (30, 1)]


def test_a_report_from_before_the_newest_embedding_is_a_warning(evaluate):
    found = evaluate("search_report", "report_is_fresh", "UPDATE spaces SET changed_at = now() + interval '1 hour'")

    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "materialize search_report again" in found.description
    assert found.metadata["embeddings_changed"].value > found.metadata["report_shows"].value


def test_a_report_that_shows_everything_is_fresh(evaluate):
    found = evaluate("search_report", "report_is_fresh")

    assert (found.passed, found.description) == (True, "nothing has changed since")


def test_what_was_made_for_another_space_is_not_mistaken_for_this_ones(evaluate, colours, instance):
    other = Settings.read(**colours.model_dump() | {"space": "others"})
    encoder = ColourEncoder(model="other", fingerprint="0dd0dd0dd0dd0dd0")
    materialize_all(build_definitions(other, encoder=encoder), instance)

    fresh = evaluate("search_report", "report_is_fresh")
    steady = evaluate("golden_queries", "golden_queries_are_steady")

    assert (fresh.passed, fresh.description) == (True, "nothing has changed since")
    # Either space has been recorded once: there is nothing to compare with, and least of all the other's answers.
    assert (steady.passed, steady.description) == (True, "nothing to compare with yet")


def test_other_answers_to_the_fixed_queries_are_a_warning(evaluate, definitions, instance):
    spoil = "UPDATE golden_hits SET image_id = 'other-' || rank"
    evaluate("golden_queries", "golden_queries_are_steady", spoil)
    materialize(definitions, instance, "golden_queries")

    found = evaluate("golden_queries", "golden_queries_are_steady")

    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert {name: value.value for name, value in found.metadata.items()} == {
        "overlap_at_10_10": 0.0,
        "overlap_at_10_30": 0.0,
    }


@pytest.mark.parametrize(
    ("spoiling", "words"),
    [
        (
            "UPDATE size_indexes SET measured = jsonb_set(measured, '{points}', "
            "(SELECT jsonb_agg(CASE WHEN p ->> 'kind' = 'text' THEN p || '{\"recall\": 0.5}' ELSE p END) "
            "FROM jsonb_array_elements(measured -> 'points') p)) WHERE size = 30",
            "below 0.99 at size(s) [30] with the largest effort there is: choose another strategy (`abo index "
            "--strategy NAME`, ABO_STRATEGY; exact finds everything), or a lower ABO_RECALL_TARGET",
        ),
        (
            "UPDATE size_indexes SET measured = NULL WHERE size = 10",
            "not measured for 0.99 at size(s) [10]: materialize embedding_index again",
        ),
        (
            # As for a lower target than now.
            "UPDATE size_indexes SET measured = jsonb_set(jsonb_set(measured, '{target}', '0.9'), '{points}', "
            "(SELECT jsonb_agg(p || '{\"recall\": 0.91}') FROM jsonb_array_elements(measured -> 'points') p)) "
            "WHERE size = 30",
            "not measured for 0.99 at size(s) [30]: materialize embedding_index again",
        ),
        ("DELETE FROM embeddings_colours", "fewer than two images are embedded: there is nothing to miss"),
        (
            # Whatever was measured before.
            "WITH gone AS (DELETE FROM embeddings_colours) UPDATE size_indexes SET measured = jsonb_set(measured, "
            "'{points}', (SELECT jsonb_agg(p || '{\"recall\": 0.5}') "
            "FROM jsonb_array_elements(measured -> 'points') p))",
            "fewer than two images are embedded: there is nothing to miss",
        ),
        ("DELETE FROM size_indexes", "not measured for 0.99 at size(s) [10, 30]: materialize embedding_index again"),
        ("SELECT 1", "at least 0.99 at every size"),
    ],
)
def test_recall_below_the_target_or_unknown_is_found_and_the_remedy_told(evaluate, spoiling, words):
    found = evaluate("embedding_index", "recall_meets_target", spoiling.replace(":", "\\:"))

    assert found.description == words
    assert found.passed == (spoiling == "SELECT 1" or "DELETE FROM embeddings_colours" in spoiling)
    assert found.blocking
    if spoiling == "SELECT 1":
        rows = [record.data for record in found.metadata["recall"].records]
        assert rows == [
            {"size": size, "strategy": "hnsw", "kind": kind, "k": k, "recall": 1.0}
            for size in (10, 30)
            for k in (10, 100)
            for kind in ("image", "text")
        ]
