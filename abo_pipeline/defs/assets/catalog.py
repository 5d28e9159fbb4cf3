"""image_paths and listings: what there is to embed, and what is known of it."""

from functools import partial

import dagster as dg
import polars as pl

from abo_pipeline.archive import Archive
from abo_pipeline.catalog import COLUMN_MEANINGS, SCHEMA, read_catalogue
from abo_pipeline.defs.assets.archive import ArchiveConfig, taken_archive, taken_sha256
from abo_pipeline.defs.history import plan_of
from abo_pipeline.defs.metadata import column_schema, preview
from abo_pipeline.defs.resources import Progress, StoreResource
from abo_pipeline.download import fetch, local_path
from abo_pipeline.listings import COLUMN_MEANINGS as PRODUCT_MEANINGS
from abo_pipeline.listings import SCHEMA as PRODUCT_SCHEMA
from abo_pipeline.listings import Listings, no_listings, read_listings
from abo_pipeline.pictures import open_images
from abo_pipeline.settings import NO_LISTINGS, Settings


class CatalogueConfig(dg.Config):
    """What a run may be told."""

    allow_removal: bool = False
    """Take a catalogue that many embedded images are no longer in; their vectors go with them."""


@dg.asset(
    deps=["raw_archive"],
    io_manager_key="parquet",
    group_name="catalogue",
    kinds={"polars", "parquet", "postgres"},
    owners=["team:search"],
    metadata={
        "dagster/column_schema": column_schema(SCHEMA, COLUMN_MEANINGS),
        "dagster/table_name": "images",
    },
)
def image_paths(
    context: dg.AssetExecutionContext,
    config: CatalogueConfig,
    settings: dg.ResourceParam[Settings],
    store: dg.ResourceParam[StoreResource],
) -> dg.MaterializeResult[pl.DataFrame]:
    """The images that are kept: originals that are large enough and in the archive, in sample order.

    Rows that are not kept are counted by reason. The same rows go to Postgres, where searches find paths and sizes.
    The plan says what is left to embed.
    """
    with open_images(settings, sha256=taken_sha256(context.instance, settings)) as archive:
        catalogue = read_catalogue(archive, min_side=settings.min_side)
    with store.opened() as opened:
        merged = opened.write_images(catalogue.kept, allow_removal=config.allow_removal)
        plan = plan_of(opened, settings, context.instance)
    context.log.info(str(plan))
    return dg.MaterializeResult(
        value=catalogue.kept,
        metadata={
            "dagster/row_count": len(catalogue.kept),
            "rows": catalogue.rows,
            "kept": len(catalogue.kept),
            "min_side": settings.min_side,
            **{f"dropped: {reason}": count for reason, count in catalogue.dropped.items()},
            "added": merged.added,
            "changed": merged.changed,
            "removed": merged.removed,
            **taken_archive(context.instance),
            "plan": str(plan),
            "pending": plan.pending,
            "partitions_to_run": plan.partitions,
            **({} if plan.minutes is None else {"expected_minutes": round(plan.minutes, 1)}),
            "disk_needed_mb": round(plan.disk_bytes / 1e6, 1),
            "preview": preview(catalogue.kept),
        },
    )


@dg.asset(
    io_manager_key="parquet",
    group_name="catalogue",
    kinds={"polars", "parquet", "postgres"},
    owners=["team:search"],
    metadata={
        "dagster/column_schema": column_schema(PRODUCT_SCHEMA, PRODUCT_MEANINGS),
        "dagster/table_name": "products",
    },
)
def listings(
    config: ArchiveConfig,
    settings: dg.ResourceParam[Settings],
    store: dg.ResourceParam[StoreResource],
    progress: dg.ResourceParam[Progress],
) -> dg.MaterializeResult[pl.DataFrame]:
    """The products that the images show: title, type, colour, brand and keywords. Empty if no listings are set."""
    source, found = _read(settings, progress, refresh=config.refresh)
    with store.opened() as opened:
        merged = opened.write_products(found.products)
    return dg.MaterializeResult(
        value=found.products,
        metadata={
            "dagster/row_count": len(found.products),
            "source": source,
            "malformed_lines": found.malformed,
            "duplicates": found.duplicates,
            "images": found.products["image_ids"].explode().n_unique() if len(found.products) else 0,
            "added": merged.added,
            "changed": merged.changed,
            "removed": merged.removed,
            "preview": preview(found.products),
        },
    )


def _read(settings: Settings, progress: Progress, *, refresh: bool) -> tuple[str, Listings]:
    """Where the listings come from, fit to be shown, and what is in them."""
    if settings.listings_source is None:
        return NO_LISTINGS, no_listings()
    folder = settings.folder("archives")
    name = local_path(settings.listings_source, folder).name
    advance = partial(progress.download, name)
    fetched = fetch(settings.listings_source, folder, progress=advance, refresh=refresh)
    with Archive.open(fetched.path, folder) as archive:
        return fetched.source, read_listings(archive)
