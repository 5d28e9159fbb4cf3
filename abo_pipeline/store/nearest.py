"""The nearest stored images to a vector: by a size's index, or exactly.

The contract is "the k nearest, or all there are". An index answers approximately and may come up short, so its
candidates are ordered again by their full-precision vectors, and a short answer is replaced by an exact one. How a
query vector comes about, and what a hit looks like to people, is for ``search``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, TextClause, select, text

from abo_pipeline.sampling import LAST_KEY
from abo_pipeline.store.database import transaction
from abo_pipeline.store.schema import Image, SizeIndex
from abo_pipeline.store.spaces import EmbeddingSpace

EF_SEARCH = 200
"""Candidates that HNSW keeps while it walks. Text queries lie off the cone of image vectors and need several times the
effort of image queries for the same recall: 200 gave 0.99 for both at 100,000 rows."""

MAX_EF_SEARCH = 1000
"""pgvector's limit. A larger k is answered exactly."""

CANDIDATES_PER_HIT = 3
"""So many times k are fetched by half-precision distance, to be ordered by the exact one."""


RECALL_QUERIES = 50
"""Stored vectors that an index's recall is measured with."""


@dataclass(frozen=True)
class Neighbour:
    """A stored image near to a query, with what is known of it; texts of the product are None without listings."""

    image_id: str
    path: str
    similarity: float
    item_id: str | None
    title: str | None
    product_type: str | None
    color: str | None
    brand: str | None


@dataclass(frozen=True)
class Scope:
    """The part of a space that a search sees: the images up to a sample key.

    Attributes:
        size: as asked for; None for every image there is.
        cutoff: the last sample key.
        index_name: the vector index that serves it; None for an exact scan.
    """

    size: int | None
    cutoff: int
    index_name: str | None


def scope(space: EmbeddingSpace, size: int | None) -> Scope:
    """What a size means now: as it was indexed, or by the catalogue if it was not.

    Args:
        space: where to search.
        size: number of images, at least 1; None for the largest size that has an index.
    """
    indexed = select(SizeIndex).where(SizeIndex.space == space.name)
    with transaction(space.engine) as connection:
        if size is None:
            row = connection.execute(indexed.order_by(SizeIndex.size.desc()).limit(1)).one_or_none()
        else:
            row = connection.execute(indexed.where(SizeIndex.size == size)).one_or_none()
        if row:
            return Scope(row.size, row.cutoff, row.index_name)
        last = None
        if size is not None:
            nth = select(Image.sample_key).order_by(Image.sample_key).offset(size - 1).limit(1)
            last = connection.scalar(nth)
    # 0 is a key like any other.
    return Scope(size, LAST_KEY if last is None else last, None)


def nearest(
    space: EmbeddingSpace, vector: NDArray[np.float32], k: int, scope: Scope, *, exclude: Sequence[str] = ()
) -> list[Neighbour]:
    """The k images of a scope with the highest cosine similarity to a vector, or all there are; ties by image_id.

    Args:
        space: where to search.
        vector: (dimension,), of length 1.
        k: at least 1.
        scope: which images to see.
        exclude: image_ids to leave out.
    """
    if scope.index_name and k <= MAX_EF_SEARCH:
        found = by_index(space, vector, k, scope, exclude=exclude)
        if len(found) == k:
            return found
    # In a transaction of its own, without the settings that keep the planner to an index.
    with transaction(space.engine) as connection:
        parameters = {"query": vector, "k": k, "exclude": list(exclude)}
        return [Neighbour(*row) for row in connection.execute(_exact(space, scope), parameters)]


def by_index(
    space: EmbeddingSpace, vector: NDArray[np.float32], k: int, scope: Scope, *, exclude: Sequence[str] = ()
) -> list[Neighbour]:
    """What the index of a scope finds by itself: approximately the k nearest, and perhaps fewer.

    Takes what ``nearest`` takes; the scope must have an index.
    """
    parameters = {"query": vector, "k": k, "exclude": list(exclude), "candidates": _candidates(k)}
    with transaction(space.engine) as connection:
        _set_effort(connection, k)
        return [Neighbour(*row) for row in connection.execute(_indexed(space, scope), parameters)]


def explain(space: EmbeddingSpace, vector: NDArray[np.float32], k: int, scope: Scope) -> str:
    """Postgres's plan of the search that ``nearest`` runs, under the settings that it runs with."""
    parameters = {"query": vector, "k": k, "exclude": [], "candidates": _candidates(k)}
    with transaction(space.engine) as connection:
        _set_effort(connection, k)
        statement = _indexed(space, scope) if scope.index_name else _exact(space, scope)
        plan = connection.execute(text(f"EXPLAIN {statement.text}"), parameters)
        return "\n".join(line for (line,) in plan)


