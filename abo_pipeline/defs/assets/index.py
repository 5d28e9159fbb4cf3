"""embedding_index: one vector index a size."""

import dagster as dg
import polars as pl

from abo_pipeline.defs.conditions import follow_condition
from abo_pipeline.defs.history import made_for
from abo_pipeline.defs.metadata import table
from abo_pipeline.defs.resources import Progress, StoreResource
from abo_pipeline.encoder import Encoder
from abo_pipeline.sampling import cutoff
from abo_pipeline.settings import Settings
from abo_pipeline.store.indexes import build_index, drop_sizes_but
from abo_pipeline.store.nearest import recall, scope


@dg.asset(
    deps=[dg.AssetDep("image_embeddings", partition_mapping=dg.AllPartitionMapping())],
    group_name="embeddings",
    kinds={"postgres"},
    owners=["team:search"],
    automation_condition=follow_condition(),
)
def embedding_index(
    image_paths: pl.DataFrame,
    settings: dg.ResourceParam[Settings],
    encoder: dg.ResourceParam[Encoder],
    store: dg.ResourceParam[StoreResource],
    progress: dg.ResourceParam[Progress],
) -> dg.MaterializeResult[None]:
    """An HNSW index for each size, over the images up to the size's last sample key.

    Not built over vectors of another model or length. An index that is there and valid is kept; one that is replaced
    serves until the new one is valid. The recall of each is measured against exact search.
    """
    with store.opened() as opened:
        space = opened.open_space(settings.space_name, encoder)
        # The partitions' own checks block nothing here: partitions and index are never made by the same run.
        space.require_sound()
        statuses = [
            build_index(
                space,
                size,
                cutoff(image_paths["sample_key"], size),
                memory_mb=settings.index_memory_mb,
                progress=progress.building,
            )
            for size in settings.sizes
        ]
        drop_sizes_but(space, list(settings.sizes), progress.building)
        recalls = {size: recall(space, scope(space, size)) for size in settings.sizes}
    return dg.MaterializeResult(
        metadata={
            **made_for(settings),
            "indexes": table(
                [
                    {
                        "size": status.size,
                        "rows": status.rows,
                        "recall_at_10": _rounded(recalls[status.size]),
                        "built": status.built,
                        "seconds": round(status.seconds, 2),
                        "bytes": status.bytes,
                        "valid": status.valid,
                        "ready": status.ready,
                        "name": status.name,
                    }
                    for status in statuses
                ]
            ),
            "built": sum(status.built for status in statuses),
            "bytes": sum(status.bytes for status in statuses),
            "seconds": round(sum(status.seconds for status in statuses), 2),
            **{f"rows_{status.size}": status.rows for status in statuses},
            # Numbers by themselves: Dagster plots these over time.
            **{f"recall_at_10_{size}": _rounded(found) for size, found in recalls.items() if found is not None},
        }
    )


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)
