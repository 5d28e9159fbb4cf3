"""The watch over fixed queries: what they find now, beside what they found after the index build before.

An index, a model or a catalogue that goes wrong shows here first: the same question gets other answers. A few newcomers
are what a growing catalogue brings; many at once are for a person to look at. Where answers are kept is for
``store.golden``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from abo_pipeline.queries import parse_query, recorded
from abo_pipeline.search import ImageSearch, stands_for
from abo_pipeline.store.golden import Answers, last_recording, record

TOP = 10


@dataclass(frozen=True)
class Change:
    """One query at one size, now and at the recording before.

    Attributes:
        overlap: overlap@10: the share of the earlier hits that are found again, from 0 to 1. None if there is no
            earlier answer.
        newcomers: image_ids found now and not then, best first.
        gone: image_ids found then and not now.
    """

    query: str
    size: int
    hits: int
    overlap: float | None
    newcomers: tuple[str, ...]
    gone: tuple[str, ...]
    best_similarity: float | None

    def as_row(self) -> dict[str, Any]:
        """Plain values for a table."""
        return {
            "query": self.query,
            "size": self.size,
            "hits": self.hits,
            "overlap_at_10": None if self.overlap is None else round(self.overlap, 2),
            "newcomers": len(self.newcomers),
            "new": ", ".join(self.newcomers),
            "gone": ", ".join(self.gone),
            "best_similarity": None if self.best_similarity is None else round(self.best_similarity, 4),
        }


def watch(search: ImageSearch, queries: Sequence[str], sizes: Sequence[int]) -> list[Change]:
    """Ask the fixed queries at every size, record the answers, and say how they differ from the last recorded ones.

    Args:
        search: of the space to watch.
        queries: as ``report.compare`` takes them.
        sizes: to ask at.

    Returns:
        One change a query and size, in their order.

    Raises:
        QueryError: a query cannot be answered; nothing is recorded then.
    """
    answers = {
        (size, recorded(query)): [(hit.image_id, hit.similarity) for hit in search(query, TOP, size=size)]
        for query in (stands_for(search.space, parse_query(text)) for text in queries)
        for size in sizes
    }
    before = last_recording(search.space)
    record(search.space, answers)
    return changes(answers, before.answers if before else {})


def changes(now: Answers, before: Answers) -> list[Change]:
    """How answers differ from earlier ones, in the order of those that are given now."""
    return [_change(size, query, hits, before.get((size, query))) for (size, query), hits in now.items()]


def mean_overlap(found: Sequence[Change], size: int) -> float | None:
    """overlap@10 over the queries at a size; None if none of them had been recorded before."""
    overlaps = [change.overlap for change in found if change.size == size and change.overlap is not None]
    return sum(overlaps) / len(overlaps) if overlaps else None


def _change(
    size: int, query: str, hits: Sequence[tuple[str, float]], before: Sequence[tuple[str, float]] | None
) -> Change:
    found = [image_id for image_id, _ in hits]
    best = hits[0][1] if hits else None
    if before is None:
        return Change(query, size, len(hits), None, (), (), best)
    earlier = [image_id for image_id, _ in before]
    return Change(
        query,
        size,
        len(hits),
        overlap=len(set(found) & set(earlier)) / len(earlier),
        newcomers=tuple(image_id for image_id in found if image_id not in earlier),
        gone=tuple(image_id for image_id in earlier if image_id not in found),
        best_similarity=best,
    )
