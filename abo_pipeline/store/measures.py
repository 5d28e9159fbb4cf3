"""What is measured of a size and kept with it: recall, the effort that it takes, and the background of random queries.

And the reading that measuring needs: every vector once, in blocks. What to measure, and how, is for ``evaluation``.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import DateTime, func, literal_column, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert

from abo_pipeline.store.database import transaction
from abo_pipeline.store.schema import Background, Image, SizeIndex
from abo_pipeline.store.spaces import EmbeddingSpace

_BLOCK_ROWS = 4_096


@dataclass(frozen=True)
class Block:
    """Some vectors of a space: ids, sample keys (n,), and unit vectors (n, dimension)."""

    ids: list[str]
    keys: NDArray[np.int64]
    vectors: NDArray[np.float32]


@dataclass(frozen=True)
class Measured:
    """What is known of a size's index.

    Attributes:
        size: MAX_IMAGES.
        index_name: None where it is searched exactly.
        measures: as ``keep`` was given them; None before.
        measured_at: None before.
    """

    size: int
    index_name: str | None
    measures: dict[str, Any] | None
    measured_at: datetime | None


def blocks(space: EmbeddingSpace, cutoff: int) -> Iterator[Block]:
    """The vectors of the catalogue's images up to a sample key, in the keys' order, a block at a time."""
    columns = space.table.c
    rows = (
        # Without its type, for SQLAlchemy's makes a list of floats of each vector.
        select(columns.image_id, columns.sample_key, literal_column(f"{space.table.name}.embedding"))
        .join(Image, Image.image_id == columns.image_id)
        .where(columns.sample_key <= cutoff)
        .order_by(columns.sample_key, columns.image_id)
        .execution_options(stream_results=True, yield_per=_BLOCK_ROWS)
    )
    with transaction(space.engine) as connection:
        for part in connection.execute(rows).partitions():
            ids, keys, vectors = zip(*part, strict=True)
            matrix = np.stack([vector.to_numpy() for vector in vectors]).astype(np.float32, copy=False)
            yield Block(list(ids), np.array(keys, np.int64), matrix)


def titles(space: EmbeddingSpace, count: int) -> list[str]:
    """Different titles of the products that the first images by sample key show, at most so many."""
    found = text(
        f"""
        SELECT title FROM (
            SELECT DISTINCT ON (p.title) p.title, e.sample_key
            FROM (SELECT image_id, sample_key FROM {space.table.name} ORDER BY sample_key LIMIT :looked_at) e
            JOIN product_images x ON x.image_id = e.image_id AND x.position = 0
            JOIN products p USING (item_id, domain_name)
            WHERE p.title IS NOT NULL ORDER BY p.title, e.sample_key
        ) different ORDER BY sample_key, title LIMIT :count
        """
    )
    with transaction(space.engine) as connection:
        return list(connection.scalars(found, {"count": count, "looked_at": 20 * count}))


def measured(space: EmbeddingSpace, sizes: Sequence[int]) -> list[Measured]:
    """What is known of sizes that have been indexed, in their order."""
    columns = (SizeIndex.size, SizeIndex.index_name, SizeIndex.measured, SizeIndex.measured_at)
    found = select(*columns).where(SizeIndex.space == space.name, SizeIndex.size.in_(sizes)).order_by(SizeIndex.size)
    with transaction(space.engine) as connection:
        return [Measured(*row) for row in connection.execute(found)]


def keep(
    space: EmbeddingSpace,
    size: int,
    index_name: str | None,
    *,
    rows: int,
    efforts: Mapping[int, int],
    measures: Mapping[str, Any],
    background: Mapping[str, Sequence[float]],
    as_of: datetime,
) -> bool:
    """Keep what was measured of a size's index; from here on searches go by it.

    Args:
        space: of the size.
        size: MAX_IMAGES.
        index_name: of the index that was measured.
        rows: vectors at that time.
        efforts: effort by number of hits.
        measures: plain values.
        background: best similarities of random queries by kind.
        as_of: when measuring began, by the database's clock.

    Returns:
        False if the size has another index by now; nothing is kept then.
    """
    that = (SizeIndex.space == space.name) & (SizeIndex.size == size)
    same = SizeIndex.index_name.is_not_distinct_from(index_name)
    values = {
        "rows": rows,
        "efforts": {str(k): effort for k, effort in efforts.items()} or None,
        "measured": dict(measures),
        "measured_at": as_of,
    }
    with transaction(space.engine) as connection:
        if not connection.execute(update(SizeIndex).where(that & same).values(**values)).rowcount:
            return False
        for kind, similarities in background.items():
            statement = upsert(Background).values(
                space=space.name, size=size, kind=kind, similarities=sorted(map(float, similarities))
            )
            connection.execute(
                statement.on_conflict_do_update(
                    index_elements=[Background.space, Background.size, Background.kind],
                    set_={"similarities": statement.excluded.similarities},
                )
            )
    return True


def background(space: EmbeddingSpace, size: int, kind: str) -> NDArray[np.float64]:
    """Similarities of the best hits of random queries of a kind, ascending; empty if none are known."""
    found = select(Background.similarities).where(
        Background.space == space.name, Background.size == size, Background.kind == kind
    )
    with transaction(space.engine) as connection:
        return np.asarray(connection.scalar(found) or [], np.float64)


def now(space: EmbeddingSpace) -> datetime:
    """The database's clock."""
    with transaction(space.engine) as connection:
        return connection.execute(select(func.clock_timestamp(type_=DateTime(timezone=True)))).scalar_one()
