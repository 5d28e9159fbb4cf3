"""image_embeddings: every kept image of a partition becomes a vector in Postgres, or a failure with its reason."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
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
from abo_pipeline.encoder import Encoder, Say
from abo_pipeline.fidelity import Sample, settled
from abo_pipeline.openvino_tower import CALIBRATION_IMAGES
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

        What is there already is left alone. Rows are committed as they come, so an interrupted run loses at most the
        batches in hand. A partition of which more than a set share failed is not accepted.
        """
        found = {}
        for run in embed_partitions(
            context.partition_keys,
            image_paths,
            settings,
            encoder,
            store,
            progress,
            context.log.info,
            retry_failures=config.retry_failures,
        ):
            reasons = run.space.failures_by_reason(*partition_range(run.key))
            found[run.key] = described(run, reasons, settings)
            context.log.info(f"{run.key}: {in_words(run.tally)}")
            refuse_too_many_failures(run.key, run.tally, reasons, settings.max_failed_share)
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
    say: Say,
    **what: bool,
) -> Iterator["Run"]:
    """Do the work of partitions, one after another; yields what was done in each.

    Args:
        keys: of the partitions.
        image_paths: the catalogue.
        settings: of the run.
        encoder: of the space.
        store: where the rows go.
        progress: told which encoder a new space takes, and of each batch.
        say: told of the encoder too, as the run's log.
        what: as ``embed_partition`` takes it: ``retry_failures`` or ``only_failures``.
    """
    limits = Limits.of(settings)

    def tell(words: str) -> None:
        say(words)
        progress.choosing(words)

    with open_images(settings, image_paths) as archive, store.opened() as opened:
        sample = Sample(image_paths, archive, limits)
        space, taken = settled(opened, settings.space_name, encoder, sample, tell)
        fidelity = opened.fidelity(space.name) or {}
        with space.being_written():
            for key in keys:
                tally = embed_partition(
                    key,
                    image_paths,
                    archive,
                    taken,
                    space,
                    limits=limits,
                    batch_size=settings.batch_size,
                    get_ready=lambda: taken.make_ready(lambda: sample.pictures(CALIBRATION_IMAGES), tell),
                    progress=partial(progress.embedding, key),
                    **what,
                )
                yield Run(key, tally, space, taken, fidelity)


@dataclass(frozen=True)
class Run:
    """What was done in a partition, by which encoder, and how true that was found to be before its first use."""

    key: str
    tally: Tally
    space: EmbeddingSpace
    encoder: Encoder
    fidelity: Mapping[str, Any]


def in_words(tally: Tally) -> str:
    """What a run of a partition did, for its log."""
    words = f"{tally.embedded:,} embedded, {tally.unchanged:,} already there, {tally.failed:,} failed"
    if not tally.done:
        return words
    seconds = ", ".join(f"{stage} {spent:.1f}" for stage, spent in tally.seconds.items())
    threads = f"{tally.workers} thread{'s' if tally.workers > 1 else ''}"
    return (
        f"{words}, {tally.images_per_second:.1f} images/s; seconds of {threads}: {seconds}; "
        f"the bottleneck is {tally.bottleneck}"
    )


def described(run: Run, reasons: Sequence[Reason], settings: Settings) -> dict[str, Any]:
    """What a run of a partition did, as metadata of its materialization."""
    tally, space = run.tally, run.space
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
        "shared": tally.shared,
        "images_per_second": round(tally.images_per_second, 2),
        "seconds": round(tally.elapsed, 3),
        **{f"seconds_{stage}": round(spent, 3) for stage, spent in tally.seconds.items()},
        "bottleneck": tally.bottleneck,
        "device": run.encoder.device if tally.done else "none needed",
        "precision": run.encoder.precision,
        "fidelity": dg.MetadataValue.json(dict(run.fidelity)),
        "machine": machine(),
        **made_for(settings),
        "model": space.model,
        "fingerprint": space.fingerprint,
        "failures": table([asdict(reason) for reason in reasons]),
    }
