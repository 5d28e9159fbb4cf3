"""Asset checks: what must hold before anybody builds on an asset. Blocking where wrong results would follow.

A check looks again by other means than the asset used: at the csv, at the rows, at the planner. What repairs a finding
is said in its description.
"""

import warnings
from collections.abc import Sequence
from functools import partial

import dagster as dg
import polars as pl

from abo_pipeline.catalog import audit
from abo_pipeline.defs.metadata import table
from abo_pipeline.defs.partitions import image_partitions
from abo_pipeline.defs.resources import StoreResource
from abo_pipeline.encoder import Encoder
from abo_pipeline.pictures import open_images
from abo_pipeline.sampling import partition_keys, partition_range, partition_starts
from abo_pipeline.settings import Settings
from abo_pipeline.store.nearest import explain, first_image, scope, stored_vector

NORM_TOLERANCE = 1e-3


@dg.asset_check(asset="image_paths", blocking=True)
def filter_is_sound(image_paths: pl.DataFrame, settings: dg.ResourceParam[Settings]) -> dg.AssetCheckResult:
    """Something was kept, nothing too small was, and not everything although some images are too small."""
    with open_images(settings) as archive:
        found = audit(image_paths, archive, min_side=settings.min_side)
    return dg.AssetCheckResult(
        passed=not found.problems,
        description="; ".join(found.problems) or f"the smallest kept side is {found.smallest_side}",
        metadata={
            "rows": found.rows,
            "too_small": found.too_small,
            "kept": found.kept,
            "smallest_kept_side": -1 if found.smallest_side is None else found.smallest_side,
        },
    )


@dg.asset_check(asset="embedding_index", blocking=True)
def index_is_used(
    settings: dg.ResourceParam[Settings],
    encoder: dg.ResourceParam[Encoder],
    store: dg.ResourceParam[StoreResource],
) -> dg.AssetCheckResult:
    """Postgres plans the search at each size through that size's index."""
    with store.opened() as opened:
        space = opened.open_space(settings.space_name, encoder)
        image_id = first_image(space)
        vector = None if image_id is None else stored_vector(space, image_id)
        if vector is None:
            return dg.AssetCheckResult(passed=False, description="no image is embedded: run image_embeddings first")
        rows = []
        for size in settings.sizes:
            within = scope(space, size)
            plan = explain(space, vector, 10, within)
            used = within.index_name is not None and f"using {within.index_name} " in plan
            rows.append({"size": size, "index": within.index_name, "used": used, "plan": plan})
    unused = [row["size"] for row in rows if not row["used"]]
    return dg.AssetCheckResult(
        passed=not unused,
        description=f"not used at size(s) {unused}: materialize embedding_index again"
        if unused
        else "used at every size",
        metadata={"plans": table(rows)},
    )


def partition_checks(settings: Settings) -> Sequence[dg.AssetChecksDefinition]:
    """The checks of image_embeddings, one run of each a partition."""
    # With the asset's partitions: a check without them would be about all partitions each time one has run.
    partitioned = partial(
        dg.asset_check, asset="image_embeddings", partitions_def=image_partitions(settings), blocking=True
    )

    def every_image_is_accounted_for(
        context: dg.AssetCheckExecutionContext,
        settings: dg.ResourceParam[Settings],
        encoder: dg.ResourceParam[Encoder],
        store: dg.ResourceParam[StoreResource],
    ) -> dg.AssetCheckResult:
        """Kept = embedded + failed in the partition: nothing pending, nothing of an image that is gone."""
        number = partition_keys(settings.partitions).index(context.partition_key)
        with store.opened() as opened:
            space = opened.open_space(settings.space_name, encoder)
            account = space.accounts(partition_starts(settings.partitions))[number]
        words = (
            f"kept {account.kept:,} = embedded {account.embedded:,} + failed {account.failed:,} "
            f"+ pending {account.pending:,}; {account.departed:,} of images that are gone"
        )
        return dg.AssetCheckResult(
            passed=account.settled,
            description=words if account.settled else f"{words}. Materialize the partition again.",
            metadata={
                "kept": account.kept,
                "embedded": account.embedded,
                "failed": account.failed,
                "pending": account.pending,
                "departed": account.departed,
            },
        )

    def vectors_have_unit_length(
        context: dg.AssetCheckExecutionContext,
        settings: dg.ResourceParam[Settings],
        encoder: dg.ResourceParam[Encoder],
        store: dg.ResourceParam[StoreResource],
    ) -> dg.AssetCheckResult:
        """The stored vectors of the partition have length 1 ± 0.001, none NaN."""
        with store.opened() as opened:
            space = opened.open_space(settings.space_name, encoder)
            found = space.check_norms(*partition_range(context.partition_key), NORM_TOLERANCE)
        return dg.AssetCheckResult(
            passed=found.off_unit == 0,
            description=f"{found.off_unit:,} of {found.vectors:,} vectors are off",
            metadata={
                "vectors": found.vectors,
                "off_unit": found.off_unit,
                "shortest": found.shortest or 0.0,
                "longest": found.longest or 0.0,
            },
        )

    with warnings.catch_warnings():
        # Partitioned checks are new in Dagster 1.13, which says so whenever one is made.
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return [partitioned()(every_image_is_accounted_for), partitioned()(vectors_have_unit_length)]
