"""The door for Dagster: everything that a code location offers, assembled afresh for given settings."""

from typing import Any

import dagster as dg

from abo_pipeline.defs import checks
from abo_pipeline.defs.assets.archive import raw_archive
from abo_pipeline.defs.assets.catalog import image_paths, listings
from abo_pipeline.defs.assets.embeddings import image_embeddings_asset
from abo_pipeline.defs.assets.index import embedding_index
from abo_pipeline.defs.assets.ladder import storage_ladder
from abo_pipeline.defs.assets.report import golden_queries, search_report_asset
from abo_pipeline.defs.io_managers import ParquetIOManager
from abo_pipeline.defs.jobs import JOBS
from abo_pipeline.defs.resources import default_resources
from abo_pipeline.defs.schedules import build_schedules
from abo_pipeline.defs.sensors import build_sensors
from abo_pipeline.settings import Settings


def build_definitions(settings: Settings | None = None, **resource_overrides: Any) -> dg.Definitions:
    """The code location.

    Args:
        settings: by default those of the last run, with the variables of this process.
        resource_overrides: other resources than the settings imply, by name: ``encoder``, ``store``, ``progress``.
    """
    settings = settings or Settings.last()
    return dg.Definitions(
        assets=[
            raw_archive,
            listings,
            image_paths,
            image_embeddings_asset(settings),
            embedding_index,
            golden_queries,
            search_report_asset(settings),
            storage_ladder,
        ],
        asset_checks=[checks.filter_is_sound, *checks.partition_checks(settings), *checks.WHOLE_CHECKS],
        jobs=JOBS,
        schedules=build_schedules(settings),
        sensors=build_sensors(settings),
        resources={
            **default_resources(settings),
            "parquet": ParquetIOManager.of(settings),
            "in_memory": dg.mem_io_manager,
            **{
                name: dg.ResourceDefinition.hardcoded_resource(resource)
                for name, resource in resource_overrides.items()
            },
        },
        # The default starts a process for every step and every check, and each would import torch and load the model.
        executor=dg.in_process_executor,
    )


defs = build_definitions()
