"""The nearest stored images to a vector: by a size's index, or exactly.

The contract is "the k nearest, or all there are", under any filter. An index answers approximately and may come up
short, so its candidates are ordered again by their full-precision vectors, and a short answer, or one whose end lies
among equals that may not all have been seen, is replaced by an exact one. A filter that few images pass is answered by
comparing with those few. How a query vector comes about, and what a hit looks like to people, is for ``search``.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Dialect, Select, func, literal_column, select, table, text, true
from sqlalchemy.exc import DBAPIError

from abo_pipeline.errors import DamagedIndexError, StoreError
from abo_pipeline.filters import NO_FILTER, Filters
from abo_pipeline.sampling import LAST_KEY
from abo_pipeline.store.analytics import DESCRIBED_BY
from abo_pipeline.store.database import damage, is_gone, transaction, tuned
from abo_pipeline.store.filtering import estimated_share, matching_images, parameters, row_condition
from abo_pipeline.store.schema import Image, SizeIndex, Space
from abo_pipeline.store.spaces import EmbeddingSpace, as_array
from abo_pipeline.store.strategies import EXACT, MAX_EF_SEARCH, STRATEGIES, Strategy, membership

MOST_BY_INDEX = MAX_EF_SEARCH
"""A larger k is answered exactly."""

FEW_MATCHES = 10_000
"""Images that pass a filter, up to which they are all compared: that takes about 15 ms, and leaves nothing out."""


MOST_AT_ONCE = 10_000
"""So many images of a walk are in memory at once, unless more are asked for."""


@dataclass(frozen=True)
class Neighbour:
    """A stored image near to a query, with what is known of it; texts of the product are None without listings.

    Attributes:
        distance: 1 − similarity, as Postgres computed it: with the id it is the place in the order.
        digest: of the file.
        vector: (dimension,) if it was asked for.
    """

    image_id: str
    path: str
    similarity: float
    item_id: str | None
    title: str | None
    product_type: str | None
    color: str | None
    brand: str | None
    digest: str = field(default="", compare=False)
    distance: float = field(default=0.0, compare=False)
    vector: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Scope:
    """The part of a space that a search sees, and how it is searched.

    Attributes:
        size: as asked for; None for every image there is.
        cutoff: the last sample key.
        index_name: the vector index that serves it; None for an exact scan.
        strategy: of that index.
        rows: vectors when the index was built.
        efforts: what the index's effort was tuned to, by number of hits; empty if it has not been.
        extension: with its version, that the index was last seen to work with; None without an index.
        is_upgraded: whether the extension has another version now.
    """

    size: int | None
    cutoff: int
    index_name: str | None
    strategy: str = EXACT
    rows: int = 0
    efforts: Mapping[int, int] = field(default_factory=dict)
    extension: str | None = None
    is_upgraded: bool = False

    def effort(self, k: int) -> int:
        """The effort for k hits: as tuned for the next larger number, or in proportion beyond the largest."""
        if not self.efforts:
            return STRATEGIES[self.strategy].default_effort
        for known, effort in sorted(self.efforts.items()):
            if k <= known:
                return effort
        return -(-effort * k // known)


@dataclass(frozen=True)
class Ask:
    """A search as the store answers it.

    Attributes:
        vector: (dimension,), of length 1.
        k: at least 1.
        scope: which images to see.
        exclude: image_ids to leave out.
        filters: what a hit must satisfy.
        after: go on behind this place: distance and image_id of the last hit that was seen.
        seen: how many hits lie before that place, and are passed over on the way.
        with_vectors: give each hit's stored vector too.
        effort: of the index; None for what was tuned.
    """

    vector: NDArray[np.float32]
    k: int
    scope: Scope
    exclude: Sequence[str] = ()
    filters: Filters = NO_FILTER
    after: tuple[float, str] | None = None
    seen: int = 0
    with_vectors: bool = False
    effort: int | None = None

    @property
    def depth(self) -> int:
        """How far down the order of all images the answer reaches: what the effort has to be for."""
        return self.seen + self.k

    def candidates(self, strategy: Strategy, effort: int) -> int:
        """How many rows to take from the index, those not counted that were seen before."""
        return max(strategy.candidates(self.depth, effort) - self.seen, strategy.candidates(self.k, 0))


@dataclass(frozen=True)
class Way:
    """How a search is to be answered.

    Attributes:
        strategy: of the index to go by; None for an exact scan.
        reason: why, in words.
        effort: of the index.
        visited: rows that the index scan may have to look at.
    """

    strategy: Strategy | None
    reason: str
    effort: int = 0
    visited: int = 0


def scope(space: EmbeddingSpace, size: int | None) -> Scope:
    """What a size means now: as it was indexed, or by the catalogue if it was not.

    Args:
        space: where to search.
        size: number of images, at least 1; None for the largest size that has been indexed.

    Raises:
        StoreError: the space has been dropped since it was opened; another of its name is another space.
    """
    wanted = (SizeIndex.space == Space.name) & (true() if size is None else SizeIndex.size == size)
    is_upgraded = SizeIndex.index_name.is_not(None) & func.coalesce(SizeIndex.extension, "").not_in(_EXTENSIONS)
    query = (
        select(Space.fingerprint, SizeIndex.__table__, is_upgraded.label("is_upgraded"))
        .select_from(Space)
        .outerjoin(SizeIndex, wanted)
        .where(Space.name == space.name)
        .order_by(SizeIndex.size.desc().nulls_last())
        .limit(1)
    )
    with transaction(space.engine) as connection:
        row = connection.execute(query).one_or_none()
        if row is None or row.fingerprint != space.fingerprint:
            raise space.lost(None if row is None else row.fingerprint)
        if row.size is not None:
            efforts = {int(k): effort for k, effort in (row.efforts or {}).items()}
            known = row.strategy, row.rows, efforts, row.extension, row.is_upgraded
            return Scope(row.size, row.cutoff, row.index_name, *known)
        last = None
        if size is not None:
            nth = select(Image.sample_key).order_by(Image.sample_key).offset(size - 1).limit(1)
            last = connection.scalar(nth)
    # 0 is a key like any other.
    return Scope(size, LAST_KEY if last is None else last, None)


_EXTENSIONS: Select[tuple[str]] = select(literal_column("extname || ' ' || extversion")).select_from(
    table("pg_extension")
)
"""As they are installed now."""


def nearest(
    space: EmbeddingSpace,
    vector: NDArray[np.float32],
    k: int,
    scope: Scope,
    *,
    exclude: Sequence[str] = (),
    filters: Filters = NO_FILTER,
    after: tuple[float, str] | None = None,
    seen: int = 0,
    with_vectors: bool = False,
) -> list[Neighbour]:
    """The k images of a scope with the highest cosine similarity to a vector, or all there are; ties by image_id.

    Takes what ``Ask`` describes.
    """
    return nearest_to(space, Ask(vector, k, scope, exclude, filters, after, seen, with_vectors))


def nearest_to(space: EmbeddingSpace, ask: Ask) -> list[Neighbour]:
    """What ``nearest`` says, of what is asked for in one piece."""
    way = way_of(space, ask)
    if way.strategy:
        found = _by_index(space, ask, way)
        if found is not None:
            return found
    return _exactly(space, ask)


def neighbour_chunks(
    space: EmbeddingSpace,
    vector: NDArray[np.float32],
    chunk: int,
    scope: Scope,
    *,
    asked: list[Ask] | None = None,
    **options: Any,
) -> Iterator[list[Neighbour]]:
    """All images of a scope in the order of their similarity, fetched in chunks as they are asked for.

    Each chunk goes on behind the last image of the one before, so that none comes twice and the order holds whatever
    an index overlooks, and whatever is written meanwhile. Each is as long as all before it together, so that to go far
    takes few searches. With the same ``chunk`` a longer walk begins as a shorter one does.

    Args:
        space: where to search.
        vector: (dimension,), of length 1.
        chunk: length of the first, at least 1.
        scope: which images to see.
        asked: gets each search that is made.
        options: ``exclude``, ``filters``, ``with_vectors``, as ``nearest`` takes them.
    """
    ask = Ask(vector, chunk, scope, **options)
    while True:
        if asked is not None:
            asked.append(ask)
        found = nearest_to(space, ask)
        yield found
        if len(found) < ask.k:
            return
        further = max(chunk, min(ask.depth, MOST_AT_ONCE))
        ask = replace(ask, k=further, after=(found[-1].distance, found[-1].image_id), seen=ask.depth)


def by_index(
    space: EmbeddingSpace,
    vector: NDArray[np.float32],
    k: int,
    scope: Scope,
    *,
    exclude: Sequence[str] = (),
    effort: int | None = None,
) -> list[Neighbour]:
    """What the index of a scope finds by itself: approximately the k nearest, and perhaps fewer.

    Takes what ``Ask`` describes; the scope must have an index.
    """
    ask = Ask(vector, k, scope, exclude, effort=effort)
    way = Way(STRATEGIES[scope.strategy], "", _effort(ask))
    return [_neighbour(row) for row in answer(space, ask, way)[:k]]


def way_of(space: EmbeddingSpace, ask: Ask) -> Way:
    """How a search is best answered.

    Exactly without an index, for more hits than an index gives, and where a filter lets so few images pass that
    looking at all of them is quick. Otherwise by the index, which looks at as many rows more as the filter turns away.
    """
    scope = ask.scope
    if scope.index_name is None:
        return Way(None, "this size has no index")
    if ask.depth > MOST_BY_INDEX:
        return Way(None, f"more than {MOST_BY_INDEX:,} hits are wanted")
    strategy, effort = STRATEGIES[scope.strategy], _effort(ask)
    if not ask.filters:
        return Way(strategy, "by the size's index", effort, ask.seen + ask.candidates(strategy, effort))
    share = estimated_share(space, scope.cutoff, ask.filters)
    if share * scope.rows <= FEW_MATCHES:
        return Way(None, f"about {share:.1%} pass the filter: few enough to compare with all of them")
    # Twice what is expected: matches may be rarer near the query than elsewhere.
    visited = int(2 * max(ask.seen + ask.candidates(strategy, effort), effort) / share)
    return Way(strategy, f"about {share:.1%} pass the filter: by the size's index", effort, visited)


def statement_of(space: EmbeddingSpace, ask: Ask, way: Way) -> tuple[str, dict[str, Any]]:
    """The statement that answers a search, and its parameters."""
    values: dict[str, Any] = {"query": ask.vector, "k": ask.k, "exclude": list(ask.exclude), **parameters(ask.filters)}
    if ask.after:
        values |= {"after_distance": ask.after[0], "after_id": ask.after[1]}
    if way.strategy is None:
        return _exact(space, ask), values
    return _indexed(space, ask, way.strategy), values | {"candidates": ask.candidates(way.strategy, way.effort)}


@contextmanager
def searching(space: EmbeddingSpace, ask: Ask, way: Way) -> Iterator[Connection]:
    """A connection as a search needs it.

    Raises:
        DamagedIndexError: the search goes by an index, and that cannot be read.
        StoreError: the server does not answer, or goes away in the middle.
    """
    # On a small table the planner would rather sort all rows than trust an index.
    settings = dict.fromkeys(("enable_sort", "enable_seqscan"), "off" if way.strategy else "on")
    if way.strategy:
        settings |= way.strategy.settings(ask.depth, way.effort, way.visited)
    try:
        with tuned(space.engine, settings) as connection:
            yield connection
    except (DBAPIError, StoreError) as error:
        said = damage(error) if way.strategy else None
        if said is None:
            raise
        raise DamagedIndexError(f"Index {ask.scope.index_name}", said) from error


def answer(space: EmbeddingSpace, ask: Ask, way: Way, *, before: str = "") -> Sequence[Any]:
    """The rows of an answer; by an index, also the row that would be the next hit, if one was seen.

    Args:
        space: where to search.
        ask: for what.
        way: how.
        before: such as ``EXPLAIN``, to be told of the statement instead.

    Raises:
        DamagedIndexError, StoreError: as ``searching`` says.
    """
    statement, values = statement_of(space, ask, way)

    def rows() -> Sequence[Any]:
        with searching(space, ask, way) as connection:
            return connection.exec_driver_sql(_as_sent(f"{before} {statement}", connection.dialect), values).all()

    try:
        return rows()
    except StoreError as error:
        if not is_gone(error):
            raise
        # The server was started anew since the last search. Reading once more does no harm.
        return rows()


@lru_cache(maxsize=256)
def _as_sent(statement: str, dialect: Dialect) -> str:
    """A statement as the driver takes it. There are few, and to read one anew takes as long as to send it."""
    return str(text(statement).compile(dialect=dialect))


def stored_vector(space: EmbeddingSpace, image_id: str, digest: str | None = None) -> NDArray[np.float32] | None:
    """The vector of an image, if asked for of these bytes; None if it has none."""
    query = select(space.table.c.embedding).where(space.table.c.image_id == image_id)
    if digest is not None:
        query = query.where(space.table.c.digest == digest)
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


def _effort(ask: Ask) -> int:
    return ask.scope.effort(ask.depth) if ask.effort is None else ask.effort


def _by_index(space: EmbeddingSpace, ask: Ask, way: Way) -> list[Neighbour] | None:
    """The answer by the index, or None if it is not to be relied on.

    It is short; the index had no more to give, and does not know whether it passed over some; or the answer ends among
    equals of which the index may not have given all.
    """
    rows = answer(space, ask, way)
    hits, following = rows[: ask.k], rows[ask.k :]
    if not following or following[0].farthest is None:
        return None
    among_equals = following[0].distance == hits[-1].distance
    if among_equals and hits[-1].reach >= following[0].farthest:
        return None
    return [_neighbour(row) for row in hits]


def _exactly(space: EmbeddingSpace, ask: Ask) -> list[Neighbour]:
    return [_neighbour(row) for row in answer(space, replace(ask, effort=None), Way(None, ""))]


def _neighbour(row: Any) -> Neighbour:
    vector = None if row.embedding is None else as_array(row.embedding)
    return Neighbour(*(*row[:10], vector))


def _indexed(space: EmbeddingSpace, ask: Ask, strategy: Strategy) -> str:
    """By the partial index, then by exact distance."""
    # A reach is how far the index takes an image to be; that of the farthest candidate is null if there were no more.
    # Images that left the catalogue go before the limit, so that they take nobody's place.
    return f"""
    WITH candidates AS MATERIALIZED (
        SELECT image_id, embedding, {strategy.reach(space.dimension)} AS reach FROM {space.table.name} e
        WHERE {membership(ask.scope.cutoff)} AND image_id <> ALL (CAST(:exclude AS text[]))
        AND {_BEHIND if ask.after else "true"} AND {row_condition(ask.filters, space.engine)}
        ORDER BY {strategy.ordering(space.dimension)}
        LIMIT :candidates
    ), measured AS MATERIALIZED (
        SELECT image_id, embedding, embedding <=> CAST(:query AS vector) AS distance, reach FROM candidates
    ), hits AS MATERIALIZED (
        SELECT image_id, path, digest, {_shown_vector(ask)}, distance, reach,
               (SELECT CASE WHEN count(*) = :candidates THEN max(reach) END FROM measured) AS farthest
        FROM (SELECT * FROM measured ORDER BY distance, image_id) ordered JOIN images USING (image_id)
        ORDER BY distance, image_id LIMIT CAST(:k AS bigint) + 1
    )
    {_DESCRIBED}
    """


def _exact(space: EmbeddingSpace, ask: Ask) -> str:
    """By comparing with every vector of the scope: adding 0 keeps the planner from any index on the distance."""
    # Said of both tables, for else the planner reads the whole catalogue to find a small size's images in it.
    cutoff = ask.scope.cutoff
    return f"""
    WITH hits AS MATERIALIZED (
        SELECT i.image_id, path, i.digest, {_shown_vector(ask)},
               (embedding <=> CAST(:query AS vector)) + 0 AS distance, NULL AS reach, NULL AS farthest
        FROM {space.table.name} e JOIN images i USING (image_id)
        WHERE e.sample_key <= {cutoff} AND i.sample_key <= {cutoff} AND i.image_id <> ALL (CAST(:exclude AS text[]))
        AND {_BEHIND if ask.after else "true"} AND {matching_images(ask.filters, space.engine)}
        ORDER BY distance, i.image_id LIMIT :k
    )
    {_DESCRIBED}
    """


_BEHIND = (
    "(e.embedding <=> CAST(:query AS vector), e.image_id) > (CAST(:after_distance AS float8), CAST(:after_id AS text))"
)


def _shown_vector(ask: Ask) -> str:
    return "embedding" if ask.with_vectors else "CAST(NULL AS vector) AS embedding"


_DESCRIBED = f"""
    SELECT h.image_id, h.path, 1 - h.distance AS similarity,
           p.item_id, p.title, p.product_type, p.color, p.brand, h.digest, h.distance, h.embedding,
           h.reach, h.farthest
    FROM hits h
    {DESCRIBED_BY}
    ORDER BY h.distance, h.image_id
"""


def stored_with_digest(space: EmbeddingSpace, digest: str) -> list[str]:
    """The images of the catalogue whose files have this digest, as ``archive.digest_of`` gives it; by image_id."""
    query = select(Image.image_id).where(Image.digest == digest).order_by(Image.image_id)
    with transaction(space.engine) as connection:
        return list(connection.scalars(query))
