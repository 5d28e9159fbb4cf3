"""What a set of results is made of: how many are of each type, colour and brand, and the words for the best one.

Everything is counted by Postgres, over the image_ids of a search. Which images those are is for ``nearest``; how the
counts are shown is for others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Engine, text

from abo_pipeline.store.database import transaction
from abo_pipeline.store.letters import letters

MOST_KEYWORDS = 5
"""How many keywords of the best product are told."""

DESCRIBED_BY = """
        LEFT JOIN LATERAL (
            SELECT item_id, domain_name FROM product_images
            WHERE product_images.image_id = h.image_id ORDER BY position, item_id, domain_name LIMIT 1
        ) shows ON true
        LEFT JOIN products p USING (item_id, domain_name)
"""
"""The product ``p`` that describes an image of ``hits h``. A picture may be listed for thousands of products: it is
described by one for which it is the main image, if any, and among those by the first."""


@dataclass(frozen=True)
class Count:
    """How often a value occurs; in the spelling that is most frequent, where only upper and lower case differ."""

    value: str
    count: int


@dataclass(frozen=True)
class Facet:
    """The values of one attribute over a set of images.

    Attributes:
        counts: images by value, the most frequent first and then by value.
        unknown: images without a product, or whose product does not say.
    """

    counts: tuple[Count, ...]
    unknown: int


@dataclass(frozen=True)
class Facets:
    """What the images of a set show: each image counts once, as what the product says that describes it."""

    product_type: Facet
    color: Facet
    brand: Facet


def facets(engine: Engine, image_ids: Sequence[str]) -> Facets:
    """Count the types, colours and brands of images.

    Args:
        engine: of the store or of an embedding space.
        image_ids: in any order; one that comes twice counts once, and one that is not known has no product.
    """
    statement = text(_facets(letters(engine)))
    with transaction(engine) as connection:
        rows = connection.execute(statement, {"ids": list(image_ids)}).all()
    return Facets(**{name: _facet([row[1:] for row in rows if row[0] == name]) for name in _ATTRIBUTES})


def keywords(engine: Engine, image_ids: Sequence[str], most: int = MOST_KEYWORDS) -> list[Count]:
    """The keywords of the best image's product, by how many products of the set have them too.

    A product is an item_id, and counts once however many of the images, and of its listings, are in the set. The
    best's own counts as well, so each keyword has at least 1.

    Args:
        engine: of the store or of an embedding space.
        image_ids: the best one first; the order of the others does not matter.
        most: how many keywords, at least 1.

    Returns:
        The most frequent first, and then by keyword; none if the best image has no product, or that no keywords.
    """
    statement = text(_keywords(letters(engine)))
    with transaction(engine) as connection:
        parameters = {"ids": list(image_ids), "most": most}
        return [Count(*row) for row in connection.execute(statement, parameters)]


_ATTRIBUTES = ("product_type", "color", "brand")


def _facet(rows: Sequence[tuple[str | None, int]]) -> Facet:
    counts = tuple(Count(value, count) for value, count in rows if value is not None)
    return Facet(counts, sum(count for value, count in rows if value is None))


def _facets(letters: str) -> str:
    """One row a value, and one for what is unknown. What ``mode`` gives keeps the collation that it was ordered by."""
    return f"""
        WITH hits AS (
            SELECT DISTINCT image_id FROM unnest(CAST(:ids AS text[])) AS given (image_id)
        ), described AS MATERIALIZED (
            SELECT p.product_type, p.color, p.brand FROM hits h {DESCRIBED_BY}
        )
        SELECT attribute, mode() WITHIN GROUP (ORDER BY said COLLATE "C") AS value, count(*) AS images
        FROM described CROSS JOIN LATERAL (
            VALUES ('product_type', product_type), ('color', color), ('brand', brand)
        ) AS attributes (attribute, said)
        GROUP BY attribute, lower(said COLLATE {letters})
        ORDER BY images DESC, value
    """


def _keywords(letters: str) -> str:
    """A spelling is as frequent as products have it; of equally frequent ones, ``mode`` takes the first."""
    return f"""
        WITH hits AS (
            SELECT image_id, min(place) AS place
            FROM unnest(CAST(:ids AS text[])) WITH ORDINALITY AS given (image_id, place) GROUP BY image_id
        ), described AS MATERIALIZED (
            SELECT h.place, p.item_id, p.keywords FROM hits h {DESCRIBED_BY}
        ), told AS MATERIALIZED (
            SELECT place, item_id, keyword, lower(keyword COLLATE {letters}) AS word
            FROM described CROSS JOIN LATERAL unnest(keywords) AS keyword
        ), said AS (
            SELECT DISTINCT item_id, keyword, word FROM told WHERE word IN (SELECT word FROM told WHERE place = 1)
        )
        SELECT mode() WITHIN GROUP (ORDER BY keyword COLLATE "C") AS value, count(DISTINCT item_id) AS products
        FROM said GROUP BY word
        ORDER BY products DESC, value LIMIT :most
    """
