"""What comes back from a search: hits, as plain values.

What is asked is in ``queries``, and can be imported from here too. How a hit is found is for ``search``; how it is
shown, for ``grids`` and the command line.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, overload

from abo_pipeline.filters import NO_FILTER, Filters
from abo_pipeline.queries import (
    ImageQuery,
    LikeQuery,
    MixQuery,
    Part,
    Query,
    TextQuery,
    UrlQuery,
    one_query,
    parse_query,
    recorded,
)

__all__ = [
    "Hit",
    "Hits",
    "ImageQuery",
    "LikeQuery",
    "MixQuery",
    "Part",
    "Query",
    "TextQuery",
    "UrlQuery",
    "one_query",
    "parse_query",
]


@dataclass(frozen=True)
class Hit:
    """One result.

    Attributes:
        rank: from 1.
        similarity: cosine, −1…1.
        path: of the file, below images/small/ in the archive.
        item_id, title, product_type, color, brand: of a product that the image shows; None without listings.
        folded: image_ids of other pictures of the same thing that this one stands for.
    """

    rank: int
    image_id: str
    path: str
    similarity: float
    item_id: str | None = None
    title: str | None = None
    product_type: str | None = None
    color: str | None = None
    brand: str | None = None
    folded: tuple[str, ...] = ()

    @property
    def caption(self) -> str:
        """What to write under the picture: the product's title, or the file."""
        return self.title or self.path


@dataclass(frozen=True)
class Match:
    """How good the best hit of a query is, beside those of random queries of its kind.

    Attributes:
        kind: text or image.
        percentile: the share of random queries whose best hit is less similar, from 0 to 1.
    """

    kind: str
    percentile: float

    @property
    def good(self) -> bool:
        """Whether the query found something that random ones do not."""
        return self.percentile >= GOOD_PERCENTILE

    def __str__(self) -> str:
        words = f"the best hit is nearer than those of {self.percentile:.0%} of random {self.kind}s"
        return words if self.good else f"no good match: {words}"


GOOD_PERCENTILE = 0.95
"""A flat bound on the similarity would be another one for every model and every kind of query; this one is not."""


@dataclass(frozen=True)
class Hits(Sequence[Hit]):
    """The results of one query, most similar first.

    Attributes:
        query: as asked.
        size: MAX_IMAGES that was searched; fewer images may be there. None for all.
        warnings: what to know about the answer, such as a text that was cut.
        space: the embedding space that all hits come from.
        page: which part of all hits these are, from 1.
        filters: that they satisfy.
        match: how good the best hit of the first page is; None without hits, or before that has been measured.
    """

    query: Query
    hits: tuple[Hit, ...]
    size: int | None
    warnings: tuple[str, ...] = ()
    space: str | None = None
    page: int = 1
    filters: Filters = NO_FILTER
    match: Match | None = None

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Hit, ...]: ...
    def __getitem__(self, index: int | slice) -> Hit | tuple[Hit, ...]:
        return self.hits[index]

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def as_json(self) -> dict[str, Any]:
        """Plain values, ready for ``json.dumps``."""
        return {
            "query": recorded(self.query),
            "size": self.size,
            "warnings": list(self.warnings),
            "hits": [asdict(hit) for hit in self.hits],
            "space": self.space,
            "page": self.page,
            "filters": self.filters.as_json(),
            "match": self.match and {**asdict(self.match), "good": self.match.good},
        }
