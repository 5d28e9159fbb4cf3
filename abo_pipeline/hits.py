"""What is asked and what comes back: queries and hits, as plain values.

How a hit is found is for ``search``; how it is shown, for ``grids`` and the command line.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload

from abo_pipeline.errors import QueryError

LIKE = "like:"


@dataclass(frozen=True)
class TextQuery:
    """A phrase such as "red leather office chair"."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class ImageQuery:
    """A picture in a file."""

    path: Path

    def __str__(self) -> str:
        return f"picture {self.path.name}"


@dataclass(frozen=True)
class LikeQuery:
    """A stored image: "more like this"."""

    image_id: str

    def __str__(self) -> str:
        return f"{LIKE}{self.image_id}"


Query = TextQuery | ImageQuery | LikeQuery


def one_query(text: str | None, image: Path | str | None, like: str | None) -> Query:
    """The one query that is asked for.

    Raises:
        QueryError: none is, or several are.
    """
    given: list[Query] = []
    if text is not None:
        given.append(TextQuery(text))
    if image is not None:
        given.append(ImageQuery(Path(image)))
    if like is not None:
        given.append(LikeQuery(like))
    if len(given) != 1:
        raise QueryError(f"Give exactly one of a text, a picture and a stored image; {len(given)} were given.")
    return given[0]


def parse_query(text: str) -> TextQuery | LikeQuery:
    """A query as a setting holds it: ``like:ID`` means a stored image, anything else is a text."""
    text = text.strip()
    return LikeQuery(text.removeprefix(LIKE).strip()) if text.startswith(LIKE) else TextQuery(text)


@dataclass(frozen=True)
class Hit:
    """One result.

    Attributes:
        rank: from 1.
        similarity: cosine, −1…1.
        path: of the file, below images/small/ in the archive.
        item_id, title, product_type, color, brand: of a product that the image shows; None without listings.
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

    @property
    def caption(self) -> str:
        """What to write under the picture: the product's title, or the file."""
        return self.title or self.path


@dataclass(frozen=True)
class Hits(Sequence[Hit]):
    """The results of one query, most similar first.

    Attributes:
        query: as asked.
        size: MAX_IMAGES that was searched; fewer images may be there. None for all.
        warnings: what to know about the answer, such as a text that was cut.
        space: the embedding space that all hits come from.
    """

    query: Query
    hits: tuple[Hit, ...]
    size: int | None
    warnings: tuple[str, ...] = ()
    space: str | None = None

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
            "query": str(self.query),
            "size": self.size,
            "warnings": list(self.warnings),
            "hits": [asdict(hit) for hit in self.hits],
            "space": self.space,
        }
