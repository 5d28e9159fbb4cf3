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
from abo_pipeline.filters import FIELDS, Filters
from abo_pipeline.folding import FoldRules
from abo_pipeline.grids import thumbnail
from abo_pipeline.hits import Hit, Hits
from abo_pipeline.pools import ENCODER_POOL
from abo_pipeline.queries import Query, one_query, shown
from abo_pipeline.sampling import partition_keys, partition_range, partition_starts
from abo_pipeline.search import search_in
from abo_pipeline.settings import Settings
from abo_pipeline.store import Store


class FilterConfig(dg.Config):
    """Which images a search may answer with: see ``Filters``. Of a list, any value will do."""

    product_type: list[str] = Field(default=[], description="Such as CHAIR")
    color: list[str] = Field(default=[], description="In the seller's words")
    brand: list[str] = Field(default=[], description="In the seller's words")
    country: list[str] = Field(default=[], description="Such as US")
    keyword: list[str] = Field(default=[], description="Any of the product's keywords")
    title: list[str] = Field(default=[], description="Words that are all in the product's title")
    min_width: int | None = Field(default=None, description="Of the original image, in pixels")
    max_width: int | None = Field(default=None, description="Of the original image, in pixels")
    min_height: int | None = Field(default=None, description="Of the original image, in pixels")
    max_height: int | None = Field(default=None, description="Of the original image, in pixels")

    def filters(self) -> Filters:
        """The same for a search."""
        return Filters.of(**{name: getattr(self, name) for name in FIELDS})


class SearchConfig(dg.Config):
    """A search, as the launchpad asks for it: by a text, image, url or like, or by several of them together."""

    text: str | None = Field(
        default=None,
        description='What to look for, such as: red leather office chair, or a mix: "red shoe" + like:ID - "heel"',
    )
    image: str | None = Field(default=None, description="Path of a picture to find alike ones of")
    url: str | None = Field(default=None, description="URL of a picture to find alike ones of")
    like: str | None = Field(default=None, description="image_id of a stored image to find alike ones of")
    plus: list[str] = Field(default=[], description="Further texts that hits are to be like")
    minus: list[str] = Field(default=[], description="Texts that hits are to be unlike")
    k: int = Field(default=10, description="How many hits")
    size: int | None = Field(
        default=None, description="Search among so many images; unset for the largest indexed size"
    )
    min_similarity: float | None = Field(default=None, description="Leave out hits below this cosine")
    page: int = Field(default=1, description="The k hits after so many pages of k")
    fold: bool = Field(default=False, description="Make one hit of pictures of the same product, or that look the same")
    filters: FilterConfig = FilterConfig()
    space: str | None = Field(
        default=None, description="Embedding space to search; unset for the one that `abo spaces use` set"
    )

    def query(self) -> Query:
        """The one query that is asked for, or the mix of all that are.

        Raises:
            QueryError: none is, or too many are.
        """
        return one_query(
            self.text,
            images=_given(self.image),
            urls=_given(self.url),
            likes=_given(self.like),
            plus=self.plus,
            minus=self.minus,
        )


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
        hits = search(
            config.query(),
            config.k,
            size=config.size,
            min_similarity=config.min_similarity,
            filters=config.filters.filters(),
            page=config.page,
            fold=FoldRules() if config.fold else None,
        )
        for warning in hits.warnings:
            context.log.warning(warning)
        context.add_output_metadata(
            {
                "hits": table([_shown(hit) for hit in hits]),
                "pictures": picture(thumbnail(search.display(_first(hits))), shown(hits.query)),
                "count": len(hits),
                "match": str(hits.match or "not measured"),
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
    for run in embed_partitions(
        keys, image_paths, settings, encoder, store, progress, context.log.info, only_failures=True
    ):
        key, tally = run.key, run.tally
        reasons = run.space.failures_by_reason(*partition_range(key))
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
        context.log_event(event(EMBEDDINGS, partition=key, metadata=described(run, reasons, settings)))
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


def _given(value: str | None) -> list[str]:
    return [] if value is None else [value]


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
