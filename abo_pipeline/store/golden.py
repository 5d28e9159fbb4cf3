"""Recorded answers to fixed queries: a row a hit, kept for the last few recordings of a space.

What a recording is compared for is said in ``abo_pipeline.golden``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, func, insert, select, text

from abo_pipeline.store.database import transaction
from abo_pipeline.store.schema import GoldenHit
from abo_pipeline.store.spaces import EmbeddingSpace

KEPT_RECORDINGS = 30

Answers = Mapping[tuple[int, str], Sequence[tuple[str, float]]]
"""By size and query: image_id and similarity of each hit, best first."""


@dataclass(frozen=True)
class Recording:
    """Answers, and when they were given."""

    recorded_at: datetime
    answers: Answers


def last_recording(space: EmbeddingSpace) -> Recording | None:
    """The newest recording of a space; None before the first."""
    newest = select(func.max(GoldenHit.recorded_at)).where(GoldenHit.space == space.name).scalar_subquery()
    columns = (GoldenHit.recorded_at, GoldenHit.size, GoldenHit.query, GoldenHit.image_id, GoldenHit.similarity)
    hits = (
        select(*columns)
        .where(GoldenHit.space == space.name, GoldenHit.recorded_at == newest)
        .order_by(GoldenHit.size, GoldenHit.query, GoldenHit.rank)
    )
    with transaction(space.engine) as connection:
        rows = connection.execute(hits).all()
    if not rows:
        return None
    answers: dict[tuple[int, str], list[tuple[str, float]]] = {}
    for _, size, query, image_id, similarity in rows:
        answers.setdefault((size, query), []).append((image_id, similarity))
    return Recording(rows[0].recorded_at, answers)


def record(space: EmbeddingSpace, answers: Answers) -> Recording:
    """Keep answers as the newest recording, and forget all but the last ``KEPT_RECORDINGS``.

    Raises:
        StoreError: the space has been dropped since it was opened.
    """
    with space.being_written(), transaction(space.engine) as connection:
        now = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
        rows = [
            {
                "space": space.name,
                "recorded_at": now,
                "size": size,
                "query": query,
                "rank": rank,
                "image_id": image_id,
                "similarity": similarity,
            }
            for (size, query), hits in answers.items()
            for rank, (image_id, similarity) in enumerate(hits, start=1)
        ]
        if rows:
            connection.execute(insert(GoldenHit), rows)
        times = select(GoldenHit.recorded_at).where(GoldenHit.space == space.name).distinct()
        kept = times.order_by(GoldenHit.recorded_at.desc()).limit(KEPT_RECORDINGS)
        connection.execute(delete(GoldenHit).where(GoldenHit.space == space.name, GoldenHit.recorded_at.not_in(kept)))
    return Recording(now, answers)
