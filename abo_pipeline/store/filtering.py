"""A filter as SQL: as a condition on one row, as the set of what matches, and as an estimate of how much that is.

What may be asked is said in ``abo_pipeline.filters``; which of the forms a search uses, in ``nearest``.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Engine, text

from abo_pipeline.filters import Filters
from abo_pipeline.store.database import transaction
from abo_pipeline.store.letters import letters
from abo_pipeline.store.spaces import EmbeddingSpace

SAMPLE = 1_000
"""Images whose matches are counted for an estimate. The first by sample key are a fair sample of all."""

_WORDS = (
    "string_to_array(btrim(regexp_replace("
    "lower(coalesce({text}, '') COLLATE {letters}), '[^[:alnum:]]+', ' ', 'g')), ' ')"
)
_VALUES = "ARRAY(SELECT lower(value COLLATE {letters}) FROM unnest(CAST(:filter_{name} AS text[])) value)"
_ANY_OF = {
    name: f"lower(p.{name} COLLATE {{letters}}) = ANY ({_VALUES.replace('{name}', name)})"
    for name in ("product_type", "color", "brand", "country")
}
_CONDITIONS = _ANY_OF | {
    "keyword": "EXISTS (SELECT FROM unnest(p.keywords) word "
    f"WHERE lower(word COLLATE {{letters}}) = ANY ({_VALUES.replace('{name}', 'keyword')}))",
    # Not by Postgres's text search: it takes black/white for the name of a file, and all but ASCII for letters in a
    # database of locale C. What is asked is made words of once, in a query of its own.
    "title": f"{_WORDS.replace('{text}', 'p.title')} @> (SELECT {_WORDS.replace('{text}', ':filter_title')})",
    "min_width": "i.width >= :filter_min_width",
    "max_width": "i.width <= :filter_max_width",
    "min_height": "i.height >= :filter_min_height",
    "max_height": "i.height <= :filter_max_height",
}


def parameters(filters: Filters) -> dict[str, Any]:
    """The values of a filter's conditions."""
    asked = filters.as_json()
    if "title" in asked:
        asked["title"] = " ".join(asked["title"])
    return {f"filter_{name}": value for name, value in asked.items()}


def row_condition(filters: Filters, engine: Engine) -> str:
    """Whether the image of a row ``e`` of an embeddings table matches.

    A scalar subquery, because the planner takes it for what it is, a condition to be asked of each row as it comes from
    an index; an EXISTS it may turn into a join, and the order of the index is lost. Products are a subquery again: of
    a join the planner may look at all products first, for each row, and before they were analysed it does.
    """
    if not filters:
        return "true"
    product = (
        "(SELECT true FROM product_images x WHERE x.image_id = e.image_id AND "
        f"(SELECT {_conditions(filters, 'p.', engine)} FROM products p "
        "WHERE p.item_id = x.item_id AND p.domain_name = x.domain_name) LIMIT 1)"
        if filters.on_products
        else "true"
    )
    return (
        "coalesce((SELECT true FROM images i WHERE i.image_id = e.image_id "
        f"AND {_conditions(filters, 'i.', engine)} AND {product} LIMIT 1), false)"
    )


def matching_images(filters: Filters, engine: Engine) -> str:
    """A condition on a row ``i`` of images, in the form that suits looking at all that match."""
    products = (
        "i.image_id IN (SELECT x.image_id FROM products p JOIN product_images x USING (item_id, domain_name) "
        f"WHERE {_conditions(filters, 'p.', engine)})"
        if filters.on_products
        else "true"
    )
    return f"{_conditions(filters, 'i.', engine)} AND {products}"


def estimated_share(space: EmbeddingSpace, cutoff: int, filters: Filters) -> float:
    """About how much of what is embedded up to a sample key matches, from 0 to 1."""
    if not filters:
        return 1.0
    counted = text(
        f"""
        SELECT coalesce(avg(CASE WHEN {row_condition(filters, space.engine)} THEN 1.0 ELSE 0.0 END), 0)
        FROM (SELECT image_id FROM {space.table.name} WHERE sample_key <= {cutoff} ORDER BY sample_key LIMIT {SAMPLE}) e
        """
    )
    with transaction(space.engine) as connection:
        return float(connection.execute(counted, parameters(filters)).scalar_one())


def count_matching(space: EmbeddingSpace, cutoff: int, filters: Filters, exclude: Sequence[str] = ()) -> int:
    """How many images of the catalogue, embedded and up to a sample key, match; without those to leave out."""
    counted = text(
        f"""
        SELECT count(*) FROM {space.table.name} e JOIN images i USING (image_id)
        WHERE e.sample_key <= {cutoff} AND i.image_id <> ALL (CAST(:exclude AS text[]))
        AND {matching_images(filters, space.engine)}
        """
    )
    with transaction(space.engine) as connection:
        return int(connection.execute(counted, parameters(filters) | {"exclude": list(exclude)}).scalar_one())


def _conditions(filters: Filters, table: str, engine: Engine) -> str:
    """Those conditions that are about a table, by its alias."""
    asked = [_CONDITIONS[name] for name in filters.as_json() if table in _CONDITIONS[name]]
    return " AND ".join(asked).replace("{letters}", letters(engine)) if asked else "true"
