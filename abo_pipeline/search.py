"""Search: a text, a picture, a stored image or a mix of them → the most similar stored images.

Rows of the store become hits here that a person can read. How a query becomes a vector is for ``query_vectors``, which
rows are nearest for ``store.nearest``; grids over several sizes are for ``report``.
"""

from __future__ import annotations

from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from abo_pipeline.encoder import Encoder
from abo_pipeline.errors import QueryError
from abo_pipeline.grids import row_figure
from abo_pipeline.hits import Hit, Hits
from abo_pipeline.pictures import Pictures
from abo_pipeline.queries import ImageQuery, LikeQuery, MixQuery, Part, Query, TextQuery
from abo_pipeline.query_vectors import QueryVector, QueryVectors
from abo_pipeline.sampling import LAST_KEY
from abo_pipeline.settings import Settings
from abo_pipeline.store import EmbeddingSpace, Store
from abo_pipeline.store.nearest import Neighbour, first_image, nearest, scope

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ImageSearch:
    """Finds stored images by meaning.

        search = ImageSearch(store, encoder)
        for hit in search("red shoe", k=5):
            print(hit.rank, hit.similarity, hit.caption)
        search.display(search("red shoe", k=5)).savefig("red-shoe.png")

    Args:
        store: where the vectors are.
        encoder: the model they were made with.
        settings: name the embedding space, and the archive for ``display``; by default those of the last run.

    Raises:
        QueryError: nothing has been embedded into the space yet.
        StoreError: the space was made with another model.
    """

    def __init__(self, store: Store, encoder: Encoder, settings: Settings | None = None) -> None:
        self.settings = settings or Settings.last()
        name = self.settings.space_name
        if store.find_space(name) is None:
            raise QueryError(f"Nothing has been embedded into space {name} yet. Run `abo run` (or `abo demo`) first.")
        self.space: EmbeddingSpace = store.open_space(name, encoder)
        self._encoder = encoder

    def __call__(
        self,
        query: str | Path | Query,
        k: int = 10,
        *,
        size: int | None = None,
        min_similarity: float | None = None,
    ) -> Hits:
        """The k stored images most similar to a query, or all there are.

        Args:
            query: a text as it stands, a path of a picture, or a ``Query``; ``parse_query`` makes one of an expression
                such as ``'"red shoe" - "heel"'``. Stored images that it is made from are never among its hits.
            k: how many hits, at least 1.
            size: search among so many images of the catalogue only; by default the largest size that is indexed.
            min_similarity: leave out hits below this cosine.

        Raises:
            QueryError: k or size is below 1, the text is empty, the picture cannot be read, or the id is unknown.
        """
        query = _as_query(query)
        if k < 1:
            raise QueryError(f"k is {k}; ask for at least 1 hit.")
        if size is not None and size < 1:
            raise QueryError(f"The size is {size}; search among at least 1 image.")
        if min_similarity is not None and not -1 <= min_similarity <= 1:
            raise QueryError(f"The least similarity is {min_similarity}; a cosine lies between -1 and 1.")
        vector, own_ids, warnings = self._vector(query)
        within = scope(self.space, None if size is None else min(size, LAST_KEY))
        found = nearest(self.space, vector, min(k, LAST_KEY), within, exclude=own_ids)
        hits = tuple(_hit(rank, neighbour) for rank, neighbour in enumerate(found, start=1))
        if min_similarity is not None:
            hits = tuple(hit for hit in hits if hit.similarity >= min_similarity)
        return Hits(query, hits, within.size, warnings)

    def display(self, hits: Hits) -> Figure:
        """The hits as one row of pictures, each with its similarity and caption."""
        return row_figure(hits, self.pictures)

    @cached_property
    def pictures(self) -> Pictures:
        """The photographs that hits can be shown with."""
        return Pictures.of(self.settings)

    def _vector(self, query: Query) -> QueryVector:
        """The query's unit vector, the stored images that it was made from, and warnings."""
        return QueryVectors(self.space, self._encoder, self.settings).of(query)


def stands_for(space: EmbeddingSpace, query: Query) -> Query:
    """A query of the settings with ``like:`` filled in: the first image, a member of every size."""
    match query:
        case LikeQuery(""):
            return LikeQuery(first_image(space) or "")
        case MixQuery(parts) if LikeQuery("") in (part.query for part in parts):
            first = LikeQuery(first_image(space) or "")
            return MixQuery(tuple(Part(p.weight, first if p.query == LikeQuery("") else p.query) for p in parts))
        case _:
            return query


def _as_query(query: str | Path | Query) -> Query:
    if isinstance(query, str):
        return TextQuery(query)
    return ImageQuery(query) if isinstance(query, Path) else query


def _hit(rank: int, neighbour: Neighbour) -> Hit:
    # A cosine computed from rounded numbers may come out a hair beyond its bounds.
    similarity = float(np.clip(neighbour.similarity, -1.0, 1.0))
    known = {field.name: getattr(neighbour, field.name) for field in fields(Hit) if field.name != "rank"}
    return Hit(rank, **(known | {"similarity": similarity}))
