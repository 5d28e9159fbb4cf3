"""Ops: work that leaves no asset behind. Searching is an op, because a question is not a thing that is kept."""

from typing import Any

import dagster as dg
from pydantic import Field

from abo_pipeline.defs.metadata import picture, table
from abo_pipeline.defs.resources import StoreResource
from abo_pipeline.encoder import Encoder
from abo_pipeline.grids import thumbnail
from abo_pipeline.hits import Hits, Query, one_query
from abo_pipeline.search import ImageSearch
from abo_pipeline.settings import Settings


class SearchConfig(dg.Config):
    """A search, as the launchpad asks for it: exactly one of text, image and like."""

    text: str | None = Field(None, description="What to look for, such as: red leather office chair")
    image: str | None = Field(None, description="Path of a picture to find alike ones of")
    like: str | None = Field(None, description="image_id of a stored image to find alike ones of")
    k: int = Field(10, description="How many hits")
    size: int | None = Field(None, description="Search among so many images; unset for the largest indexed size")
    min_similarity: float | None = Field(None, description="Leave out hits below this cosine")

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
    """The most similar stored images, as a table and a row of pictures in the output's metadata."""
    with store.opened() as opened:
        search = ImageSearch(opened, encoder, settings)
        hits = search(config.query(), config.k, size=config.size, min_similarity=config.min_similarity)
        for warning in hits.warnings:
            context.log.warning(warning)
        context.add_output_metadata(
            {
                "hits": table(hits.as_json()["hits"]),
                "pictures": picture(thumbnail(search.display(_first(hits))), str(hits.query)),
                "count": len(hits),
            }
        )
    return hits.as_json()


def _first(hits: Hits, count: int = 10) -> Hits:
    """As many as one row of pictures can show."""
    return Hits(hits.query, hits[:count], hits.size, hits.warnings)
