"""Asset checks: what must hold before anybody builds on an asset.

Blocking where wrong results would follow, a warning where a person should look.

A check looks again by other means than the asset used: at the csv, at the rows, at the planner. What repairs a finding
is said in its description.
"""

import warnings
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import dagster as dg
import polars as pl

from abo_pipeline.catalog import audit
from abo_pipeline.defs.history import last_metadata, report_as_of
from abo_pipeline.defs.metadata import table
from abo_pipeline.defs.partitions import image_partitions
from abo_pipeline.defs.resources import StoreResource
from abo_pipeline.encoder import Encoder
from abo_pipeline.evaluation import SizeMeasures
from abo_pipeline.pictures import open_images
from abo_pipeline.sampling import LAST_KEY, partition_range
from abo_pipeline.settings import Settings
from abo_pipeline.store.canary import ask_canary
from abo_pipeline.store.explain import plan_of
from abo_pipeline.store.measures import measured
from abo_pipeline.store.nearest import Ask, first_image, scope, stored_vector
from abo_pipeline.store.spaces import NORM_TOLERANCE, Reason

STEADY_OVERLAP = 0.5
"""overlap@10 over the fixed queries, below which a person should look."""

_NOTHING_EMBEDDED = "no image is embedded: run image_embeddings first"


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
    """Postgres plans the search at each size as it was built to be: through the size's index, or exactly."""
    with store.opened() as opened:
        space = opened.open_space(settings.space_name, encoder)
        image_id = first_image(space)
        vector = None if image_id is None else stored_vector(space, image_id)
        if vector is None:
            return dg.AssetCheckResult(passed=False, description=_NOTHING_EMBEDDED)
        known = {found.size for found in measured(space, settings.sizes)}
        rows = []
        for size in settings.sizes:
            within = scope(space, size)
            plan = plan_of(space, Ask(vector, 10, within))
            used = size in known and (within.index_name is None or f"using {within.index_name} " in plan)
            rows.append({"size": size, "index": within.index_name or "none", "used": used, "plan": plan})
    unused = [row["size"] for row in rows if not row["used"]]
    return dg.AssetCheckResult(
        passed=not unused,
        description=f"not used at size(s) {unused}: materialize embedding_index again"
        if unused
        else "every size is searched as it was built to be",
        metadata={"plans": table(rows)},
    )


@dg.asset_check(asset="embedding_index", blocking=True)
def canary_query_answers(
    settings: dg.ResourceParam[Settings],
    encoder: dg.ResourceParam[Encoder],
    store: dg.ResourceParam[StoreResource],
) -> dg.AssetCheckResult:
    """At each size, a stored vector finds its own image through the index, and as many others as are there."""
    with store.opened() as opened:
        space = opened.open_space(settings.space_name, encoder)
        answers = [ask_canary(space, size) for size in settings.sizes]
    known = [answer for answer in answers if answer]
    if not known:
        return dg.AssetCheckResult(passed=False, description=_NOTHING_EMBEDDED)
    lost = [answer.size for answer in known if not answer.found]
    return dg.AssetCheckResult(
        passed=not lost,
        description=f"image {known[0].image_id} does not find itself, or too few others, at size(s) {lost}: "
        "`abo index --rebuild`, or embedding_index with rebuild: true, builds them anew"
        if lost
        else f"image {known[0].image_id} finds itself at every size",
        metadata={"answers": table([asdict(answer) | {"found": answer.found} for answer in known])},
    )


