"""A small run that needs no model: squares of one colour, embedded as their colour."""

from pathlib import Path

import dagster as dg
import pytest

from abo_pipeline.definitions import build_definitions
from abo_pipeline.settings import Settings
from abo_pipeline_tests.archives import jpeg, write_images
from abo_pipeline_tests.fakes import ColourEncoder

SQUARES = {f"aa/red-{n}.jpg": jpeg((255, 6 * n, 0)) for n in range(20)} | {
    f"bb/blue-{n}.jpg": jpeg((0, 6 * n, 255)) for n in range(20)
}


@pytest.fixture
def colours(tmp_path: Path, database_url: str) -> Settings:
    """Settings of a run over the squares."""
    return Settings.read(
        state_dir=tmp_path / "state",
        archive=str(write_images(tmp_path / "squares.tar", SQUARES)),
        database_url=database_url,
        space="colours",
        sizes="10,30",
        partitions=2,
        batch_size=8,
        exact_below=0,
        queries=("red", "like:"),
        report_k=4,
    )


@pytest.fixture
def definitions(colours: Settings) -> dg.Definitions:
    """The code location for that run."""
    return build_definitions(colours, encoder=ColourEncoder())


@pytest.fixture
def instance() -> dg.DagsterInstance:
    """A real instance, kept in memory."""
    return dg.DagsterInstance.ephemeral()


def materialize(
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    *assets: str,
    partition_key: str | None = None,
    run_config: dict | None = None,
    raise_on_error: bool = True,
) -> dg.ExecuteInProcessResult:
    """Run some assets and their checks."""
    return definitions.resolve_implicit_global_asset_job_def().execute_in_process(
        asset_selection=[dg.AssetKey(asset) for asset in assets],
        instance=instance,
        partition_key=partition_key,
        run_config=run_config,
        raise_on_error=raise_on_error,
    )


def materialize_all(definitions: dg.Definitions, instance: dg.DagsterInstance, partitions: int = 2) -> None:
    """Every asset, in order."""
    materialize(definitions, instance, "raw_archive", "listings", "image_paths")
    for number in range(partitions):
        materialize(definitions, instance, "image_embeddings", partition_key=f"{number:02}of{partitions}")
    materialize(definitions, instance, "embedding_index", "golden_queries", "search_report")


def metadata(result: dg.ExecuteInProcessResult, asset: str) -> dict:
    """What an asset reported, as plain values."""
    (materialization,) = result.asset_materializations_for_node(asset)
    return {
        name: [record.data for record in value.records] if isinstance(value, dg.TableMetadataValue) else value.value
        for name, value in materialization.metadata.items()
    }


def checks(result: dg.ExecuteInProcessResult) -> dict[str, bool]:
    """Which checks ran, and whether they passed."""
    return {check.check_name: check.passed for check in result.get_asset_check_evaluations()}