def recall(space: EmbeddingSpace, scope: Scope, k: int = 10, queries: int = RECALL_QUERIES) -> float | None:
    """recall@k of the index: the share of the k truly nearest images that it finds by itself, from 0 to 1.

    Asked with stored vectors, each without its own image: those of the first images by sample key, which are a fair
    sample. An image that is as near as the last of the true ones counts as found.

    Args:
        space: where to search.
        scope: which images to see; with an index.
        k: hits a query.
        queries: how many to ask.

    Returns:
        The mean over the queries; None if fewer than two images are embedded.
    """
    columns = space.table.c
    sample = select(columns.image_id, columns.embedding).where(columns.sample_key <= scope.cutoff)
    with transaction(space.engine) as connection:
        asked = connection.execute(sample.order_by(columns.sample_key).limit(queries)).all()
    shares = []
    for image_id, vector in asked:
        truth = nearest(space, vector, k, Scope(scope.size, scope.cutoff, None), exclude=[image_id])
        found = by_index(space, vector, k, scope, exclude=[image_id])
        if truth:
            bound = truth[-1].similarity - 1e-6
            shares.append(sum(hit.similarity >= bound for hit in found) / len(truth))
    return float(np.mean(shares)) if shares else None


def stored_vector(space: EmbeddingSpace, image_id: str) -> NDArray[np.float32] | None:
    """The vector of an image; None if it has none."""
    query = select(space.table.c.embedding).where(space.table.c.image_id == image_id)
    with transaction(space.engine) as connection:
        vector = connection.scalar(query)
    return None if vector is None else np.asarray(vector, dtype=np.float32)


def first_image(space: EmbeddingSpace) -> str | None:
    """The embedded image of the catalogue with the smallest sample key: a member of every size."""
    known = space.table.join(Image, Image.image_id == space.table.c.image_id)
    query = select(space.table.c.image_id).select_from(known).order_by(space.table.c.sample_key).limit(1)
    with transaction(space.engine) as connection:
        return connection.scalar(query)


def image_path(space: EmbeddingSpace, image_id: str) -> str | None:
    """The path of an image of the catalogue; None if there is no such image."""
    with transaction(space.engine) as connection:
        return connection.scalar(select(Image.path).where(Image.image_id == image_id))


def _candidates(k: int) -> int:
    return min(max(CANDIDATES_PER_HIT * k, 30), MAX_EF_SEARCH)


def _set_effort(connection: Connection, k: int) -> None:
    """Settings of this transaction: they would do nothing outside one."""
    effort = max(EF_SEARCH, _candidates(k))
    for setting in (
        f"hnsw.ef_search = {effort}",
        # Goes on when a filter has eaten candidates, instead of returning fewer.
        "hnsw.iterative_scan = strict_order",
        # On a small table the planner would rather sort all rows than trust an index.
        "enable_sort = off",
        "enable_seqscan = off",
    ):
        connection.execute(text(f"SET LOCAL {setting}"))


def _indexed(space: EmbeddingSpace, scope: Scope) -> TextClause:
    """By the partial halfvec index, then by exact distance.

    The cutoff is a literal: as a parameter it would be lost to the planner once the statement has a generic plan, and
    the partial index with it. The ordering has the form of the index's expression, for nothing else would use it.
    """
    half = f"halfvec({space.dimension})"
    return text(
        f"""
        WITH candidates AS MATERIALIZED (
            SELECT image_id, embedding FROM {space.table.name}
            WHERE sample_key <= {scope.cutoff} AND image_id <> ALL (CAST(:exclude AS text[]))
            ORDER BY CAST(embedding AS {half}) <=> CAST(CAST(:query AS vector) AS {half})
            LIMIT :candidates
        ), hits AS MATERIALIZED (
            SELECT image_id, embedding <=> CAST(:query AS vector) AS distance
            FROM candidates ORDER BY distance, image_id LIMIT :k
        )
        {_DESCRIBED}
        """
    )


def _exact(space: EmbeddingSpace, scope: Scope) -> TextClause:
    """By comparing with every vector of the scope: adding 0 keeps the planner from any index on the distance."""
    return text(
        f"""
        WITH hits AS MATERIALIZED (
            SELECT image_id, (embedding <=> CAST(:query AS vector)) + 0 AS distance
            FROM {space.table.name} e JOIN images USING (image_id)
            WHERE e.sample_key <= {scope.cutoff} AND image_id <> ALL (CAST(:exclude AS text[]))
            ORDER BY distance, image_id LIMIT :k
        )
        {_DESCRIBED}
        """
    )


_DESCRIBED = """
        SELECT h.image_id, i.path, 1 - h.distance AS similarity,
               p.item_id, p.title, p.product_type, p.color, p.brand
        FROM hits h
        JOIN images i USING (image_id)
        LEFT JOIN LATERAL (
            SELECT item_id, domain_name FROM product_images
            WHERE product_images.image_id = h.image_id ORDER BY position, item_id, domain_name LIMIT 1
        ) shows ON true
        LEFT JOIN products p USING (item_id, domain_name)
        ORDER BY h.distance, h.image_id
"""
"""A picture may be listed for thousands of products: it is described by one for which it is the main image, if any,
and among those by the first."""


def stored_with_digest(space: EmbeddingSpace, digest: str) -> list[str]:
    """The images of the catalogue whose files have this digest, as ``archive.digest_of`` gives it; by image_id."""
    query = select(Image.image_id).where(Image.digest == digest).order_by(Image.image_id)
    with transaction(space.engine) as connection:
        return list(connection.scalars(query))