@dg.asset_check(asset="embedding_index", blocking=True)
def recall_meets_target(
    settings: dg.ResourceParam[Settings],
    encoder: dg.ResourceParam[Encoder],
    store: dg.ResourceParam[StoreResource],
) -> dg.AssetCheckResult:
    """At each size, searches find as much of what an exact search finds as they are to, for pictures and for texts."""
    with store.opened() as opened:
        space = opened.open_space(settings.space_name, encoder)
        found = {known.size: known.measures for known in measured(space, settings.sizes)}
        vectors = space.vectors(LAST_KEY)
    target = settings.recall_target
    measures = {size: SizeMeasures.of(plain) for size, plain in found.items() if plain}
    missed = [size for size in settings.sizes if size not in measures or not measures[size].meets(target)]
    # What was tuned for a lower target may be had with more effort.
    unknown = [size for size in missed if size not in measures or measures[size].target < target]
    low = [size for size in missed if size not in unknown]
    rows = [
        {"size": known.size, "strategy": known.strategy, "kind": kind, "k": k, "recall": round(recall, 4)}
        for known in measures.values()
        for (kind, k), recall in known.recalls().items()
    ]
    nothing_to_miss = vectors < 2
    if nothing_to_miss:
        words = "fewer than two images are embedded: there is nothing to miss"
    elif unknown:
        words = f"not measured for {target} at size(s) {unknown}: materialize embedding_index again"
    elif low:
        words = (
            f"below {target} at size(s) {low} with the largest effort there is: choose another "
            "strategy (`abo index --strategy NAME`, ABO_STRATEGY; exact finds everything), or a lower ABO_RECALL_TARGET"
        )
    else:
        words = f"at least {target} at every size"
    return dg.AssetCheckResult(
        passed=nothing_to_miss or not missed, description=words, metadata={"recall": table(rows)}
    )


@dg.asset_check(asset="embedding_index")
def sizes_are_covered(
    settings: dg.ResourceParam[Settings],
    encoder: dg.ResourceParam[Encoder],
    store: dg.ResourceParam[StoreResource],
) -> dg.AssetCheckResult:
    """Every image of each size has been embedded, or has failed with a reason."""
    with store.opened() as opened:
        space = opened.open_space(settings.space_name, encoder)
        accounts = {size: space.account(0, scope(space, size).cutoff) for size in settings.sizes}
    short = [size for size, account in accounts.items() if account.pending]
    return dg.AssetCheckResult(
        passed=not short,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"images are pending in size(s) {short}: searches see a part of them. Run the missing partitions, "
        "or switch on the schedule fill_partitions"
        if short
        else "nothing is pending in any size",
        metadata={
            "sizes": table(
                [
                    {
                        "size": size,
                        "kept": account.kept,
                        "embedded": account.embedded,
                        "failed": account.failed,
                        "pending": account.pending,
                    }
                    for size, account in accounts.items()
                ]
            )
        },
    )


@dg.asset_check(asset="golden_queries")
def golden_queries_are_steady(
    context: dg.AssetCheckExecutionContext, settings: dg.ResourceParam[Settings]
) -> dg.AssetCheckResult:
    """At no size do the fixed queries find mostly other images than at the recording before."""
    found = {
        name: value
        for name, value in last_metadata(context.instance, "golden_queries", settings).items()
        if name.startswith("overlap_at_10_") and isinstance(value, float | int)
    }
    low = {name: value for name, value in found.items() if value < STEADY_OVERLAP}
    return dg.AssetCheckResult(
        passed=not low,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{low}: below {STEADY_OVERLAP}. If many images were embedded since the last recording, this is "
        "what they brought; if not, look at the table of changes, and at recall in embedding_index"
        if low
        else (f"{found}" if found else "nothing to compare with yet"),
        metadata=found,
    )


@dg.asset_check(asset="search_report")
def report_is_fresh(
    context: dg.AssetCheckExecutionContext,
    settings: dg.ResourceParam[Settings],
    encoder: dg.ResourceParam[Encoder],
    store: dg.ResourceParam[StoreResource],
) -> dg.AssetCheckResult:
    """The report shows what is embedded: nothing was embedded, removed or failed since it was made."""
    shows = report_as_of(context.instance, settings)
    with store.opened() as opened:
        changed = opened.open_space(settings.space_name, encoder).changed_at()
    fresh = shows is not None and shows >= changed
    return dg.AssetCheckResult(
        passed=fresh,
        severity=dg.AssetCheckSeverity.WARN,
        description="nothing has changed since"
        if fresh
        else f"embeddings changed at {changed:%Y-%m-%d %H:%M:%S %Z}: materialize search_report again, or switch on the "
        "schedule renew_report",
        metadata={
            "embeddings_changed": dg.MetadataValue.timestamp(changed),
            **({"report_shows": dg.MetadataValue.timestamp(shows)} if shows else {}),
        },
    )


