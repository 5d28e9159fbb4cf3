"""image_embeddings: every kept image of a partition becomes a vector in Postgres, or a failure with its reason."""

from functools import partial
from typing import Any

import dagster as dg
import polars as pl

from abo_pipeline.defs.metadata import column_schema, table
from abo_pipeline.defs.partitions import image_partitions
from abo_pipeline.defs.resources import Progress, StoreResource
from abo_pipeline.embedding import Limits, Tally, embed_partition
from abo_pipeline.encoder import Encoder
from abo_pipeline.pictures import open_images
from abo_pipeline.sampling import partition_range
from abo_pipeline.settings import Settings
from abo_pipeline.store import EmbeddingSpace


class EmbeddingConfig(dg.Config):
    """What a run may be told."""

    retry_failures: bool = False
    """Try images again that failed before with the same bytes."""


def image_embeddings_asset(settings: Settings) -> dg.AssetsDefinition:
    """The asset, cut into as many partitions as the settings say."""

    # No backfill_policy: with any explicit one Dagster tags runs with a range, and partitioned checks lose their
    # partition.
    @dg.asset(
        partitions_def=image_partitions(settings),
        group_name="embeddings",
        kinds={"postgres", "huggingface"},
        owners=["team:search"],
        pool="encoder",
        metadata={"dagster/table_name": f"embeddings_{settings.space_name}"},
    )
    def image_embeddings(
        context: dg.AssetExecutionContext,
        config: EmbeddingConfig,
        image_paths: pl.DataFrame,
        settings: dg.ResourceParam[Settings],
        encoder: dg.ResourceParam[Encoder],
        store: dg.ResourceParam[StoreResource],
        progress: dg.ResourceParam[Progress],
    ) -> dg.MaterializeResult[None]:
        """One vector for each kept image of the partition; a bad file costs itself, and is recorded with its reason.

        What is there already is left alone. Rows are committed batch by batch, so an interrupted run loses at most the
        batch in hand.
        """
        found = {}
        with open_images(settings) as archive, store.opened() as opened:
            space = opened.open_space(settings.space_name, encoder)
            for key in context.partition_keys:
                tally = embed_partition(
                    key,
                    image_paths,
                    archive,
                    encoder,
                    space,
                    limits=Limits.of(settings),
                    batch_size=settings.batch_size,
                    retry_failures=config.retry_failures,
                    progress=partial(progress.embedding, key),
                )
                found[key] = _described(key, tally, space, encoder)
                context.log.info(
                    f"{key}: {tally.embedded:,} embedded, {tally.unchanged:,} already there, {tally.failed:,} failed, "
                    f"{tally.images_per_second:.1f} images/s"
                )
        if len(found) == 1:
            return dg.MaterializeResult(metadata=found.popitem()[1])
        # A result of its own for each partition of a range that was asked for as one run.
        for key, metadata in found.items():
            context.add_asset_metadata(metadata, partition_key=key)
        return dg.MaterializeResult()

    return image_embeddings


def _described(key: str, tally: Tally, space: EmbeddingSpace, encoder: Encoder) -> dict[str, Any]:
    reasons = ("stage", "error", "images", "example")
    failures = space.failures_by_reason(*partition_range(key))
    columns = space.table.columns
    return {
        "dagster/column_schema": column_schema(
            {column.name: column.type for column in columns}, {column.name: column.comment for column in columns}
        ),
        "dagster/partition_row_count": tally.unchanged + tally.embedded,
        "kept": tally.kept,
        "embedded": tally.embedded,
        "skipped": tally.unchanged,
        "failed": tally.failed,
        "failed_before": tally.known_failures,
        "removed": tally.removed,
        "images_per_second": round(tally.images_per_second, 2),
        **{f"seconds_{stage}": round(spent, 3) for stage, spent in tally.seconds.items()},
        "device": encoder.device if tally.done else "none needed",
        "model": space.model,
        "fingerprint": space.fingerprint,
        "failures": table([dict(zip(reasons, row, strict=True)) for row in failures]),
    }
