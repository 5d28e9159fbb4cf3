"""Ops: work that makes no asset of its own.

Searching is one, because a question is not a thing that is kept; so is replaying failures, which mends partitions
wherever they are.
"""

from dataclasses import replace
from typing import Any

import dagster as dg
import polars as pl
from pydantic import Field

from abo_pipeline.defs.assets.embeddings import described, embed_partitions, in_words
from abo_pipeline.defs.checks import judged_failures
from abo_pipeline.defs.history import EMBEDDINGS
from abo_pipeline.defs.metadata import picture, table
from abo_pipeline.defs.resources import Progress, StoreResource
from abo_pipeline.embedding import refuse_too_many_failures
from abo_pipeline.encoder import Encoder
from abo_pipeline.errors import FailuresError
from abo_pipeline.grids import thumbnail
from abo_pipeline.hits import Hit, Hits, Query, one_query
from abo_pipeline.pools import ENCODER_POOL
from abo_pipeline.sampling import partition_keys, partition_range, partition_starts
from abo_pipeline.search import search_in
from abo_pipeline.settings import Settings
from abo_pipeline.store import Store


class SearchConfig(dg.Config):
    """A search, as the launchpad asks for it: exactly one of text, image and like."""

    text: str | None = Field(default=None, description="What to look for, such as: red leather office chair")
    image: str | None = Field(default=None, description="Path of a picture to find alike ones of")
    like: str | None = Field(default=None, description="image_id of a stored image to find alike ones of")
    k: int = Field(default=10, description="How many hits")
    size: int | None = Field(
        default=None, description="Search among so many images; unset for the largest indexed size"
    )
    min_similarity: float | None = Field(default=None, description="Leave out hits below this cosine")
    space: str | None = Field(
        default=None, description="Embedding space to search; unset for the one that `abo spaces use` set"
    )

    def query(self) -> Query:
        """The one query that is asked for.

        Raises:
            QueryError: none is, or several are.
        """
        return one_query(self.text, self.image, self.like)


@dg.op(out=dg.Out(io_manager_key="in_memory"))
def search_images(
    context: dg.OpExecutionContext,
    config: SearchConfig,
    settings: dg.ResourceParam[Settings],
    encoder: dg.ResourceParam[Encoder],
    store: dg.ResourceParam[StoreResource],
) -> dict[str, Any]:
    """The most similar stored images, as a table and a row of pictures in the output's metadata.

    In the space that searches use by default, whichever the runs of this code location embed into.
    """
    with store.opened() as opened:
        search = search_in(opened, settings, space=config.space, encoder=encoder)
        hits = search(config.query(), config.k, size=config.size, min_similarity=config.min_similarity)
        for warning in hits.warnings:
            context.log.warning(warning)
        context.add_output_metadata(
            {
                "hits": table([_shown(hit) for hit in hits]),
                "pictures": picture(thumbnail(search.display(_first(hits))), str(hits.query)),
                "count": len(hits),
                "space": search.space.name,
            }
        )
    return hits.as_json()


@dg.op(pool=ENCODER_POOL, out=dg.Out(io_manager_key="in_memory"))
def replay_failures(
    context: dg.OpExecutionContext,
    image_paths: pl.DataFrame,
    settings: dg.ResourceParam[Settings],
    encoder: dg.ResourceParam[Encoder],
    store: dg.ResourceParam[StoreResource],
    progress: dg.ResourceParam[Progress],
) -> dict[str, int]:
    """Try the failed images again, and no others; their partitions show what came of it."""
    with store.opened() as opened:
        keys = partitions_with_failures(opened, settings)
    totals = {"partitions": len(keys), "embedded": 0, "failed": 0}
    refused = []
    for key, tally, space in embed_partitions(
        keys, image_paths, settings, encoder, store, progress, only_failures=True
    ):
        reasons = space.failures_by_reason(*partition_range(key))
        context.log.info(f"{key}: {in_words(tally)}")
        totals["embedded"] += tally.embedded
        totals["failed"] += tally.failed
        # A partition in which something is pending still, or too much has failed, is not done, and must not look so.
        event = dg.AssetObservation if tally.left else dg.AssetMaterialization
        try:
            refuse_too_many_failures(key, tally, reasons, settings.max_failed_share)
        except FailuresError as error:
            refused.append(str(error))
            event = dg.AssetObservation
        context.log_event(
            event(EMBEDDINGS, partition=key, metadata=described(tally, reasons, space, encoder, settings))
        )
        context.instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(
                EMBEDDINGS,
                "few_images_failed",
                severity=dg.AssetCheckSeverity.WARN,
                partition=key,
                **judged_failures(reasons),
            )
        )
    context.add_output_metadata(totals)
    if refused:
        raise FailuresError(" ".join(refused))
    return totals


def partitions_with_failures(store: Store, settings: Settings) -> list[str]:
    """Keys of the partitions in which images failed, in the catalogue's order."""
    accounts = store.accounts(settings.space_name, partition_starts(settings.partitions))
    keys = partition_keys(settings.partitions)
    return [key for key, account in zip(keys, accounts, strict=True) if account.failed]


def _shown(hit: Hit) -> dict[str, Any]:
    """A hit as a row that fits a page."""
    what = {"type": hit.product_type, "color": hit.color, "brand": hit.brand}
    return {
        "rank": hit.rank,
        "similarity": round(hit.similarity, 4),
        "image_id": hit.image_id,
        "shows": hit.caption,
        **{name: value or "" for name, value in what.items()},
    }


def _first(hits: Hits, count: int = 10) -> Hits:
    """As many as one row of pictures can show."""
    return replace(hits, hits=hits[:count])
