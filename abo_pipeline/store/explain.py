"""How Postgres answers a search: its plan, what it looked at, and which rank each hit truly has.

It runs what ``nearest`` runs, under the same settings.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import text

from abo_pipeline.store.database import transaction
from abo_pipeline.store.nearest import Ask, Way, answer, statement_of, way_of
from abo_pipeline.store.spaces import EmbeddingSpace
from abo_pipeline.store.strategies import EXACT


@dataclass(frozen=True)
class Explanation:
    """One search, looked at.

    Attributes:
        strategy: by which it was answered.
        reason: why by that one.
        index_name: None for an exact scan.
        effort: of the index; 0 for an exact scan.
        plan_line: the node of Postgres's plan that finds the vectors.
        visited: rows that this node gave, those included that a filter turned away.
        server_ms: that Postgres spent on planning and executing, with the cost of being watched.
    """

    strategy: str
    reason: str
    index_name: str | None
    effort: int
    plan_line: str
    visited: int
    server_ms: float


def plan_of(space: EmbeddingSpace, ask: Ask) -> str:
    """Postgres's plan of a search, as people read it; the search is not run."""
    way = way_of(space, ask)
    return "\n".join(line for (line,) in answer(space, ask, way, before="EXPLAIN"))


def explain(space: EmbeddingSpace, ask: Ask) -> Explanation:
    """Run a search under the eyes of Postgres."""
    way = way_of(space, ask)
    (((found,),),) = answer(space, ask, way, before="EXPLAIN (ANALYZE, FORMAT JSON)")
    nodes = list(_nodes(found["Plan"]))
    scan = next((node for node in nodes if _scans(node, space, way)), nodes[0])
    visited = (scan["Actual Rows"] + scan.get("Rows Removed by Filter", 0)) * scan["Actual Loops"]
    return Explanation(
        way.strategy.name if way.strategy else EXACT,
        way.reason,
        scan.get("Index Name") if way.strategy else None,
        way.effort,
        " ".join(str(scan[key]) for key in ("Node Type", "Index Name", "Relation Name") if key in scan),
        int(visited),
        found["Planning Time"] + found["Execution Time"],
    )


def exact_ranks(space: EmbeddingSpace, ask: Ask, image_ids: Sequence[str]) -> dict[str, int]:
    """Which place each of some hits has in the order of an exact search, from 1, under the same filters."""
    ask = replace(ask, k=2**62, after=None, seen=0, with_vectors=False)
    statement, values = statement_of(space, ask, Way(None, "to compare with"))
    ranked = text(
        f"SELECT image_id, rank FROM (SELECT image_id, row_number() OVER (ORDER BY distance, image_id) AS rank "
        f"FROM ({statement}) every) ranked WHERE image_id = ANY (:hits)"
    )
    with transaction(space.engine) as connection:
        rows = connection.execute(ranked, values | {"hits": list(image_ids)})
        return {row.image_id: row.rank for row in rows}


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _nodes(child)


def _scans(node: dict[str, Any], space: EmbeddingSpace, way: Way) -> bool:
    """Whether a node of a plan is the one that finds the vectors."""
    if node.get("Relation Name") != space.table.name:
        return False
    return way.strategy is None or "Order By" in node
