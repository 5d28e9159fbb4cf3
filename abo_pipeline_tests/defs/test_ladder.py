"""The storage ladder as an asset, on a real instance."""

import json
from pathlib import Path

import dagster as dg
import pytest

from abo_pipeline.definitions import defs
from abo_pipeline.defs.assets.ladder import LadderConfig
from abo_pipeline.errors import SettingsError
from abo_pipeline.ladder import RUNGS
from abo_pipeline.runner import AFTER, ASSETS
from abo_pipeline_tests.defs.conftest import materialize, metadata


@pytest.fixture
def embedded(definitions: dg.Definitions, instance: dg.DagsterInstance) -> None:
    materialize(definitions, instance, "raw_archive", "image_paths")
    for key in ("00of2", "01of2"):
        materialize(definitions, instance, "image_embeddings", partition_key=key)
    materialize(definitions, instance, "embedding_index")


@pytest.mark.usefixtures("embedded")
def test_the_asset_shows_table_plot_and_recommendation_and_writes_them(definitions, instance, colours):
    config = {"ops": {"storage_ladder": {"config": {"rungs": ["exact", "hnsw", "halfvec"]}}}}

    found = metadata(materialize(definitions, instance, "storage_ladder", run_config=config), "storage_ladder")

    folder = colours.state_dir / "reports" / "abo" / "colours" / "ladder"
    assert (found["plot_file"], found["numbers_file"]) == (str(folder / "ladder.png"), str(folder / "ladder.json"))
    assert (found["size"], found["rows"], found["catalogue"], found["space"]) == (30, 30, "abo", "colours")
    assert [row["rung"] for row in found["rungs"]] == ["exact", "hnsw", "halfvec"]
    assert all(row["text_recall_at_10"] > 0.9 and row["bytes"] > 0 for row in found["rungs"])
    assert found["left_out"] == "*none*"
    assert found["recommendation"].endswith("To have it, set ABO_EXACT_BELOW above 30.")
    assert found["recommended"] == "exact"
    assert found["recall_time_and_bytes"].startswith("![recall against time, and bytes](data:image/png;base64,")
    written = json.loads(Path(found["numbers_file"]).read_text(encoding="utf-8"))
    assert written["recommendation"] == found["recommendation"]


@pytest.mark.usefixtures("embedded")
def test_the_report_leaves_the_ladder_where_it_is(definitions, instance, colours):
    config = {"ops": {"storage_ladder": {"config": {"rungs": ["exact"], "size": 10}}}}
    materialize(definitions, instance, "storage_ladder", run_config=config)

    materialize(definitions, instance, "listings", "search_report")

    folder = colours.state_dir / "reports" / "abo" / "colours" / "ladder"
    assert sorted(path.name for path in folder.iterdir()) == ["ladder.json", "ladder.png"]


@pytest.mark.usefixtures("embedded")
def test_a_rung_that_there_is_not_stops_the_run_with_the_reason(definitions, instance):
    config = {"ops": {"storage_ladder": {"config": {"rungs": ["hsnw"]}}}}

    with pytest.raises(SettingsError) as refused:
        materialize(definitions, instance, "storage_ladder", run_config=config)

    assert str(refused.value).startswith("The ladder has no rung 'hsnw'. There are exact, hnsw, ")


def test_nothing_makes_it_but_its_own_job(definitions):
    (ladder,) = [spec for spec in definitions.resolve_all_asset_specs() if spec.key == dg.AssetKey("storage_ladder")]

    assert ladder.automation_condition is None
    assert "storage_ladder" not in (*ASSETS, *AFTER)
    jobs = {job.name for job in defs.jobs if "storage_ladder" in job_assets(definitions, job.name)}
    assert jobs == {"ladder_job"}


def job_assets(definitions: dg.Definitions, name: str) -> set[str]:
    keys = definitions.resolve_job_def(name).asset_layer.executable_asset_keys
    return {key.to_user_string() for key in keys}


def test_the_rungs_are_named_where_they_are_asked_for():
    described = LadderConfig.model_fields["rungs"].description

    assert all(rung.name in described for rung in RUNGS)