def partition_checks(settings: Settings) -> Sequence[dg.AssetChecksDefinition]:
    """The checks of image_embeddings, one run of each a partition."""
    # With the asset's partitions: a check without them would be about all partitions each time one has run.
    partitioned = partial(dg.asset_check, asset="image_embeddings", partitions_def=image_partitions(settings))

    def every_image_is_accounted_for(
        context: dg.AssetCheckExecutionContext,
        settings: dg.ResourceParam[Settings],
        encoder: dg.ResourceParam[Encoder],
        store: dg.ResourceParam[StoreResource],
    ) -> dg.AssetCheckResult:
        """Kept = embedded + failed in the partition: nothing pending, nothing of an image that is gone."""
        with store.opened() as opened:
            space = opened.open_space(settings.space_name, encoder)
            account = space.account(*partition_range(context.partition_key))
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

    def vectors_are_of_one_model(
        context: dg.AssetCheckExecutionContext,
        settings: dg.ResourceParam[Settings],
        encoder: dg.ResourceParam[Encoder],
        store: dg.ResourceParam[StoreResource],
    ) -> dg.AssetCheckResult:
        """All vectors of the partition have the space's own fingerprint: those of two models cannot be compared."""
        with store.opened() as opened:
            space = opened.open_space(settings.space_name, encoder)
            found = space.fingerprints(*partition_range(context.partition_key))
        foreign = sum(count for fingerprint, count in found.items() if fingerprint != space.fingerprint)
        return dg.AssetCheckResult(
            passed=not foreign,
            description=f"{foreign:,} vectors are not of {space.model} ({space.fingerprint}): delete them from "
            f"{space.table.name} and materialize the partition again"
            if foreign
            else f"all are of {space.model} ({space.fingerprint})",
            metadata={"fingerprints": dg.MetadataValue.json(found), "foreign": foreign},
        )

    def few_images_failed(
        context: dg.AssetCheckExecutionContext,
        settings: dg.ResourceParam[Settings],
        encoder: dg.ResourceParam[Encoder],
        store: dg.ResourceParam[StoreResource],
    ) -> dg.AssetCheckResult:
        """No image of the partition failed; those that did, by reason and with an example."""
        with store.opened() as opened:
            space = opened.open_space(settings.space_name, encoder)
            reasons = space.failures_by_reason(*partition_range(context.partition_key))
        return dg.AssetCheckResult(severity=dg.AssetCheckSeverity.WARN, **judged_failures(reasons))

    with warnings.catch_warnings():
        # Partitioned checks are new in Dagster 1.13, which says so whenever one is made.
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return [
            partitioned(blocking=True)(every_image_is_accounted_for),
            partitioned(blocking=True)(vectors_have_unit_length),
            partitioned(blocking=True)(vectors_are_of_one_model),
            partitioned()(few_images_failed),
        ]


def judged_failures(reasons: Sequence[Reason]) -> dict[str, Any]:
    """What ``few_images_failed`` says of a partition whose images failed for these reasons."""
    failed = sum(reason.images for reason in reasons)
    return {
        "passed": not failed,
        "description": f"{failed:,} images failed. `abo failures` lists them; `abo retry-failures`, or the job "
        "retry_failures_job, tries them again"
        if failed
        else "none failed",
        "metadata": {"failed": failed, "reasons": table([asdict(reason) for reason in reasons])},
    }


WHOLE_CHECKS = (
    index_is_used,
    canary_query_answers,
    recall_meets_target,
    sizes_are_covered,
    golden_queries_are_steady,
    report_is_fresh,
)
"""Those that are about everything, and can be asked at any time whether all still holds."""
