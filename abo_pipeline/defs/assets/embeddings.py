"""image_embeddings: every kept image of a partition becomes a vector in Postgres, or a failure with its reason."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import dagster as dg
import polars as pl

from abo_pipeline.defs.conditions import fill_condition
from abo_pipeline.defs.history import machine, made_for
from abo_pipeline.defs.metadata import column_schema, table
from abo_pipeline.defs.partitions import image_partitions
from abo_pipeline.defs.resources import Progress, StoreResource
from abo_pipeline.embedding import Limits, Tally, embed_partition, refuse_too_many_failures
from abo_pipeline.encoder import Encoder
from abo_pipeline.pictures import open_images
from abo_pipeline.pools import ENCODER_POOL
from abo_pipeline.sampling import partition_range
from abo_pipeline.settings import Settings
from abo_pipeline.store.spaces import EmbeddingSpace, Reason


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
        pool=ENCODER_POOL,
        metadata={"dagster/table_name": f"embeddings_{settings.space_name}"},
        automation_condition=fill_condition(settings),
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
        batch in hand. A partition of which more than a set share failed is not accepted.
        """
        found = {}
        for key, tally, space in embed_partitions(
            context.partition_keys,
            image_paths,
            settings,
            encoder,
            store,
            progress,
            retry_failures=config.retry_failures,
        ):
            reasons = space.failures_by_reason(*partition_range(key))
            found[key] = described(tally, reasons, space, encoder, settings)
            context.log.info(f"{key}: {in_words(tally)}")
            refuse_too_many_failures(key, tally, reasons, settings.max_failed_share)
        if len(found) == 1:
            return dg.MaterializeResult(metadata=found.popitem()[1])
        # A result of its own for each partition of a range that was asked for as one run.
        for key, metadata in found.items():
            context.add_asset_metadata(metadata, partition_key=key)
        return dg.MaterializeResult()

    return image_embeddings


def embed_partitions(
    keys: Sequence[str],
    image_paths: pl.DataFrame,
    settings: Settings,
    encoder: Encoder,
    store: StoreResource,
    progress: Progress,
    **what: bool,
) -> Iterator[tuple[str, Tally, EmbeddingSpace]]:
    """Do the work of partitions, one after another; yields what was done in each.

    Args:
        keys: of the partitions.
        image_paths: the catalogue.
        settings: of the run.
        encoder: of the space.
        store: where the rows go.
        progress: told of each batch.
        what: as ``embed_partition`` takes it: ``retry_failures`` or ``only_failures``.
    """
    with (
        open_images(settings, image_paths) as archive,
        store.opened() as opened,
        opened.open_space(settings.space_name, encoder).being_written() as space,
    ):
        for key in keys:
            tally = embed_partition(
                key,
                image_paths,
                archive,
                encoder,
                space,
                limits=Limits.of(settings),
                batch_size=settings.batch_size,
                progress=partial(progress.embedding, key),
                **what,
            )
            yield key, tally, space


def in_words(tally: Tally) -> str:
    """What a run of a partition did, for its log."""
    return (
        f"{tally.embedded:,} embedded, {tally.unchanged:,} already there, {tally.failed:,} failed, "
        f"{tally.images_per_second:.1f} images/s"
    )


def described(
    tally: Tally, reasons: Sequence[Reason], space: EmbeddingSpace, encoder: Encoder, settings: Settings
) -> dict[str, Any]:
    """What a run of a partition did, as metadata of its materialization."""
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
        "machine": machine(),
        **made_for(settings),
        "model": space.model,
        "fingerprint": space.fingerprint,
        "failures": table([asdict(reason) for reason in reasons]),
    }
